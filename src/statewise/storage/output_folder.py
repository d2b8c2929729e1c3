"""A folder to write into, which may have come from somebody else: nothing is written through a link in it.

Whoever packed it chose its names and links, so that a file that is opened for writing may lie anywhere. What is locked
is looked through first, as a whole; it is held while it is written.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from statewise.errors import UsageError

LOCK = ".lock"


def check_entries(folder: Path) -> None:
    """Refuse a folder that holds anything but files and folders; it may be a link itself, as the user named it.

    Raises:
        UsageError: names the first link, or what else is neither file nor folder.
    """
    for place, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UsageError(
                    f"{path}: is a link to {os.readlink(path)}; nothing is written into a folder with links in it, "
                    "since it would land elsewhere; remove it, or choose another folder"
                )
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UsageError(f"{path}: is neither a file nor a folder; remove it, or choose another folder")


def check_empty(folder: Path) -> None:
    """Refuse a place for a new folder that holds something, with a `UsageError`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not an empty folder; choose another")


def open_lock(folder: Path) -> BinaryIO:
    """The file to lock in `folder`: made where there is none, else left as it is, and never through a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(folder / LOCK, flags, 0o666), "r+b")


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that it holds, or a link to one, alone."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
