"""What identifies a model in a fingerprint: the SHA-256 of every file of its folder that can change a number.

Gigabytes of weights are read once per process at most, and not at all where the hub's cache already names them by their
SHA-256 or where a plan is only to be shown.
"""

from __future__ import annotations

import re
from pathlib import Path

from statewise.integrity import digest_known

SUFFIXES = (".json", ".jsonl", ".safetensors", ".yaml", ".txt", ".model", ".jinja")
DATA_SUFFIXES = (".jsonl", ".json", ".parquet")
LARGE_BYTES = 2**26  # 64 MiB take about a tenth of a second


def digest_model(folder: Path, is_dry: bool = False) -> dict[str, str]:
    """SHA-256 of every file of `folder` that can change a number, by its path there.

    Args:
        folder: of the model.
        is_dry: give the size of a large file instead of its digest.
    """
    tasks = folder / "tasks"  # whose Python may be run; that of the model never is
    files = sorted(
        path
        for path in folder.rglob("*")
        if (path.suffix in SUFFIXES or (path.suffix == ".py" and path.is_relative_to(tasks)))
        and not path.name.startswith("pretrain")
    )
    return {str(path.relative_to(folder)): _digest(path, is_dry) for path in files}


def digest_data(folder: Path) -> dict[str, str]:
    """SHA-256 of every local copy of a data set in `folder`, by its path there (`tasks.data.copied_splits`)."""
    files = sorted(path for depth in ("*/*", "*/*/*") for path in folder.glob(depth) if path.suffix in DATA_SUFFIXES)
    return {str(path.relative_to(folder)): _digest(path, is_dry=False) for path in files}


def _digest(path: Path, is_dry: bool) -> str:
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name  # the hub's cache stores a large file under its SHA-256, and checked it on arrival
    if is_dry and (num_bytes := target.stat().st_size) > LARGE_BYTES:
        return f"{num_bytes} bytes"
    return digest_known(target)
