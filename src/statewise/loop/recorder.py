"""Writes what an arm did: a line of metrics per update, and every training state, with a running hash.

`states/` holds what the source yielded, which is what another arm can train on again; `supervised/` what a signal made
of it, where that has other tokens, mask or labels (a continuation, an expert's actions). Both go to one Parquet part
per checkpoint interval, so that a run that was interrupted and resumed has the same files as one that was not.
Wall-clock time goes to a file of its own, since it never repeats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from statewise import records
from statewise.errors import naming
from statewise.state_records import FIRST_HASH, chain_hash, state_rows
from statewise.types import States

STATES, SUPERVISED = "states", "supervised"


class Recorder:
    """The records of one arm and seed, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_hash = FIRST_HASH
        self._pending: dict[str, list[dict[str, Any]]] = {STATES: [], SUPERVISED: []}
        folder.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int, state_hash: str) -> None:
        """Forget everything after the first `step` updates: what a kill left behind a checkpoint is done again."""
        self.state_hash = state_hash
        self._pending = {STATES: [], SUPERVISED: []}
        for path in self._line_files():
            lines = path.read_bytes().splitlines(keepends=True)[:step] if path.exists() else []
            records.write_bytes(path, b"".join(lines))
        for kind in self._pending:
            for part in (self.folder / kind).glob("*.parquet"):
                if int(part.stem) > step:
                    part.unlink()

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

    def step(self, step: int, metrics: dict[str, float | int | str], seconds: dict[str, float]) -> None:
        """Record what an update did; `metrics` must be finite, since NaN is not JSON and would hide a divergence."""
        self._append("metrics.jsonl", {"step": step, **metrics, "states/hash": self.state_hash})
        self._append("timing.jsonl", {"step": step, **{key: round(value, 4) for key, value in seconds.items()}})

    def flush(self, step: int) -> None:
        """Write the states of the updates since the last flush as the part that ends with `step` updates.

        Metrics are made durable too: a checkpoint may outlive a power cut only if what it stands beside does.
        """
        for kind, rows in self._pending.items():
            if rows:
                records.write_table(self.folder / kind / f"{step:06d}.parquet", rows, records.STATE_SCHEMA)
                self._pending[kind] = []
        for path in self._line_files():
            if path.exists():
                records.sync_folder(path)  # fsync takes any descriptor, a file's as well

    def _append(self, name: str, row: dict[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False) + "\n"
        path = self.folder / name
        with naming(path), path.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def _line_files(self) -> tuple[Path, Path]:
        return self.folder / "metrics.jsonl", self.folder / "timing.jsonl"


def _is_graded(states: States, visited: States) -> bool:
    return states.has_states_of(visited) and not bool(np.isnan(states.rewards).all())
