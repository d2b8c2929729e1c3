"""A process that is gone between two changes of the disk, without the process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from statewise.loop import tensors


class KilledError(BaseException):
    """Stands for `kill -9`: nothing in the code may catch it."""


def kill_at(patch, count):
    """Every operation that changes the disk counts; number `count` is not done, and the process is gone."""
    left = [count]

    def counted(operation):
        def run(*args, **kwargs):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return operation(*args, **kwargs)

        return run

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (shutil, "rmtree"),
                        (tensors, "save_file")):  # fmt: skip
        patch.setattr(owner, name, counted(getattr(owner, name)))
