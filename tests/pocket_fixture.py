"""What the tests of a pocket world pretrain, and whether a model folder holds what it says."""

from __future__ import annotations

import dataclasses
import hashlib

from statewise.pocket.pretrain import SIZES

CONFIG = dataclasses.replace(SIZES["smoke"], world_seed=7, num_threads=1)


def digests(folder):
    return dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())


def check_digests(folder):
    stored = digests(folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert stored.keys() == files - {"SHA256SUMS"}
    for name, digest in stored.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
