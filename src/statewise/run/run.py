"""`statewise run` as a function: execute what is not done of a plan, and summarise it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from statewise.errors import UsageError
from statewise.folder.damage import set_damage_aside
from statewise.folder.store import Store
from statewise.plan.dag import BASE, Job, Plan
from statewise.plan.estimate import estimate_plan
from statewise.plan.materials import check_materials
from statewise.plan.request import Workers, choose_workers
from statewise.run.executor import JobEvent, Outcome, execute
from statewise.run.pool import Pool
from statewise.run.worker import begin
from statewise.storage.records import StudySummary

MAX_ROUNDS = 4  # of work in one run: results that a damaged one was set aside for, then those that were made from it


def run_study(
    plan: Plan, folder: Path, on_event: Callable[[JobEvent], None], num_workers: int | None = None
) -> tuple[Outcome, StudySummary | None]:
    """Run what is not done of `plan` in `folder`, and summarise it; None: interrupted before an arm has scores.

    Args:
        plan: what to run.
        folder: where; what it holds of this plan is kept.
        on_event: told of every start, progress and end of a job.
        num_workers: processes side by side; None: as `choose_workers` finds right for the model.

    Raises:
        UsageError: the folder holds another study or is in use, a task cannot be used, or the plan is a dry one.
    """
    if plan.is_dry:
        raise UsageError("a dry plan does not know the weights and cannot be run; plan again without is_dry")
    _check_device(plan)
    check_materials(plan)
    store, workers = Store(folder), choose_workers(plan, num_workers)
    with store.lock():
        for text in store.open_for(plan):
            on_event(JobEvent("warning", plan.jobs[0], message=text))
        costs = estimate_plan(plan, workers.count).seconds
        outcome = Outcome()
        for _ in range(MAX_ROUNDS):
            for job, text in set_damage_aside(plan, store):
                on_event(JobEvent("warning", job, message=text))
            pool = Pool(workers.count, partial(begin, plan, store, workers))
            outcome = execute(plan, store, costs, on_event, pool)
            # What was made from a result that is another one now that it was done anew, or was damaged meanwhile.
            again = [job for job in plan.jobs if job.id in outcome.done and store.result(job) is None]
            if outcome.interrupted or not again:
                break
        if outcome.interrupted and not any(_is_scored(job, outcome) for job in plan.jobs):
            return outcome, None
        from statewise.results.summary import summarise, write_summary  # scipy: not before an error can be told

        summary = summarise(plan, store, environment(workers, _device_of(plan, store)))
        failures = tuple(f"{job} failed: {reason}" for job, reason in outcome.failed.items())
        summary = replace(summary, problems=(*failures, *summary.problems))
        write_summary(summary, store)
    return outcome, summary


def _check_device(plan: Plan) -> None:
    """Refuse a device or precision that this machine does not have, before the first job would."""
    shared = plan.config.shared
    if shared.device == "cuda" or shared.dtype == "bfloat16":  # else there is none to refuse, and torch takes seconds
        from statewise.policy.device import choose_device, choose_dtype

        choose_dtype(shared.dtype, choose_device(shared.device), plan.model)


def _is_scored(job: Job, outcome: Outcome) -> bool:
    return job.action == "evaluate" and job.arm != BASE and job.id in outcome.done


def _device_of(plan: Plan, store: Store) -> str:
    """Where and in which precision the base model computed, by the record of its evaluation."""
    results = [store.result(job) for job in plan.jobs if job.arm == BASE]
    return ", ".join(dict.fromkeys(str(result.get("device", "cpu")) for result in results if result)) or "not known"


def environment(workers: Workers, device: str = "cpu") -> dict[str, str]:
    """Where the numbers were made: versions, machine, threads."""
    packages = ("statewise", "torch", "transformers", "lm-eval", "peft", "POT", "scipy", "numpy")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processes": f"{workers.count} of {workers.threads} thread(s) each",
        "device": device,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
