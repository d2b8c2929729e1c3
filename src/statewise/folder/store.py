"""The run folder of a study: where things lie, and which jobs are done.

`done.json` (evaluate) and `train.json` (train) are written last. They carry their job's fingerprint, the SHA-256 of
every file that the job left, and what it read of other jobs, so a job is done if and only if that file is there with
the fingerprint of the plan and all of this still holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any, BinaryIO

from statewise.config.read import read_resolved, to_toml
from statewise.config.study import StudyConfig
from statewise.errors import DamagedError, UsageError
from statewise.plan.contract import flatten
from statewise.plan.dag import Job, Plan
from statewise.storage import integrity, records
from statewise.storage.integrity import is_there
from statewise.storage.output_folder import LOCK, check_entries, open_lock

PLAN, STUDY, DAMAGED = "plan.json", "study.toml", "damaged"
TRACKED = "trackers"  # what trackers keep in a run folder; no number is read from it
RESULT_NAMES = {"train": "train.json", "evaluate": "done.json"}
# What a job leaves beside its result.
FOLDERS = {"train": ("states", "supervised", "locality", "model", "adapter"), "evaluate": ("evals",)}
FILES = {
    "train": ("started.json", "config.toml", "metrics.jsonl", "timing.jsonl"),
    "evaluate": ("rollouts.parquet", "rollouts_again.parquet", "drift.json"),
}
LEFT = {action: (*FILES[action], *FOLDERS[action]) for action in RESULT_NAMES}
# Without effect on what others compute from a job.
INCIDENTAL = ("started.json", "timing.jsonl")
ADVICE = "run the same command again: it sets what is damaged aside and does it anew"
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

    def result_path(self, job: Job) -> Path:
        return self.arm_folder(job.arm, job.seed) / RESULT_NAMES[job.action]

    def result(self, job: Job) -> dict[str, Any] | None:
        """What `job` left when it was done, or None.

        None: it is not done, was done under another fingerprint, or from what other jobs no longer hold; or a file of
        it is damaged.
        """
        try:
            return self.checked_result(job)
        except DamagedError:
            return None

    def checked_result(self, job: Job) -> dict[str, Any] | None:
        """As `result`, but damage is an error.

        Raises:
            DamagedError: names the file, and says what to do.
        """
        path = self.result_path(job)
        if not is_there(path):
            return None
        stored = integrity.read_sealed(path, ADVICE)
        if stored.get("fingerprint") != job.fingerprint or self._is_outdated(stored):
            return None
        integrity.refuse(path.parent, faults_of_job(path.parent, job.action, stored), ADVICE)
        return stored

    def finish(self, job: Job, result: dict[str, Any]) -> dict[str, Any]:
        """Mark `job` as done, with the digests of all that it left; returns what was written."""
        path = self.result_path(job)
        files = integrity.table_of(path.parent, LEFT[job.action])
        outputs = {need: self._output(need) for need in job.needs}
        inputs = {need: digest for need, digest in outputs.items() if digest}
        stored = {"fingerprint": job.fingerprint, **result, "inputs": inputs, "files": files}
        integrity.write_sealed(path, stored)
        return stored

    def _output(self, id_: str) -> str:
        """What others may compute from what a job left, as one digest; "" if it is not done."""
        action, arm, seed = id_.split(":")
        try:
            files = integrity.read_sealed(self.arm_folder(arm, int(seed)) / RESULT_NAMES[action])["files"]
        except DamagedError:
            return ""
        return records.digest_json({name: digest for name, digest in files.items() if name not in INCIDENTAL})

    def _is_outdated(self, stored: Mapping[str, Any]) -> bool:
        """Whether a job that it read was done anew since, with other results."""
        return any(self._output(id_) not in ("", digest) for id_, digest in stored["inputs"].items())

    def open_for(self, plan: Plan) -> list[str]:
        """Create the folder for `plan`, or check that it holds this study.

        Returns:
            What was damaged and set aside; the plan is written anew where results tell that they are of this one.

        Raises:
            UsageError: the folder holds another study, a damaged plan, or something else.
        """
        path, told = self.folder / PLAN, list[str]()
        if is_there(path):
            told += self._check_plan(path, plan)
        elif self.folder.exists() and any(path.name not in BEFORE_PLAN for path in self.folder.iterdir()):
            if not self._holds_results_of(plan):
                raise UsageError(f"{self.folder}: exists and is not a run folder; choose another with --out")
            told.append(f"{path} is missing; it is written anew")
        study = to_toml(plan.config).encode()
        jobs = [{"id": job.id, "needs": list(job.needs), "fingerprint": job.fingerprint} for job in plan.jobs]
        value = {
            "fingerprint": plan.fingerprint,
            "model": str(plan.model),
            "model_files": plan.model_files,
            "jobs": jobs,
        }
        integrity.write_sealed(path, {**value, "files": {STUDY: hashlib.sha256(study).hexdigest()}})
        records.write_bytes(self.folder / STUDY, study)
        return told

    def _check_plan(self, path: Path, plan: Plan) -> list[str]:
        """Refuse a plan of another study, and set aside one of this study that is damaged; returns what was."""
        try:
            stored, is_sealed = integrity.read_either(path)
        except DamagedError as error:
            stored, is_sealed = {}, False
            if not self._holds_results_of(plan):
                raise UsageError(f"{error}; choose another folder with --out") from None
        if stored and stored.get("fingerprint") != plan.fingerprint:
            raise UsageError(
                f"{self.folder}: holds a run of another study or with other settings "
                f"({_told_differences(self.folder / STUDY, plan.config)}); "
                "choose another folder with --out, or repeat the settings it was made with"
            )
        self._check_seeds(plan.config.study.seeds)
        faults = {} if is_sealed else {PLAN: "is not what was recorded"}
        faults |= integrity.faults_of(self.folder, stored.get("files", {}))
        wrong = [(self.folder / name, what) for name, what in faults.items()]
        return [f"{file} {what}; {self.set_aside(file)}, it is written anew" for file, what in wrong]

    def _holds_results_of(self, plan: Plan) -> bool:
        """Whether something was recorded for `plan`, and nothing in the place of one of its jobs for another one."""
        found = []
        for job in plan.jobs:
            for name in (RESULT_NAMES[job.action], *(("started.json",) if job.action == "train" else ())):
                with suppress(DamagedError):
                    stored = integrity.read_sealed(self.arm_folder(job.arm, job.seed) / name)
                    found.append(stored.get("fingerprint") == job.fingerprint)
        return bool(found) and all(found)

    def set_aside(self, path: Path) -> str:
        """Move what lies at `path` to the same place below `damaged/`, beside what lies there; returns what was done.

        Raises:
            UsageError: `damaged` is no folder.
        """
        target = self.folder / DAMAGED / path.relative_to(self.folder)
        if not is_there(path):
            return "nothing is left of it"
        number = 1
        while is_there(target):
            number += 1
            target = target.with_name(f"{path.name}.{number}")
        try:
            records.make_folder(target.parent)
        except FileExistsError:
            raise UsageError(f"{self.folder / DAMAGED}: is no folder; move it away") from None
        path.rename(target)
        records.sync_folder(target.parent)
        records.sync_folder(path.parent)
        return f"moved to {target.relative_to(self.folder)}"

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


def faults_of_job(folder: Path, action: str, stored: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with the files that a job left in the folder of its arm: changed, gone, or not recorded."""
    files: dict[str, str] = stored["files"]
    return integrity.faults_of(folder, files) | integrity.strays_of(folder, files, LEFT[action])


