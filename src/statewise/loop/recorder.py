"""Writes what an arm did: a line of metrics per update, and every training state, with a running hash.

`states/` holds what the source yielded, which is what another arm can train on again; `supervised/` what a signal made
of it, where that has other tokens, mask or labels (a continuation, an expert's actions). Both go to one Parquet part
per checkpoint interval, so that a run that was interrupted and resumed has the same files as one that was not.
Wall-clock time goes to a file of its own, since it never repeats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from statewise.batch import States, state_rows
from statewise.errors import naming
from statewise.storage import records
from statewise.storage.integrity import digest_known, faults_of
from statewise.storage.state_records import FIRST_HASH, chain_hash, chain_rewards

STATES, SUPERVISED = "states", "supervised"
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"


class Recorder:
    """The records of one arm and seed, in `folder`, with running hashes of the states and of their rewards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_hash = self.reward_hash = FIRST_HASH
        self._pending: dict[str, list[dict[str, Any]]] = {STATES: [], SUPERVISED: []}
        self._parts: dict[str, str] = {}
        self._metrics = hashlib.sha256()
        records.make_folder(folder)

    @property
    def table(self) -> dict[str, str]:
        """SHA-256 of all that was recorded, by its path in the folder; without timing, which never repeats."""
        return {**self._parts, METRICS: self._metrics.hexdigest()}

    def rewind(self, step: int, state_hash: str, reward_hash: str) -> None:
        """Forget everything after the first `step` updates: what a kill left behind a checkpoint is done again."""
        self.state_hash, self.reward_hash = state_hash, reward_hash
        self._pending, self._parts = {STATES: [], SUPERVISED: []}, {}
        for name in (METRICS, TIMING):
            records.write_bytes(self.folder / name, _first_lines(self.folder / name, step))
        self._metrics = hashlib.sha256(_first_lines(self.folder / METRICS, step))
        for kind in self._pending:
            for part in (self.folder / kind).glob("[0-9]*.parquet"):
                if int(part.stem) > step:
                    part.unlink()
                else:
                    self._parts[f"{kind}/{part.name}"] = digest_known(part)

    def states(self, step: int, visited: States, supervised: Sequence[States]) -> None:
        """Record the states of an update: those that the source yielded, and what signals made of them.

        Rewards and advantages are those of the first signal that has any.
        """
        kept = next((one for one in supervised if _is_graded(one, visited)), visited)
        self._pending[STATES].extend(state_rows(step, kept))
        changed = [one for one in supervised if not one.has_states_of(visited) or one.label_ids is not None]
        for states in changed:
            self._pending[SUPERVISED].extend(state_rows(step, states))
        self.state_hash = chain_hash(self.state_hash, visited)
        self.reward_hash = chain_rewards(self.reward_hash, kept)

    def step(self, step: int, metrics: dict[str, float | int | str], seconds: dict[str, float]) -> None:
        """Record what an update did; `metrics` must be finite, since NaN is not JSON and would hide a divergence."""
        line = self._append(METRICS, {"step": step, **metrics, "states/hash": self.state_hash})
        self._metrics.update(line.encode())
        self._append(TIMING, {"step": step, **{key: round(value, 4) for key, value in seconds.items()}})

    def flush(self, step: int) -> None:
        """Write the states of the updates since the last flush as the part that ends with `step` updates.

        Metrics are made durable too: a checkpoint may outlive a power cut only if what it stands beside does.
        """
        for kind, rows in self._pending.items():
            if rows:
                name = f"{kind}/{step:06d}.parquet"
                self._parts[name] = records.write_table(self.folder / name, rows, records.STATE_SCHEMA)
                self._pending[kind] = []
        for name in (METRICS, TIMING):
            if (self.folder / name).exists():
                records.sync_folder(self.folder / name)  # fsync takes any descriptor, a file's as well

    def _append(self, name: str, row: dict[str, Any]) -> str:
        line = json.dumps(row, allow_nan=False) + "\n"
        path = self.folder / name
        with naming(path), path.open("a", encoding="utf-8") as stream:
            stream.write(line)
        return line


def damaged_records(folder: Path, step: int, table: Mapping[str, str]) -> list[str]:
    """Which records of `table` are not what they were after `step` updates; metrics that came later do not count."""
    faults = [*faults_of(folder, {name: digest for name, digest in table.items() if name != METRICS})]
    metrics = hashlib.sha256(_first_lines(folder / METRICS, step)).hexdigest()
    return faults + [METRICS] * (METRICS in table and table[METRICS] != metrics)


def _first_lines(path: Path, count: int) -> bytes:
    return b"".join(path.read_bytes().splitlines(keepends=True)[:count]) if path.is_file() else b""


def _is_graded(states: States, visited: States) -> bool:
    return states.has_states_of(visited) and not bool(np.isnan(states.rewards).all())
