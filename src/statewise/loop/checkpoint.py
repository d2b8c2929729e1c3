"""Checkpoints of an arm: weights, optimiser moments and the hash of the states so far, in safetensors and JSON.

A checkpoint is written to a temporary folder, synced and renamed; its files carry SHA-256, so that half a checkpoint or
a flipped bit is noticed and the one before it is used instead. There is no generator state: see `seeding`.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from statewise import records

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Progress:
    """Where a checkpoint stands: updates done, hash of the states trained on, tokens written so far by writer."""

    step: int
    state_hash: str
    num_generated: dict[str, int]


def save(
    folder: Path, progress: Progress, trainable: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write checkpoint `progress.step` and drop all but the newest two.

    Raises:
        OSError: the disk is full or fails; the checkpoints before this one stand.
    """
    final = folder / f"{progress.step:06d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights = {name: p.detach().contiguous() for name, p in trainable.items()}
        digests = {
            "weights.safetensors": _write_tensors(temporary / "weights.safetensors", weights),
            "optimizer.safetensors": _write_tensors(
                temporary / "optimizer.safetensors", _moments(trainable, optimizer)
            ),
        }
        content = {**asdict(progress), "files": digests}
        records.write_json(temporary / "progress.json", {**content, "sha256": records.digest_json(content)})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    records.sync_folder(folder)
    for old in _numbered(folder)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Write a safetensors file durably; returns its SHA-256."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # also what safetensors makes of a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    records.sync_folder(path)  # fsync takes any descriptor, a file's as well
    return records.digest_file(path)


def load_last(
    folder: Path, trainable: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[Progress | None, list[str]]:
    """Restore the newest sound checkpoint.

    Returns:
        Its progress, or None where there is none, and the names of damaged checkpoints that were passed over.
    """
    damaged = []
    for candidate in reversed(_numbered(folder)):
        progress = _read_sound(candidate)
        if progress is None:
            damaged.append(candidate.name)
            continue
        weights = load_file(candidate / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(weights[name])
        _restore_moments(trainable, optimizer, load_file(candidate / "optimizer.safetensors"))
        return progress, damaged
    return None, damaged


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _read_sound(candidate: Path) -> Progress | None:
    try:
        content = records.read_json(candidate / "progress.json")
        is_sound = content.pop("sha256") == records.digest_json(content) and all(
            records.digest_file(candidate / name) == digest for name, digest in content.pop("files").items()
        )
    except (OSError, ValueError, KeyError):
        return None
    return Progress(**content) if is_sound else None


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
