"""What the files of an arm and seed say to a tracker: a point an update, then one of its evaluation.

A point is told when nothing takes it back. Until an arm is trained that is up to its last checkpoint, from which an
interrupted training goes on; what lies behind it is done again. Lines are compared with their recorded digest first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from statewise.errors import DamagedError
from statewise.folder.item_scores import read_scores
from statewise.folder.store import Store
from statewise.plan.dag import Job
from statewise.storage import integrity, records
from statewise.trackers.follow import Record
from statewise.trackers.tracker import TrackedRun

METRICS = "metrics.jsonl"


class ArmRecord(Record):
    """The record of a training and its evaluation; of `base`, which has no `train`, of its evaluation."""

    def __init__(self, run: TrackedRun, train: Job | None, evaluate: Job) -> None:
        super().__init__(run)
        self._train, self._evaluate, self._is_trained = train, evaluate, False
        self._store = Store(run.folder)
        self._folder = self._store.arm_folder(evaluate.arm, evaluate.seed)

    def look(self) -> None:
        """Read what was written since."""
        if self.is_done:
            return
        if self._train is not None and not self._is_trained:  # its lines are hashed until they are all there, not after
            self._is_trained = self._read_metrics(self._train)
            if not self._is_trained:
                return
        result = self._store.result(self._evaluate)
        if result is not None:
            if result["status"] == "evaluated":
                self.points.append(dict(flat(self._scores(result))))
            self.is_done = True

    def _read_metrics(self, job: Job) -> bool:
        """Take the certain lines; returns whether they are all, since the arm is trained, or has diverged."""
        count, digest, is_trained = self._certain(job)
        path = self._folder / METRICS
        if digest is None or not path.is_file():
            return is_trained
        lines = path.read_bytes().splitlines(keepends=True)[:count]
        if hashlib.sha256(b"".join(lines)).hexdigest() != digest:
            return False  # damaged, which is found and done again when it is read
        self.points += [dict(flat(json.loads(line))) for line in lines[len(self.points) :]]
        return is_trained

    def _certain(self, job: Job) -> tuple[int | None, str | None, bool]:
        """How many lines are certain (None: all), their digest (None: there is nothing to read), whether it is all."""
        trained = _sealed(self._folder / "train.json")
        if trained.get("fingerprint") == job.fingerprint:
            return None, trained["files"].get(METRICS), True
        checkpoints = sorted((self._folder / "checkpoints").glob("[0-9]*"))
        if not checkpoints or _sealed(self._folder / "started.json").get("fingerprint") != job.fingerprint:
            return 0, None, False
        progress = _sealed(checkpoints[-1] / "progress.json")
        if progress.get("step", 0) <= len(self.points):
            return 0, None, False
        return progress["step"], progress["records"].get(METRICS), False

    def _scores(self, result: dict[str, Any]) -> dict[str, Any]:
        """The mean of every column; as in the report, an answer that could not be scored counts as not correct."""
        target = str(self.run.config["shared"]["target"])
        scores = read_scores(self._folder, result["files"], parts_of=target)
        means = {column.key: float(np.nan_to_num(items.values).mean()) for column, items in scores.items()}
        drift = self._folder / "drift.json"
        return {"evals": means, **({"drift": records.read_json(drift)} if "drift.json" in result["files"] else {})}


def read_summary_record(run: TrackedRun) -> Record:
    """What `summary.json` says of every arm: scores, differences from base, forgetting, drift, with their intervals."""
    summary = integrity.read_sealed(run.folder / "summary.json")
    told = ("scores", "against_base", "forgetting", "drift")
    arms = {one["arm"]: {key: one[key] for key in told} for one in summary["runs"]}
    digest = records.digest_json([run.id, arms])[:16]  # with more seeds it is another summary
    return Record(replace(run, id=digest), [dict(flat(arms))], is_done=True)


def flat(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers in nested tables, under their keys with "/" between; "task:decoding:metric,filter" is nested
    too. Texts and lists are left out, and `step`, which is the axis.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            part = str(name).replace(":", "/").replace(",", "/")
            yield from flat(inner, f"{key}/{part}" if key else part)
    elif isinstance(value, int | float) and math.isfinite(value) and key != "step":
        yield key, float(value)


def _sealed(path: Path) -> dict[str, Any]:
    try:
        return integrity.read_sealed(path)
    except DamagedError:
        return {}