def _told_differences(path: Path, config: StudyConfig) -> str:
    """The keys in which the study at `path` and `config` differ, of those that can change a result."""
    try:
        before, now = _settings_of(read_resolved(path)), _settings_of(config)
    except UsageError:
        return f"see {path}"
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    # Of another kind, all other settings are others too.
    changed = [key.removesuffix("kind") for key in differing if key.endswith(".kind")]
    differing = [key for key in differing if key.endswith(".kind") or not key.startswith(tuple(changed))]
    if not differing:
        return "its settings are the same, so the files of the model or the data differ, or the version of statewise"
    told = [f"{key} is {_told(before, key)} there, {_told(now, key)} here" for key in differing[:NUM_TOLD]]
    more = len(differing) - NUM_TOLD
    return "; ".join([*told, *([f"and {more} more"] if more > 0 else [])])


def _told(settings: Mapping[str, Any], key: str) -> str:
    return "not set" if settings.get(key) is None else json.dumps(settings[key], ensure_ascii=False)


def _settings_of(config: StudyConfig) -> dict[str, Any]:
    stored = config.model_dump(mode="json", include={"shared", "arms", "models"})
    arms = {name: {key: arm[key] for key in arm if key not in WITHOUT_EFFECT} for name, arm in stored["arms"].items()}
    data = config.data.identity if config.data else {}
    own = {"models": stored["models"], "tasks": config.own_tasks, "data": data}
    return flatten({"shared": stored["shared"], **own, "arms": arms})
