"""A `StudySummary` back from JSON, into which `dataclasses.asdict` turns it.

The way back follows the type hints of the records and checks every value against them, since `summary.json` may have
been edited or written by another version.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from statewise.config.locations import OLD_NAMES
from statewise.errors import UsageError, unknown
from statewise.storage import integrity
from statewise.storage.integrity import NOT_VERIFIED, SEAL
from statewise.storage.records import StudySummary


def read_summary(folder: Path) -> tuple[StudySummary, str]:
    """The summary of a run folder, and what there is to say of the file: "" where its digest was compared.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise UsageError(f"{folder}: no summary.json; give the folder of a `statewise run`, e.g. runs/pocket")
    stored, is_sealed = integrity.read_either(path, "run the study again to write it anew")
    return summary_from_json(stored), "" if is_sealed else f"{path}: {NOT_VERIFIED}"


def summary_from_json(value: dict[str, Any]) -> StudySummary:
    """The summary that `value` (from `summary.json`) describes.

    Raises:
        UsageError: an unknown or missing key or a value of another type, with its place in the file.
    """
    _check(isinstance(value, dict), "an object", value, "summary")
    about_files = (SEAL, "files")  # digests, which whoever reads the file has compared
    named = {OLD_NAMES.get(key, key): one for key, one in value.items() if key not in about_files}
    summary = _read(StudySummary, named, "summary")
    assert isinstance(summary, StudySummary)
    return summary


def _read(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, value, place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # the records use only `X | None`
        return None if value is None else _read(arguments[0], value, place)
    if origin is tuple:
        _check(isinstance(value, (list, tuple)), "a list", value, place)
        return tuple(_read(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _check(isinstance(value, dict), "an object", value, place)
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if hint is float:
        _check(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, place)
        return float(value)
    _check(type(value) is hint, f"a value of type {hint.__name__}", value, place)
    return value


def _read_dataclass(hint: Any, value: Any, place: str) -> Any:
    _check(isinstance(value, dict), "an object", value, place)
    hints = typing.get_type_hints(hint)
    for key in value:
        if key not in hints:
            raise unknown("key", str(key), hints, where=place)
    arguments = {}
    for field in dataclasses.fields(hint):
        if field.name in value:
            arguments[field.name] = _read(hints[field.name], value[field.name], f"{place}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{place}: no {field.name!r}; run the study again to write it anew")
    return hint(**arguments)


def _check(is_right: bool, expected: str, value: Any, place: str) -> None:
    if not is_right:
        raise UsageError(f"{place}: expected {expected}, got {value!r:.80}; run the study again to write it anew")
