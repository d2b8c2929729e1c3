"""Checkpoints of an arm: weights, moments, and whatever else the next update depends on, in open formats.

That is: the hash of the states so far, the account, the learner's past weights, what localities remember, and replay
buffers. A checkpoint is written to a temporary folder, synced and renamed; its files carry SHA-256, so that half a
checkpoint or a flipped bit is noticed and the one before it is used instead. There is no generator state: see
`seeding`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file

from statewise.batch import state_rows, states_of_rows
from statewise.errors import DamagedError
from statewise.loop.recorder import damaged_records
from statewise.loop.tensors import write_tensors
from statewise.states.buffer import ReplayBuffer
from statewise.storage import integrity, records
from statewise.storage.records import STATE_SCHEMA
from statewise.storage.state_records import FIRST_HASH

KEPT_CHECKPOINTS = 2
BUFFER_SCHEMA = STATE_SCHEMA.append(pa.field("buffer", pa.string())).append(pa.field("group", pa.int32()))


@dataclass(frozen=True)
class Progress:
    """Where a checkpoint stands: updates done, hash of the states visited, what was used (`Account.totals`), the
    numbers of localities by kind, hash of the rewards, and the digests of the records so far (`Recorder.table`).
    """

    step: int
    state_hash: str
    account: dict[str, Any] = field(default_factory=dict)
    localities: dict[str, dict[str, float]] = field(default_factory=dict)
    reward_hash: str = FIRST_HASH
    records: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """What an arm keeps beside its weights: replay buffers, tensors by kind (`history`, one a locality) and name."""

    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    buffers: dict[str, ReplayBuffer] = field(default_factory=dict)


def save(
    folder: Path,
    progress: Progress,
    trainable: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: Memory | None = None,
) -> None:
    """Write checkpoint `progress.step` and drop all but the newest two.

    Raises:
        OSError: the disk is full or fails; the checkpoints before this one stand.
    """
    with records.replacing_folder(folder / f"{progress.step:06d}") as temporary:
        tensors = {
            "weights": {name: p.detach() for name, p in trainable.items()},
            "optimizer": _moments(trainable, optimizer),
            **(memory.tensors if memory else {}),
        }
        digests = {
            f"{kind}.safetensors": write_tensors(temporary / f"{kind}.safetensors", named)
            for kind, named in tensors.items()
            if named
        }
        if memory and memory.buffers:
            rows = [*_buffer_rows(memory.buffers)]
            digests["buffers.parquet"] = records.write_table(temporary / "buffers.parquet", rows, BUFFER_SCHEMA)
        integrity.write_sealed(temporary / "progress.json", {**asdict(progress), "files": digests})
    for old in _numbered(folder)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def _buffer_rows(buffers: dict[str, ReplayBuffer]) -> Iterable[dict[str, Any]]:
    for name, buffer in buffers.items():
        for group, (update, states) in enumerate(buffer.groups):
            yield from ({**row, "buffer": name, "group": group} for row in state_rows(update, states))


def _read_buffers(path: Path) -> dict[str, ReplayBuffer]:
    """The replay buffers of a checkpoint."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in records.read_table(path):
        groups.setdefault((row["buffer"], row["group"]), []).append(row)
    buffers: dict[str, ReplayBuffer] = {}
    for (name, _), rows in groups.items():
        buffers.setdefault(name, ReplayBuffer()).groups.append((rows[0]["step"], states_of_rows(rows)))
    return buffers


def load_last(
    folder: Path, trainable: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[Progress | None, Memory, list[str]]:
    """Restore weights and moments of the newest sound checkpoint; the records that it stands on lie beside `folder`.

    Returns:
        Its progress, or None where there is none; what the arm kept beside its weights; and the names of checkpoints
        that were passed over, since they or their records are damaged.
    """
    damaged = []
    for candidate in reversed(_numbered(folder)):
        progress = _read_sound(candidate)
        if progress is None:
            damaged.append(candidate.name)
            continue
        tensors = {path.stem: load_file(path) for path in sorted(candidate.glob("*.safetensors"))}
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(tensors["weights"][name])
        _restore_moments(trainable, optimizer, tensors["optimizer"])
        others = {kind: named for kind, named in tensors.items() if kind not in ("weights", "optimizer")}
        buffers = candidate / "buffers.parquet"
        return progress, Memory(others, _read_buffers(buffers) if buffers.exists() else {}), damaged
    return None, Memory(), damaged


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _read_sound(candidate: Path) -> Progress | None:
    try:
        content = integrity.read_sealed(candidate / "progress.json")
        files = content.pop("files")
        progress = Progress(**content)
    except (DamagedError, KeyError, TypeError):
        return None
    is_sound = not integrity.faults_of(candidate, files) and not damaged_records(
        candidate.parent.parent, progress.step, progress.records
    )
    return progress if is_sound else None


def _moments(trainable: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}/{name}": value.contiguous()
        for name, parameter in trainable.items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_moments(
    trainable: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor]
) -> None:
    for key_and_name, value in moments.items():
        key, _, name = key_and_name.partition("/")
        parameter = trainable[name]
        # AdamW keeps its step counts on the CPU, the moments where the weights are.
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
