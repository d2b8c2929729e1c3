"""The run folder of a study: where things lie, and which nodes are done.

`done.json` (evaluate) and `train.json` (train) are written last and carry their node's fingerprint, so a node is done
if and only if that file is there with the fingerprint of the plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any, BinaryIO

from statewise import records
from statewise.config import StudyConfig, read_study, to_toml
from statewise.errors import UsageError
from statewise.output_folder import LOCK, check_entries, open_lock
from statewise.study.contract import flatten
from statewise.study.plan import Node, Plan

RESULT_NAMES = {"train": "train.json", "evaluate": "done.json"}
# What a run that was killed before its plan was written leaves behind.
BEFORE_PLAN = (LOCK, ".plan.json.tmp")
# What a folder has that may be locked: of a run its plan or, where that is lost, its arms; of an evaluation its header.
MARKERS = ("plan.json", "arms", "eval.json")

# Room may be made, so that the same command then works: not an error of the user's.
DISK_IS_FULL = (ENOSPC, EDQUOT)
NUM_TOLD = 5  # differing keys
WITHOUT_EFFECT = ("label", "levels")


@dataclass(frozen=True)
class Store:
    """A run folder."""

    folder: Path

    def arm_folder(self, arm: str, seed: int) -> Path:
        return self.folder / "arms" / arm / str(seed)

    def result(self, node: Node) -> dict[str, Any] | None:
        """What `node` left when it was done, or None if it is not done or was done under another fingerprint."""
        path = self.arm_folder(node.arm, node.seed) / RESULT_NAMES[node.action]
        if not path.exists():
            return None
        try:
            stored = records.read_json(path)
        except ValueError:
            return None
        return stored if isinstance(stored, dict) and stored.get("fingerprint") == node.fingerprint else None

    def finish(self, node: Node, result: dict[str, Any]) -> None:
        """Mark `node` as done."""
        path = self.arm_folder(node.arm, node.seed) / RESULT_NAMES[node.action]
        records.write_json(path, {"fingerprint": node.fingerprint, **result})

    def open_for(self, plan: Plan) -> None:
        """Create the folder for `plan`, or check that it holds this study.

        Raises:
            UsageError: the folder holds another study, a damaged plan, or something else.
        """
        path = self.folder / "plan.json"
        if path.exists():
            try:
                stored = records.read_json(path)
            except ValueError:
                stored = None
            if not isinstance(stored, dict):
                raise UsageError(f"{path} is damaged; choose another folder with --out")
            if stored.get("fingerprint") != plan.fingerprint:
                raise UsageError(
                    f"{self.folder}: holds a run of another study or with other settings "
                    f"({_told_differences(self.folder / 'study.toml', plan.config)}); "
                    "choose another folder with --out, or repeat the settings it was made with"
                )
            self._check_seeds(plan.config.study.seeds)
        elif self.folder.exists() and any(path.name not in BEFORE_PLAN for path in self.folder.iterdir()):
            raise UsageError(f"{self.folder}: exists and is not a run folder; choose another with --out")
        nodes = [{"id": node.id, "needs": list(node.needs), "fingerprint": node.fingerprint} for node in plan.nodes]
        records.write_json(path, {"fingerprint": plan.fingerprint, "model": str(plan.model), "nodes": nodes})
        records.write_bytes(self.folder / "study.toml", to_toml(plan.config).encode())

    def _check_seeds(self, seeds: list[int]) -> None:
        """A seed that has begun stays in the study: without it the report would be of fewer, without a word."""
        begun = {int(path.name) for path in self.folder.glob("arms/*/*") if path.name.isdecimal()}
        if missing := sorted(begun - set(seeds)):
            raise UsageError(
                f"{self.folder}: holds seeds {', '.join(map(str, sorted(begun)))}, and this command would leave "
                f"{', '.join(map(str, missing))} out of study and report; give --seeds as before (more are allowed) "
                "or another folder with --out"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; the lock goes with the process, however it ends.

        Raises:
            UsageError: another process works in the folder, it cannot be one, or it holds something else or links;
                then nothing in it was touched.
        """
        with self._open_lock() as stream:
            try:
                flock(stream, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.folder}: another statewise is at work here; wait for it or use --out"
                ) from None
            yield

    def _open_lock(self) -> BinaryIO:
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise UsageError(f"{self.folder}: is a file; choose another folder with --out")
            self.folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.folder.iterdir()}
            if names.difference(BEFORE_PLAN) and not names.intersection(MARKERS):
                raise UsageError(f"{self.folder}: exists and is not a run folder; choose another with --out")
            check_entries(self.folder)
            return open_lock(self.folder)
        except OSError as error:
            if error.errno in DISK_IS_FULL:
                raise
            raise UsageError(
                f"{self.folder}: cannot be used as a folder of results ({error.strerror}: {error.filename}); choose "
                "another with --out"
            ) from None


def _told_differences(path: Path, config: StudyConfig) -> str:
    """The keys in which the study at `path` and `config` differ, of those that can change a result."""
    try:
        before, now = _settings_of(read_study(path)), _settings_of(config)
    except UsageError:
        return f"see {path}"
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if not differing:
        return "its settings are the same, so the files of the model or the data differ, or the version of statewise"
    told = [f"{key} is {_told(before, key)} there, {_told(now, key)} here" for key in differing[:NUM_TOLD]]
    more = len(differing) - NUM_TOLD
    return "; ".join([*told, *([f"and {more} more"] if more > 0 else [])])


def _told(settings: Mapping[str, Any], key: str) -> str:
    return "not set" if settings.get(key) is None else json.dumps(settings[key], ensure_ascii=False)


def _settings_of(config: StudyConfig) -> dict[str, Any]:
    stored = config.model_dump(mode="json", include={"shared", "arms"})
    arms = {name: {key: arm[key] for key in arm if key not in WITHOUT_EFFECT} for name, arm in stored["arms"].items()}
    return flatten({"shared": stored["shared"], "arms": arms})
