"""`[tasks.<name>]` of a study: a task file of the user's own, in the place of a name, and all files that it stands on.

Where they lie is no part of what the task is: a study is another one where its name or one of their digests is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from statewise.errors import UsageError
from statewise.kind import Strict
from statewise.storage import records
from statewise.storage.rows import READERS
from statewise.tasks.task_file import TaskFile, read_task_file

SUFFIX = ".yaml"
LOCAL_FORMATS = tuple(READERS)


class TaskSection(Strict):
    """`[tasks.<name>]`: where the YAML of a task of the user's own lies. `digests`, by path, are filled in.

    A study file gives the path as `shared.target` or in `shared.retention`; this is how a run folder keeps it.
    """

    file: str
    digests: dict[str, str] = {}

    def located(self, folder: Path) -> Self:
        """The same with its absolute path, that given being relative to `folder`, and with the digests of its files.

        Raises:
            UsageError: the task file or one that it names is not there, or it cannot be read.
        """
        path = (folder / Path(self.file).expanduser()).resolve()
        if path.suffix != SUFFIX:
            raise UsageError(f"task file {path}: expected a path that ends in {SUFFIX}, or a task's name")
        if not path.is_file():
            raise UsageError(f"there is no task file {path}")
        return self.changed(file=str(path), digests=digest_task(path))

    @property
    def name(self) -> str:
        """What the file calls its task."""
        return read_task_file(Path(self.file)).name

    @property
    def identity(self) -> list[str]:
        """What it means, wherever its files lie; for fingerprints."""
        return [*self.digests.values()]

    def check_unchanged(self) -> None:
        """Refuse files that are not those of the plan.

        Raises:
            UsageError: names one.
        """
        now = digest_task(Path(self.file))
        if changed := [path for path in {**self.digests, **now} if self.digests.get(path) != now.get(path)]:
            raise UsageError(f"{changed[0]} changed since the study was read; run the same command again")


def digest_task(path: Path) -> dict[str, str]:
    """SHA-256 of all that the task file at `path` stands on, by path, in the order in which they are named.

    That is the file itself, those that it includes, its local data, and the Python that it names beside it, but not
    what that imports.

    Raises:
        UsageError: the file cannot be read, or data that it names are not there.
    """
    file = read_task_file(path)
    code = [function.beside for function in file.code if function.beside.is_file()]
    return {str(one): records.digest_file(one) for one in (*file.parts, *_data_of(file), *code)}


def _data_of(file: TaskFile) -> list[Path]:
    """Its local data. Those that it names as a folder are refused: nothing would tell that they changed."""
    if file.config.get("custom_dataset"):
        return []  # its data are what a function gives
    source, options = file.config.get("dataset_path"), file.config.get("dataset_kwargs")
    data_files = options.get("data_files") if isinstance(options, dict) else None
    is_folder = isinstance(source, str) and Path(source).expanduser().is_dir()
    if is_folder or (source in LOCAL_FORMATS and data_files is None):
        raise UsageError(
            f"task file {file.path}: dataset_path {source!r}: name the files of local data, as dataset_path: json (or "
            "another format) and dataset_kwargs.data_files"
        )
    if source not in LOCAL_FORMATS:
        return []
    splits = locate_data(data_files, file.path.parent, str(file.config.get("task"))) or {}
    return [path for paths in splits.values() for path in paths]


def locate_data(data_files: Any, folder: Path, task: str) -> dict[str, list[Path]] | None:
    """Absolute files per split; None if they are not local."""
    per_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    located: dict[str, list[Path]] = {}
    for split, patterns in per_split.items():
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if not isinstance(pattern, str):
                raise UsageError(f"task {task!r}: dataset_kwargs.data_files: {pattern!r} is no file")
            if "://" in pattern:
                return None
            files = sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]
            missing = [file for file in files if not file.is_file()] or ([] if files else [folder / pattern])
            if missing:
                raise UsageError(
                    f"task {task!r}: its {split} data {missing[0].resolve()} do not exist; "
                    "put the file there or correct dataset_kwargs.data_files in the task's YAML"
                )
            located.setdefault(str(split), []).extend(file.resolve() for file in files)
    return located
