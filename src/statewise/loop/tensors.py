"""Tensors in a file that is there in whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from statewise.storage import records


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file durably, by a temporary one; returns its SHA-256.

    Raises:
        OSError: the disk is full or fails.
    """
    with records.replacing(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
    return records.digest_file(path)
