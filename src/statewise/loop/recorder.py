"""Writes what an arm did: a line of metrics per update, and every training state, with a running hash.

States go to one Parquet part per checkpoint interval, so that a run that was interrupted and resumed has the same files
as one that was not. Wall-clock time goes to a file of its own, since it never repeats.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from statewise import records
from statewise.types import States


class Recorder:
    """The records of one arm and seed, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_hash = hashlib.sha256(b"statewise/states/1").hexdigest()
        self._pending: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int, state_hash: str) -> None:
        """Forget everything after the first `step` updates: what a kill left behind a checkpoint is done again."""
        self.state_hash = state_hash
        self._pending.clear()
        for path in self._line_files():
            lines = path.read_bytes().splitlines(keepends=True)[:step] if path.exists() else []
            records.write_bytes(path, b"".join(lines))
        for part in (self.folder / "states").glob("*.parquet"):
            if int(part.stem) > step:
                part.unlink()

    def step(self, step: int, states: States, metrics: dict[str, float | int | str], seconds: dict[str, float]) -> None:
        """Record one update; `metrics` must be finite, since NaN is not JSON and would hide a divergence."""
        rows = state_rows(step, states)
        self.state_hash = chain_hash(self.state_hash, states)
        self._pending.extend(rows)
        self._append("metrics.jsonl", {"step": step, **metrics, "states/hash": self.state_hash})
        self._append("timing.jsonl", {"step": step, **{key: round(value, 4) for key, value in seconds.items()}})

    def flush(self, step: int) -> None:
        """Write the states of the updates since the last flush as the part that ends with `step` updates.

        Metrics are made durable too: a checkpoint may outlive a power cut only if what it stands beside does.
        """
        if self._pending:
            records.write_table(self.folder / "states" / f"{step:06d}.parquet", self._pending, records.STATE_SCHEMA)
            self._pending = []
        for path in self._line_files():
            if path.exists():
                records.sync_folder(path)  # fsync takes any descriptor, a file's as well

    def _append(self, name: str, row: dict[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False) + "\n"
        with (self.folder / name).open("a", encoding="utf-8") as stream:
            stream.write(line)

    def _line_files(self) -> tuple[Path, Path]:
        return self.folder / "metrics.jsonl", self.folder / "timing.jsonl"


def state_rows(step: int, states: States) -> list[dict[str, Any]]:
    """The rows of `records.STATE_SCHEMA` for one update, without padding."""
    rows = []
    for row, length in enumerate(states.lengths.tolist()):
        rows.append(
            {
                "step": step,
                "row": row,
                "source": states.sources[row],
                "writer": states.writers[row],
                "prompt_index": int(states.prompt_indices[row]),
                "prompt_length": int(states.prompt_lengths[row]),
                "token_ids": states.token_ids[row, :length],
                "action_mask": states.action_mask[row, :length],
                "behavior_logprobs": states.behavior_logprobs[row, :length],
                "temperature": states.temperature,
                "is_finished": bool(states.is_finished[row]),
                "reward": _none_if_nan(states.rewards[row]),
                "advantage": _none_if_nan(states.advantages[row]),
            }
        )
    return rows


def _none_if_nan(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


def chain_hash(previous: str, states: States) -> str:
    """SHA-256 over `previous` and the tokens and masks of every row: equal hashes mean identical training states."""
    digest = hashlib.sha256(previous.encode())
    for row, length in enumerate(states.lengths.tolist()):
        digest.update(np.int64(length).tobytes())
        digest.update(np.ascontiguousarray(states.token_ids[row, :length]).tobytes())
        digest.update(np.ascontiguousarray(states.action_mask[row, :length]).tobytes())
    return digest.hexdigest()
