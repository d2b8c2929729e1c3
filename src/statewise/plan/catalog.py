"""Names that a user may type: built-in studies and tasks."""

from __future__ import annotations

import tomllib
from pathlib import Path

from statewise.assets import POCKET_MODEL, STUDIES
from statewise.config.study import StudyConfig
from statewise.errors import UsageError, unknown
from statewise.tasks.find import find_first_metric, find_task_file, list_tasks

POCKET_TARGET, POCKET_REWARD = "pocket_math", "exact_match,flexible-extract"


def built_in_studies() -> dict[str, Path]:
    """Built-in study files by name."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.toml"))}


def describe_study(path: Path) -> str:
    """The one-line description of a study file."""
    return str(tomllib.loads(path.read_text(encoding="utf-8"))["study"].get("description", ""))


def find_study(name: str) -> Path:
    """The file of a built-in study, or the path that `name` is.

    Raises:
        UsageError: neither a built-in name nor a file.
    """
    studies = built_in_studies()
    if name in studies:
        return studies[name]
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"{name}: no such study file; give a path to a .toml file or one of {', '.join(studies)}")
        return path
    raise unknown("study", name, studies)


def place_of_task(task: str, config: StudyConfig, model: Path) -> tuple[str, Path]:
    """How a task of a study is found: the path of its own file, or else its name, and the folder of benchmarks.

    That is the model folder's own, as `statewise pretrain` writes them, where they hold the task or it has some and the
    embedded ones do not.
    """
    brought, embedded = model / "tasks", POCKET_MODEL / "tasks"
    if task in config.tasks:
        return config.tasks[task].file, embedded
    is_embedded = find_task_file(task, brought) is None and (
        not brought.is_dir() or find_task_file(task, embedded) is not None
    )
    return task, embedded if is_embedded else brought


def with_reward_metric(config: StudyConfig, model: Path) -> StudyConfig:
    """The study that says by which metric an answer to its target is rewarded: the task's first, unless it does.

    `pocket_math` is rewarded by `POCKET_REWARD`, whether embedded or of another world: its strict form, which comes
    first, the base model never writes.
    """
    shared = config.shared
    if shared.reward_metric or config.data:
        return config
    is_pocket = shared.target == POCKET_TARGET and shared.target not in config.tasks
    metric = POCKET_REWARD if is_pocket else find_first_metric(*place_of_task(shared.target, config, model))
    return config.model_copy(update={"shared": shared.model_copy(update={"reward_metric": metric})})


def pocket_tasks() -> tuple[str, ...]:
    """Names of the embedded benchmarks."""
    return list_tasks(POCKET_MODEL / "tasks")
