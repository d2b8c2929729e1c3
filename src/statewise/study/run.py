"""`statewise run` as a function: execute what is not done of a plan, and summarise it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from statewise.errors import UsageError
from statewise.records import StudySummary
from statewise.study.estimate import estimate_plan
from statewise.study.executor import THREADS, NodeEvent, Outcome, execute
from statewise.study.plan import BASE, Plan
from statewise.study.store import Store
from statewise.study.summary import summarise, write_summary


def run_study(
    plan: Plan, folder: Path, on_event: Callable[[NodeEvent], None], num_workers: int
) -> tuple[Outcome, StudySummary]:
    """Run what is not done of `plan` in `folder`, and summarise it.

    Raises:
        UsageError: the folder holds another study or is in use, or the plan is a dry one.
    """
    if plan.is_dry:
        raise UsageError("a dry plan does not know the weights and cannot be run; plan again without is_dry")
    store = Store(folder)
    with store.lock():
        store.open_for(plan)
        costs = estimate_plan(plan, num_workers).seconds
        outcome = execute(plan, store, costs, on_event, num_workers)
        summary = summarise(plan, store, environment(num_workers, _device_of(plan, store)))
        failures = tuple(f"{node} failed: {reason}" for node, reason in outcome.failed.items())
        summary = replace(summary, problems=(*failures, *summary.problems))
        write_summary(summary, store)
    return outcome, summary


def _device_of(plan: Plan, store: Store) -> str:
    """Where and in which precision the base model computed, by the record of its evaluation."""
    results = [store.result(node) for node in plan.nodes if node.arm == BASE]
    return ", ".join(dict.fromkeys(str(result.get("device", "cpu")) for result in results if result)) or "not known"


def environment(num_workers: int, device: str = "cpu") -> dict[str, str]:
    """Where the numbers were made: versions, machine, threads."""
    packages = ("statewise", "torch", "transformers", "lm-eval", "peft", "POT", "scipy", "numpy")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processes": f"{num_workers} of {THREADS} thread each",
        "device": device,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
