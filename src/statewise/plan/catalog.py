"""Names that a user may type: built-in studies and tasks."""

from __future__ import annotations

import tomllib
from pathlib import Path

from statewise.assets import POCKET_MODEL, STUDIES
from statewise.errors import UsageError, unknown
from statewise.tasks.find import list_tasks


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


def task_folder(model: Path) -> Path:
    """The benchmarks that a model folder brings along, as `statewise pretrain` writes them; else the embedded ones."""
    folder = model / "tasks"
    return folder if folder.is_dir() else POCKET_MODEL / "tasks"


def pocket_tasks() -> tuple[str, ...]:
    """Names of the embedded benchmarks."""
    return list_tasks(POCKET_MODEL / "tasks")
