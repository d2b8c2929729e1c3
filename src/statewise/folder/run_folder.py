"""A finished or unfinished run folder, read from its records alone: its study, and what each arm and seed left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from statewise.config.read import read_resolved
from statewise.config.study import StudyConfig
from statewise.errors import UsageError, unknown
from statewise.folder.item_scores import Scores, read_scores
from statewise.folder.store import ADVICE, PLAN, RESULT_NAMES, STUDY, Store, faults_of_job
from statewise.plan.dag import BASE
from statewise.storage import integrity
from statewise.storage.integrity import is_there


@dataclass(frozen=True)
class RunFolder:
    """A folder of `statewise run` and its resolved study; `model` is the base model's folder when it was planned, and
    `model_files` the SHA-256 of the files in it.
    """

    folder: Path
    config: StudyConfig
    model: Path
    model_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        return (BASE, *self.config.arms)

    def check_arm(self, arm: str) -> None:
        """Refuse an arm that the study does not have."""
        if arm not in self.arms:
            raise unknown("arm", arm, self.arms, str(self.folder))

    def check_seed(self, seed: int) -> None:
        """Refuse a seed that the study does not have."""
        if seed not in self.config.study.seeds:
            raise UsageError(
                f"{self.folder}: the study has no seed {seed}; its seeds are "
                f"{', '.join(map(str, self.config.study.seeds))}"
            )

    def arm_folder(self, arm: str, seed: int) -> Path:
        return Store(self.folder).arm_folder(arm, seed)

    def record(self, arm: str, seed: int, action: str) -> dict[str, Any]:
        """What a job left, after it and all its files were checked; {} if it is not done.

        `files` in it are their SHA-256; a record of an older version has none, and was not checked (`is_older`).

        Raises:
            DamagedError: it or one of its files is not what was recorded.
        """
        path = self.arm_folder(arm, seed) / RESULT_NAMES[action]
        if not is_there(path):
            return {}
        stored, is_sealed = integrity.read_either(path, ADVICE)
        if is_sealed:
            integrity.refuse(path.parent, faults_of_job(path.parent, action, stored), ADVICE)
        return {key: value for key, value in stored.items() if is_sealed or key != "files"}

    def tables(self, arm: str, seed: int, action: str, *patterns: str) -> list[Path]:
        """The files that a job left by one of `patterns`, by name, after all were checked; [] if it is not done."""
        record, folder = self.record(arm, seed, action), self.arm_folder(arm, seed)
        # A record of an older version has no names.
        there = (
            record["files"] if "files" in record else [str(p.relative_to(folder)) for p in folder.rglob("*.parquet")]
        )
        return [folder / name for name in sorted(there) if record and any(fnmatch(name, one) for one in patterns)]

    def scores(self, arm: str, seed: int) -> Scores:
        """The scores of an arm and seed, checked; {} where it was not evaluated."""
        record = self.record(arm, seed, "evaluate")
        return read_scores(self.arm_folder(arm, seed), record.get("files")) if record else {}


def is_older(record: Mapping[str, Any]) -> bool:
    """Whether a record has no digests of its files."""
    return bool(record) and "files" not in record


def open_run(folder: Path) -> RunFolder:
    """Open a run folder.

    Raises:
        UsageError: it is none, or its records are damaged.
    """
    if not (folder / PLAN).is_file() or not (folder / STUDY).is_file():
        raise UsageError(f"{folder}: not a run folder (no {PLAN}); give the folder of a `statewise run`")
    plan, _ = integrity.read_either(folder / PLAN, ADVICE)
    integrity.refuse(folder, integrity.faults_of(folder, plan.get("files", {})), ADVICE)
    model = Path(str(plan.get("model", "")))
    return RunFolder(folder, read_resolved(folder / STUDY), model, plan.get("model_files", {}))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without the digest that it may carry.

    Raises:
        DamagedError: the file is damaged.
    """
    return integrity.read_either(path)[0]
