"""Overrides of a study file, as given to `--set` and in `study.quick`: one dotted key and a value.

They change the table as parsed, before the grid is expanded and anything is checked, so that a value which an override
sets is treated as one that the file holds.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from statewise.errors import UsageError, unknown
from statewise.storage.parsing import parse_toml

Table = dict[str, Any]
ROOTS = ("study", "shared", "grid")
DATA = "data"  # a section as well, where a study has it
# A part of a dotted key: quoted, and then it may have dots, or bare.
_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^."']+?))\s*(\.|$)""")


def split_key(path: str) -> list[str]:
    """The parts of a dotted key, as in TOML: `a."b.c".d` has three. A malformed one has an empty part."""
    parts, position = list[str](), 0
    while position < len(path):
        part = _PART.match(path, position)
        if part is None:
            return [*parts, ""]
        parts.append(part[1] or part[2] or part[3] or "")
        position = part.end()
    return [*parts, ""] if not path or path.endswith(".") else parts


def apply_override(raw: Table, override: str) -> tuple[str, ...]:
    """Set one key of a parsed study in place; returns its keys from the root of the study.

    Args:
        raw: the study as parsed.
        override: `arm.key=value`, `shared.key=value`, `study.key=value`, `grid.skip=value` or
            `grid.axes.<axis>.<level>.<key>=value`; a part with dots stands in quotes; values in TOML syntax or bare.

    Raises:
        UsageError: no key or no value, an arm, axis or level that is not there, or a value where a table is needed.
    """
    path, separator, text = override.partition("=")
    keys, location = split_key(path.strip()), f"--set {override}"
    if not separator or len(keys) < 2 or not all(keys):
        raise UsageError(f"{location}: expected arm.key=value, shared.key=value or study.key=value")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if keys[0] == "grid":
        _check_grid_keys(raw, keys, location)
    elif keys[0] not in ROOTS and not (keys[0] == DATA and DATA in raw):
        if keys[0] == "arms" and "arms" not in raw.get("arms", {}):
            rest = override.strip().removeprefix("arms.")
            raise UsageError(f"{location}: an arm is named without 'arms.' before it; write --set {rest}")
        _check_arm(raw, keys[0], location)
        keys = ["arms", *keys]
    table = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"{location}: {key!r} is a value, not a table")
    table[keys[-1]] = value
    return tuple(keys)


def _check_arm(raw: Table, arm: str, location: str) -> None:
    arms = raw.get("arms", {})
    if not isinstance(arms, dict):
        raise UsageError(f"{location}: 'arms' of the study file is a value, not a table")
    if arm in arms:
        return
    roots = [root for root in (*ROOTS, DATA) if root not in ("grid", DATA) or root in raw]
    error = unknown("arm", arm, [*arms, *roots], location)
    if "grid" in raw:
        raise UsageError(f"{error} Arms of the grid are set by their levels: grid.axes.<axis>.<level>.<key>=value.")
    raise error


def _check_grid_keys(raw: Table, keys: list[str], location: str) -> None:
    """Axes exist, and so does a level of which one key is set; a level given as a whole may be new."""
    grid = raw.get("grid")
    if not isinstance(grid, dict):
        raise UsageError(f"{location}: the study has no [grid]; set keys of its arms")
    axes = grid.get("axes", {})
    if keys[1] != "axes" or len(keys) < 3 or not isinstance(axes, dict):
        return
    if keys[2] not in axes:
        raise unknown("axis", keys[2], axes, location)
    levels = axes[keys[2]]
    if len(keys) > 4 and isinstance(levels, dict) and keys[3] not in levels:
        raise unknown(
            f"level of axis {keys[2]!r}:", keys[3], levels, f"{location} (a level with dots stands in quotes)"
        )
