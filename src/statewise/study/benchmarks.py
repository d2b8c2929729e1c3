"""The tasks of a plan, built as its study says, and checked before a model is loaded for them."""

from __future__ import annotations

from pathlib import Path

from statewise.study.catalog import task_folder
from statewise.study.plan import Plan
from statewise.tasks.load import load_task
from statewise.tasks.task import Task, TaskOptions


def build_task(plan: Plan, name: str) -> Task:
    """Task `name` of `plan`, with the study's data, shots and reward.

    Raises:
        UsageError: its data or its YAML cannot be used, or it has no such metric.
    """
    shared = plan.config.shared
    return load_task(
        name,
        task_folder=task_folder(plan.model),
        data=Path(shared.data) if shared.data else None,
        reward_metric=shared.reward_metric if name == shared.target else "",
        options=TaskOptions(shared.protocol[name].num_fewshot if name in shared.protocol else None),
        trusted=plan.task_code,
    )


def check_tasks(plan: Plan) -> None:
    """Build every task of `plan` once, so that what is wrong with it is said before workers and models are loaded.

    Raises:
        UsageError: a task cannot be built, or the target cannot be trained on.
    """
    build_task(plan, plan.config.shared.target).check_target()
    for name in plan.config.shared.retention:
        build_task(plan, name)
