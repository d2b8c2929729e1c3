"""What a user asks for, checked and planned; light enough that a mistyped name is answered in well under a second."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from statewise.config import StudyConfig, read_study
from statewise.errors import UsageError
from statewise.policy.find import look_up_model
from statewise.study.catalog import find_model, find_study, task_folder
from statewise.study.plan import Plan, make_plan
from statewise.tasks.find import check_task_name


@dataclass(frozen=True)
class StudyRequest:
    """What a user asks for: a study by name or path, overrides, seeds, and the base model by name or folder.

    `limit`: items a task and prompts of drift, at most; `is_quick`: the study's own small size; `is_dry`: the plan is
    to be shown, not run, so no weights are downloaded or read for it.
    """

    study: str
    overrides: tuple[str, ...] = ()
    num_seeds: int | None = None
    model: str | None = None
    is_dry: bool = False


def plan_study(request: StudyRequest) -> Plan:
    """Read and check a study; needs neither torch nor the tasks.

    Raises:
        UsageError: anything in the study or the overrides that cannot run.
    """
    path = find_study(request.study)
    config = read_study(path, request.overrides)
    if request.num_seeds is not None:
        if request.num_seeds < 1:
            raise UsageError(f"--seeds {request.num_seeds}: expected a number >= 1")
        config = _with_seeds(config, request.num_seeds)
    if request.model is not None:
        config = config.model_copy(update={"shared": config.shared.model_copy(update={"model": request.model})})
    if not request.is_dry:
        model = find_model(config.shared.model)
        _check_tasks(config, model)
        return make_plan(config, model, path.name)
    reference = look_up_model(config.shared.model)
    _check_tasks(config, reference.folder)
    plan = make_plan(config, reference.folder, path.name, is_dry=True)
    return replace(plan, download_bytes=reference.missing_bytes)


def _check_tasks(config: StudyConfig, model: Path) -> None:
    for task in (config.shared.target, *config.shared.retention):
        check_task_name(task, task_folder(model))


def _with_seeds(config: StudyConfig, count: int) -> StudyConfig:
    """The first `count` seeds of the study, and further ones counted up from its largest."""
    seeds = list(config.study.seeds[:count])
    while len(seeds) < count:
        seeds.append(max(seeds) + 1)
    return config.model_copy(update={"study": config.study.model_copy(update={"seeds": seeds})})


def default_num_workers() -> int:
    """One process a core that this process may use."""
    return max(1, len(os.sched_getaffinity(0)))
