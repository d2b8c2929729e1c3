"""`statewise verify`: every file of a run folder against what was recorded of it; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statewise.errors import DamagedError, UsageError
from statewise.folder.damage import CHECKPOINTS, DERIVED, damage_of_beginning
from statewise.folder.store import DAMAGED, LEFT, PLAN, RESULT_NAMES, TRACKED
from statewise.plan.dag import BASE
from statewise.plan.replay import hashes_of_record
from statewise.storage import integrity
from statewise.storage.integrity import NOT_VERIFIED

# Beside the records of an arm, and beside the arms of a run; a report is made anew from the summary.
BESIDE = (*RESULT_NAMES.values(), "traceback.txt")
OF_RUN = (PLAN, "summary.json", "report.html", ".lock")


@dataclass
class Verification:
    """What was found. `num_files` match; `damaged`: what is wrong, by file; `strays` are files that nobody recorded.

    `older`: files of an older version, which recorded no digests; `unfinished`: jobs that are not done, of whose files
    checkpoints and what they stand on are checked; `num_set_aside`: files in `damaged/`.
    """

    num_files: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    num_set_aside: int = 0

    @property
    def is_sound(self) -> bool:
        return not (self.damaged or self.strays or self.older)


def verify_run(folder: Path) -> Verification:
    """Check everything in a run folder.

    Raises:
        UsageError: it is none.
    """
    if not folder.is_dir() or not (integrity.is_there(folder / PLAN) or (folder / "arms").is_dir()):
        raise UsageError(f"{folder}: not a run folder (no {PLAN}); give the folder of a `statewise run`")
    found = Verification()
    known = set(OF_RUN)
    for name in (PLAN, "summary.json"):
        if name == PLAN or integrity.is_there(folder / name):
            stored, is_sealed = _read(found, folder, name)
            known |= {*stored.get("files", {})}
            if is_sealed:
                _verify_files(found, folder, stored["files"])
    for place in sorted(path for path in (folder / "arms").glob("*/*") if path.is_dir()):
        for action in RESULT_NAMES:
            _verify_job(found, folder, place, action)
        inside = {name for names in LEFT.values() for name in integrity.files_below(place, names)}
        checkpoints = set(integrity.files_below(place, [CHECKPOINTS]))
        known |= {str((place / name).relative_to(folder)) for name in (*BESIDE, *inside, *checkpoints)}
    everything = integrity.files_below(folder, [path.name for path in folder.iterdir()])
    found.num_set_aside = sum(name.split("/")[0] == DAMAGED for name in everything)
    found.strays += [name for name in everything if name not in known and name.split("/")[0] not in (DAMAGED, TRACKED)]
    found.strays = [name for name in found.strays if name not in DERIVED]
    return found


def told(found: Verification) -> list[str]:
    """What `statewise verify` prints, line by line."""
    lines = [f"{name}: {what}" for name, what in found.damaged.items()]
    lines += [f"{name}: {NOT_VERIFIED}" for name in found.older]
    lines += [f"{name}: nobody recorded it" for name in found.strays]
    if found.num_set_aside:
        lines.append(f"{DAMAGED}/ holds {found.num_set_aside} files that were set aside")
    if found.unfinished:
        lines.append(f"not done yet: {', '.join(found.unfinished)}")
    num_others = len(found.damaged) + len(found.older) + len(found.strays)
    count = f"{found.num_files} files match"
    return [*lines, f"{count}, {num_others} do not" if num_others else f"all {count}"]


def _verify_job(found: Verification, folder: Path, place: Path, action: str) -> None:
    """Check what a job left in the folder `place` of its arm and seed."""
    inside, id_ = str(place.relative_to(folder)), f"{action}:{place.parent.name}:{place.name}"
    result = f"{inside}/{RESULT_NAMES[action]}"
    if not integrity.is_there(folder / result):
        if action == "evaluate" or place.parent.name != BASE:
            found.unfinished.append(id_)
            beginning = damage_of_beginning(place, action)
            found.damaged |= {f"{inside}/{name}": what for name, what in beginning.items()}
        return
    stored, is_sealed = _read(found, folder, result)
    if not is_sealed or "files" not in stored:
        return
    found.strays += [f"{inside}/{name}" for name in integrity.strays_of(place, stored["files"], LEFT[action])]
    is_whole = _verify_files(found, place, stored["files"], f"{inside}/")
    if "state_hash" in stored and is_whole:
        hashes = hashes_of_record(place, stored["files"])
        if hashes != (stored["state_hash"], stored["reward_hash"]):
            found.damaged[f"{inside}/states"] = "has another running hash than was trained on"


def _read(found: Verification, folder: Path, name: str) -> tuple[dict[str, Any], bool]:
    """The object in a JSON file, {} if it is damaged, and whether it carries a digest."""
    try:
        stored, is_sealed = integrity.read_either(folder / name)
    except DamagedError as error:
        found.damaged[name] = str(error).removeprefix(f"{folder / name} ")
        return {}, False
    if not is_sealed:
        found.older.append(name)
    return stored, is_sealed


def _verify_files(found: Verification, folder: Path, files: Mapping[str, str], inside: str = "") -> bool:
    """Check the files that were recorded of `folder`, which is `inside` the run; returns whether all match."""
    faults = integrity.faults_of(folder, files)
    found.damaged |= {f"{inside}{name}": what for name, what in faults.items()}
    found.num_files += 1 + len(files) - len(faults)
    return not faults
