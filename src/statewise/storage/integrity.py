"""Whether files still are what was recorded of them: SHA-256 tables, and JSON objects that carry their own.

A table gives the digest of every file below a folder that a piece of work left. Whoever reads one of the files checks
it first; a file is read once per process, until its size or its time of change differs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from statewise.errors import DamagedError
from statewise.storage import records

SEAL = "sha256"
NOT_VERIFIED = "recorded by an older version, without digests; nothing tells whether its files were changed"
# A file system's clock ticks every few milliseconds, so that a file changed this recently may change again unseen.
SETTLED_NS = 2 * 10**9


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with the digest of its canonical form, by which `read_sealed` knows it again."""
    records.write_json(path, {**value, SEAL: records.digest_json(value)})


def read_sealed(path: Path, advice: str = "") -> dict[str, Any]:
    """The object that `write_sealed` wrote, without its digest; `advice` says what to do where that is not there.

    Raises:
        DamagedError: there is no such file, it is no JSON object, or not the one that was written.
    """
    value, is_sealed = read_either(path, advice)
    if not is_sealed:
        raise _damaged(path, "carries no digest (edited, or written by an older version)", advice)
    return value


def read_either(path: Path, advice: str = "") -> tuple[dict[str, Any], bool]:
    """The JSON object in a file, and whether it carries a digest, which is then the right one; older files have none.

    Raises:
        DamagedError: as `read_sealed`.
    """
    try:
        value = records.read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is damaged, not JSON"
        raise _damaged(path, f"{what} ({getattr(error, 'strerror', error)})", advice) from None
    if not isinstance(value, dict):
        raise _damaged(path, f"is damaged, expected a JSON object, got {type(value).__name__}", advice)
    seal = value.pop(SEAL, None)
    if seal is not None and seal != records.digest_json(value):
        raise _damaged(path, "is not what was written (SHA-256 differs)", advice)
    return value, seal is not None


def _damaged(path: Path, what: str, advice: str) -> DamagedError:
    return DamagedError(f"{path} {what}" + (f"; {advice}" if advice else ""))


def digest_known(path: Path) -> str:
    """SHA-256 of a file; what did not change since this process read it is not read again."""
    status = path.stat()
    if abs(time.time_ns() - status.st_mtime_ns) < SETTLED_NS:
        return records.digest_file(path)
    return _digest_once(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=65536)
def _digest_once(path: Path, num_bytes: int, modified_ns: int, changed_ns: int, inode: int) -> str:
    """The digest of a file that has this size, these times and this number on the disk."""
    return records.digest_file(path)


def files_below(folder: Path, names: Iterable[str]) -> list[str]:
    """What lies at `names` below `folder`, files and files in folders, by path there; not what a kill left half."""
    found: list[str] = []
    for name in names:
        path = folder / name
        inside = sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]
        found += [str(one.relative_to(folder)) for one in inside if one.is_symlink() or one.is_file()]
    return [name for name in found if not is_half_written(name)]


def is_there(path: Path) -> bool:
    """Whether anything lies at `path`, a link to nowhere included."""
    return path.is_symlink() or path.exists()


def is_half_written(name: str) -> bool:
    """Whether a path is that of a temporary file or folder, or below one."""
    return any(part.startswith(".") and part.endswith(".tmp") for part in Path(name).parts)


def table_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by path of everything at `names` below `folder`."""
    return {name: digest_known(folder / name) for name in files_below(folder, names)}


def faults_of(folder: Path, table: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each file of `table` that is not what was recorded, by its path below `folder`."""
    faults = {}
    for name, recorded in table.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            faults[name] = "is no plain file" if is_there(path) else "is missing"
        elif digest_known(path) != recorded:
            faults[name] = "is not what was recorded (SHA-256 differs)"
    return faults


def strays_of(folder: Path, table: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Files at `names` below `folder` that are not in its `table`, and what is wrong with them."""
    return {name: "was not recorded" for name in files_below(folder, names) if name not in table}


def refuse(folder: Path, faults: Mapping[str, str], advice: str) -> None:
    """Refuse files with faults; `advice` says what to do.

    Raises:
        DamagedError: names the first of them.
    """
    if faults:
        name, what = next(iter(faults.items()))
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise DamagedError(f"{folder / name} {what}{more}; {advice}")
