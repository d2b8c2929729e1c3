"""Damage in a run folder: what is not what was recorded goes to `damaged/`, so that the same command does it anew.

Nothing that is damaged is overwritten or deleted. A file that nobody recorded is set aside alone; anything else makes
its job's whole result go, since parts of one result belong together.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from statewise.errors import DamagedError
from statewise.folder.store import FILES, FOLDERS, LEFT, RESULT_NAMES, Store
from statewise.loop.recorder import damaged_records
from statewise.plan.dag import Job, Plan
from statewise.storage import integrity
from statewise.storage.integrity import is_there

CHECKPOINTS, STARTED = "checkpoints", "started.json"
# Written anew at the end of every run.
DERIVED = ("summary.json", "results.parquet", "report.html")
PART = re.compile(r"(states|supervised)/[0-9]{6,}\.parquet")


def set_damage_aside(plan: Plan, store: Store) -> Iterator[tuple[Job, str]]:
    """Check all that was recorded of `plan` and move what is damaged; yields what was, with its job."""
    for job in plan.jobs:
        folder = store.arm_folder(job.arm, job.seed)
        yield from ((job, text) for text in _wrong_kinds(store, job, folder))
        for text in _of_result(store, job) if is_there(store.result_path(job)) else _of_beginning(plan, store, job):
            yield job, text
    for name in DERIVED:
        if is_there(store.folder / name) and not _is_plain(store.folder / name):
            yield plan.jobs[0], f"{store.folder / name} is no plain file; {store.set_aside(store.folder / name)}"


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _wrong_kinds(store: Store, job: Job, folder: Path) -> Iterator[str]:
    """Set aside what is a file where a folder belongs, or the reverse."""
    inside = (*FOLDERS[job.action], *([CHECKPOINTS] if job.action == "train" else []))
    for path in (folder.parent.parent, folder.parent, folder, *(folder / name for name in inside)):
        if is_there(path) and (path.is_symlink() or not path.is_dir()):
            yield f"{path} is no folder; {store.set_aside(path)}, {job.id} is done again"
    for name in (RESULT_NAMES[job.action], *FILES[job.action]):
        if is_there(folder / name) and not _is_plain(folder / name):
            yield f"{folder / name} is no plain file; {store.set_aside(folder / name)}"


def _of_result(store: Store, job: Job) -> Iterator[str]:
    """Check a finished job."""
    path = store.result_path(job)
    folder = path.parent
    try:
        stored = integrity.read_sealed(path)
    except DamagedError as error:
        yield f"{error}; {_redo(store, job)}"
        return
    if stored.get("fingerprint") != job.fingerprint:
        return
    lost = integrity.faults_of(folder, stored["files"])
    for name, what in integrity.strays_of(folder, stored["files"], LEFT[job.action]).items():
        yield f"{folder / name} {what}; {store.set_aside(folder / name)}"
    if lost:
        name, what = next(iter(lost.items()))
        yield f"{folder / name} {what}; {_redo(store, job)}"
    elif job.action == "train":  # a kill came between its end and their removal
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _redo(store: Store, job: Job) -> str:
    """Set aside all that a job left, its result first, so that a kill in between leaves a job that is not done."""
    folder = store.arm_folder(job.arm, job.seed)
    names = [RESULT_NAMES[job.action], *LEFT[job.action]]
    there = [folder / name for name in names if is_there(folder / name)]
    for path in there:
        store.set_aside(path)
    return f"the result of {job.id} is moved to damaged/, and the job is done again"


def _of_beginning(plan: Plan, store: Store, job: Job) -> Iterator[str]:
    """Check what a job that is not done would continue from, and what lies where it will write."""
    folder = store.arm_folder(job.arm, job.seed)
    damaged = damage_of_beginning(folder, job.action)
    if job.action == "evaluate":
        known = {f"evals/{task}.parquet" for task in plan.tasks}
        strays = [name for name in integrity.files_below(folder, FOLDERS["evaluate"]) if name not in known]
        damaged |= dict.fromkeys(strays, "was not recorded")
    for name, what in damaged.items():
        yield f"{folder / name} {what}; {store.set_aside(folder / name)}"


def damage_of_beginning(folder: Path, action: str) -> dict[str, str]:
    """What is wrong with what a job that is not done left so far in the folder of its arm, by path there."""
    if action != "train":
        return {}
    strays = [name for name in integrity.files_below(folder, ("states", "supervised")) if not PART.fullmatch(name)]
    damaged = dict.fromkeys(strays, "was not recorded") | _of_checkpoints(folder)
    if (folder / STARTED).is_file():
        try:
            integrity.read_sealed(folder / STARTED)
        except DamagedError:
            damaged[STARTED] = "is not what was written"
    return damaged


def _of_checkpoints(folder: Path) -> dict[str, str]:
    """Checkpoints that are damaged, and records that a sound one stands on and that are."""
    damaged: dict[str, str] = {}
    for candidate in sorted(path for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.is_dir()):
        try:
            progress = integrity.read_sealed(candidate / "progress.json")
            if faults := integrity.faults_of(candidate, progress["files"]):
                raise DamagedError(f"{next(iter(faults))} in it")
            names = damaged_records(folder, int(progress["step"]), progress["records"])
            damaged |= {name: "is not what was recorded" for name in names if is_there(folder / name)}
        except DamagedError:
            damaged[f"{CHECKPOINTS}/{candidate.name}"] = "is damaged"
    return damaged
