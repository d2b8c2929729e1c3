"""Where tasks are found, by name, without importing lm-eval: `statewise` lists them in well under a second."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from statewise.errors import unknown
from statewise.tasks.task_file import NAME, built_in_folder, read_task_file

NUM_SUGGESTIONS = 3
SLIP = 0.9  # as similar as that to one of the user's own tasks, a name is one of them, mistyped
MAX_SLIP = 3  # letters more or less
DECLARATION = re.compile(rb'^"?(?:task|group|tag)"?:\s*"?([A-Za-z0-9_.()-]+)"?\s*$', re.MULTILINE)
LISTED = re.compile(
    rb'^"?(?:group|tag)"?:[ \t]*\r?\n((?:[ \t]*-[^\n]*(?:\n|\Z))+)', re.MULTILINE
)  # several tags of a task
ITEM = re.compile(rb'^[ \t]*-[ \t]*"?([A-Za-z0-9_.()-]+)"?[ \t]*\r?$', re.MULTILINE)


def list_tasks(task_folder: Path) -> tuple[str, ...]:
    """Names of the tasks in `task_folder`: its YAML files, sorted."""
    return tuple(sorted(path.stem for path in task_folder.glob("*.yaml")))


def find_task_file(name_or_path: str, task_folder: Path | None) -> Path | None:
    """The YAML file of a task that is not one of lm-eval's own; None if there is none.

    Args:
        name_or_path: a name, looked up as `<task_folder>/<name>.yaml`, or the path of a YAML file.
        task_folder: where the user's tasks lie.
    """
    named = Path(name_or_path)
    if named.suffix == ".yaml":
        return named if named.is_file() else None
    if task_folder is None or not NAME.fullmatch(name_or_path):
        return None
    path = task_folder / f"{name_or_path}.yaml"
    return path if path.is_file() else None


def find_code(name_or_path: str, task_folder: Path | None, *, is_trusted: bool) -> tuple[str, ...]:
    """The Python that the file of a task would run, a line each; none of lm-eval's own.

    Raises:
        UsageError: there is some, and it is not trusted; or the file cannot be read.
    """
    path = find_task_file(name_or_path, task_folder)
    if path is None:
        return ()
    file = read_task_file(path)
    file.check_trusted(file.told_code if is_trusted else ())
    return file.told_code


def find_first_metric(name_or_path: str, task_folder: Path | None) -> str:
    """The "metric,filter" by which a task that generates is rewarded, unless a study says otherwise; "" of a group.

    Raises:
        UsageError: its file cannot be read.
    """
    if path := find_task_file(name_or_path, task_folder):
        return read_task_file(path).first_metric
    files = (read_task_file(path) for path in lm_eval_names().get(name_or_path, []))
    return next((file.first_metric for file in files if file.config.get("task") == name_or_path), "")


def _yaml_files(place: str) -> Iterator[str]:
    """Paths as text, in a fixed order: Path objects of 14,000 files would take as long as reading them."""
    for folder, subfolders, files in os.walk(place):
        subfolders.sort()
        # What tasks include has names of tags as well, and mostly another ending.
        yield from (os.path.join(folder, file) for file in sorted(files) if "." not in file or "yaml" in file)


@cache
def lm_eval_names() -> dict[str, list[Path]]:
    """Every name of a task, group or tag in lm-eval's own files, with the files that mention it; under a second.

    lm-eval's own index parses the files, which takes 30 times as long and imports it.
    """
    names: dict[str, list[Path]] = {}
    for path in _yaml_files(str(built_in_folder())):
        with open(path, "rb") as stream:
            text = stream.read()  # a name may stand below worked examples
        listed = [name for block in LISTED.findall(text) for name in ITEM.findall(block)]
        for name in dict.fromkeys([*DECLARATION.findall(text), *listed]):
            names.setdefault(name.decode(), []).append(Path(path))
    names.pop("null", None)  # YAML for none
    return names


def check_task_name(name: str, task_folder: Path | None, where: str = "study (target, retention)") -> None:
    """Refuse a name that is neither a task file nor one of lm-eval's own tasks or groups; takes < 1 s.

    Raises:
        UsageError: no such task; names the nearest.
    """
    if find_task_file(name, task_folder) is not None:
        return
    own = list_tasks(task_folder) if task_folder else ()
    if difflib.get_close_matches(name, own, cutoff=SLIP):
        raise unknown("task", name, own, where)
    known = lm_eval_names()
    if name in known:
        return
    # Of 14,000 names only those that a slip of the finger may have come from; comparing all takes half a second.
    similar = [other for other in known if other[:1] == name[:1] and abs(len(other) - len(name)) <= MAX_SLIP]
    nearest = difflib.get_close_matches(name, [*own, *similar], n=NUM_SUGGESTIONS)
    raise unknown("task", name, [*own, *nearest], where)
