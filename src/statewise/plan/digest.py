"""What identifies a model in a fingerprint: the SHA-256 of every file of its folder that can change a number.

Gigabytes of weights are read once per process at most, and not at all where the hub's cache already names them by their
SHA-256 or where a plan is only to be shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from statewise.storage import records
from statewise.storage.integrity import digest_known

SUFFIXES = (".json", ".jsonl", ".safetensors", ".yaml", ".txt", ".model", ".jinja")
DATA_SUFFIXES = (".jsonl", ".json", ".parquet")
LARGE_BYTES = 2**26  # 64 MiB take about a tenth of a second

FACTS = "statewise.json"
# Configuration, tokenizer and weights of a model folder; everything else in it is no part of the model.
MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
OTHER_FILES = ("pretrain.json", FACTS)


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


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that make the model, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in MODEL_SUFFIXES and path.name not in OTHER_FILES
    )


def digest_model_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the model, by name."""
    names = {path.name for path in model_files(folder)}
    return {name: digest for name, digest in digest_model(folder).items() if name in names}


def digest_weights(folder: Path) -> str:
    """SHA-256 of the weights: of their file, or of the canonical JSON of name → digest where there are several."""
    return join_weights(digest_model_files(folder))


def join_weights(files: Mapping[str, str]) -> str:
    """`digest_weights` where the digests of the files are known; files that are no weights are left out."""
    digests = {name: digest for name, digest in files.items() if Path(name).suffix == ".safetensors"}
    return next(iter(digests.values())) if len(digests) == 1 else records.digest_json(digests)


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
