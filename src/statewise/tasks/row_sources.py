"""Where rows lie: a file, a folder that datasets wrote (`save_to_disk`), or a data set of the hub (`hub:org/name`).

A hub name begins with `hub:`, so that no mistyped file is ever looked for on a network. Rows of a folder and of the hub
are what their Arrow tables hold; images and sounds in them are not decoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from statewise.errors import UsageError, unknown
from statewise.storage import records
from statewise.storage.parsing import parse_json
from statewise.storage.rows import Row, checked, read_rows, rows_of_table
from statewise.tasks.hub_rows import HUB, commit_of, locate_in_hub, read_hub_rows

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
ONE, SPLITS = "state.json", "dataset_dict.json"  # what save_to_disk writes beside its tables: of one set, of several


def locate_rows(name: str, folder: Path, split: str) -> str:
    """The whole name of what a study or a command names: an absolute path, or a hub name with its commit.

    Args:
        name: `rows.jsonl` (or another of `FORMATS`), `saved[:split]` or `hub:org/name[/config][@revision][:split]`.
        folder: that relative paths are relative to.
        split: that is read where several are there and the name says none.

    Raises:
        UsageError: there is no such file, folder, split or data set, or it is of no known format.
    """
    if name.startswith(HUB):
        return locate_in_hub(name, split)
    path = (folder / Path(name).expanduser()).resolve()
    if path.is_dir():
        return _located_folder(path, None, split)
    head, colon, given = str(path).rpartition(":")
    if colon and not path.exists() and Path(head).is_dir():
        return _located_folder(Path(head), given, split)
    if path.suffix not in FORMATS:
        raise UsageError(
            f"{path}: of no known format; expected {', '.join(FORMATS)}, a folder written by save_to_disk, or "
            f"{HUB}org/name"
        )
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return str(path)


def _located_folder(path: Path, given: str | None, split: str) -> str:
    if (path / SPLITS).is_file():
        found = [str(name) for name in _described(path / SPLITS, "splits", list)]
        if (wanted := given or split) not in found:
            raise unknown("split", wanted, found, f"{path}")
        return f"{path}:{wanted}"
    if not (path / ONE).is_file():
        raise UsageError(
            f"{path}: is a folder, but none that save_to_disk of datasets wrote (no {ONE} or {SPLITS}); name a "
            "file in it"
        )
    if given not in (None, _described(path / ONE, "_split", object)):
        raise UsageError(f"{path}: is one set without a split {given!r}; leave ':{given}' out")
    return str(path)


def _described(path: Path, key: str, kind: type) -> Any:
    try:
        found = parse_json(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); save the data set again") from None
    if not isinstance(found, kind):
        raise UsageError(f"{path}: has no {key}; save the data set again")
    return found


def read_source(located: str) -> list[Row]:
    """The rows of what `locate_rows` gave, one or more.

    Raises:
        UsageError: it cannot be read, or holds no rows or a value that cannot be kept; names the row.
    """
    if located.startswith(HUB):
        return _read_hub(located)
    if _is_file(located):
        return read_rows(Path(located), FORMATS[Path(located).suffix])
    folder = _folder_of(located)[0]
    try:
        files = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*")))
    except OSError as error:
        raise UsageError(f"{located}: cannot be read ({error.strerror})") from None
    return _read_folder(located, files)


def digest_source(located: str) -> dict[str, str]:
    """Digests of the rows: of a file its bytes, else of what the rows hold; "commit" of a data set of the hub."""
    if _is_file(located):
        return {"": records.digest_file(Path(located))}
    digest = {"": _digest_rows(read_source(located))}
    return digest | ({"commit": commit_of(located)} if located.startswith(HUB) else {})


def _is_file(located: str) -> bool:
    return not located.startswith(HUB) and Path(located).suffix in FORMATS and not Path(located).is_dir()


def _folder_of(located: str) -> tuple[Path, str | None]:
    """A folder that was saved, and the split of it."""
    head, colon, split = located.rpartition(":")
    whole = Path(located)
    return (whole, None) if whole.exists() or not colon else (Path(head), split)


def _digest_rows(rows: Iterable[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.values, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _read_hub(located: str) -> list[Row]:
    """A commit does not change."""
    return checked(read_hub_rows(located), located)


@lru_cache(maxsize=2)
def _read_folder(located: str, files: tuple[tuple[str, int, int], ...]) -> list[Row]:
    """The rows of a folder as of these times and sizes of its files: a study reads them more than once."""
    import datasets

    folder, split = _folder_of(located)
    try:
        table = datasets.load_from_disk(str(folder / split if split else folder)).with_format("arrow")[:]
        rows = rows_of_table(table, located)
    except (OSError, ValueError, LookupError, TypeError) as error:  # ArrowInvalid is a ValueError
        raise UsageError(f"{located}: datasets cannot read it: {str(error).partition(chr(10))[0]}") from None
    return checked(rows, located)
