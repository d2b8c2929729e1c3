"""Tensors in a file that is there in whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from statewise.storage import records


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file durably, by a temporary one; returns its SHA-256.

    Raises:
        OSError: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        records.sync_folder(temporary)  # fsync takes any descriptor, a file's as well
        temporary.replace(path)
    except SafetensorError as error:  # also what safetensors makes of a full disk
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return records.digest_file(path)
