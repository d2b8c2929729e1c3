"""`[grid]` of a study file: arms as the product of axes, so that a factorial design is not written cell by cell.

An axis has levels, a level is a partial arm table. A cell merges one level of every axis; its arm is called by the
levels joined by ".", in the order of the axes. Hand-written arms stand beside them: cells that need settings of their
own are skipped and written by hand, with `levels` that say which cell they stand for.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from statewise.errors import UsageError, unknown

Table = dict[str, Any]
Axes = Mapping[str, Mapping[str, Table]]
Where = Callable[[Iterable[str | int]], str]

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
KEYS = ("axes", "label", "skip")
MAX_CELLS = 1000  # also of those that are skipped, since each is named first
# Made from the axes, so a level cannot set them.
GENERATED = ("label", "levels")


def expand_grid(raw: Table, where: Where) -> Table:
    """`raw` with the arms of its grid added to `[arms]`, and without `[grid]`.

    Args:
        raw: a study as parsed; not changed.
        where: `file:line` of a path of keys.

    Raises:
        UsageError: a malformed grid, two axes that set one key to different values, a label or a pattern of `skip` that
            names what is not there, or two arms of one name.
    """
    if "grid" not in raw:
        return raw
    axes = _check_grid(raw["grid"], where)
    num_cells = math.prod(map(len, axes.values()))
    if num_cells > MAX_CELLS:
        raise UsageError(
            f"{where(['grid', 'axes'])}: the axes make {num_cells:,} arms; a study has at most {MAX_CELLS:,}, so split "
            "it or leave levels out"
        )
    grid: Table = raw["grid"]
    skipped = _skipped(grid.get("skip", []), _names(axes, where), where)
    arms = {
        _name_of(levels): _arm_of(axes, levels, _label_of(grid, levels, where), where)
        for levels in _cells(axes)
        if _name_of(levels) not in skipped
    }
    if not arms:
        raise UsageError(f"{where(['grid', 'skip'])}: skips every arm of the grid; leave one, or remove [grid]")
    written = raw.get("arms", {})
    _check_written(written, axes, where)
    for name, arm in arms.items():
        for other, stand_in in written.items():
            if other == name or stand_in.get("levels") == arm["levels"]:
                raise UsageError(
                    f"{where(['arms', other])}: the grid makes this arm as well, as {name!r}; add that to grid.skip to "
                    "keep the one that is written out"
                )
    return {**{key: value for key, value in raw.items() if key != "grid"}, "arms": {**written, **arms}}


def check_levels(levels: Mapping[str, Mapping[str, str]], where: Where) -> None:
    """Refuse arms of one design, by name, that lie on other axes or in one cell.

    Raises:
        UsageError: names both arms.
    """
    cells: dict[tuple[tuple[str, str], ...], str] = {}
    for name, cell in levels.items():
        first, axes = next((other, list(found)) for other, found in levels.items())
        place = where(["arms", name, "levels"])
        if sorted(cell) != sorted(axes):
            raise UsageError(
                f"{place}: arm {name!r} has levels of {', '.join(cell)}, arm {first!r} of {', '.join(axes)}; "
                "the arms of a study lie on the same axes"
            )
        other = cells.setdefault(tuple((axis, cell[axis]) for axis in axes), name)
        if other != name:
            raise UsageError(f"{place}: arms {other!r} and {name!r} have the same levels; a cell is one arm")


@dataclass(frozen=True)
class Origin:
    """Where a key of an arm of the grid stands: `keys` from the root of the file, `depth` of them in the level."""

    keys: list[str]
    depth: int


def origin(raw: Table, keys: list[str]) -> Origin | None:
    """Which level holds most of `keys` (arms, name, key, …); None for an arm that is written out."""
    if len(keys) < 2 or keys[1] in raw.get("arms", {}) or "grid" not in raw:
        return None
    axes: Axes = raw["grid"]["axes"]
    levels = next((levels for levels in _cells(axes) if _name_of(levels) == keys[1]), None)
    if levels is None:
        return None
    axis = max(levels, key=lambda axis: held_depth(axes[axis][levels[axis]], keys[2:]))
    level = levels[axis]
    return Origin(["grid", "axes", axis, level, *keys[2:]], held_depth(axes[axis][level], keys[2:]))


def _check_grid(grid: Any, where: Where) -> Axes:
    """The axes of a well-formed grid."""
    if not isinstance(grid, dict):
        raise UsageError(f"{where(['grid'])}: 'grid' must be a table")
    for key in grid:
        if key not in KEYS:
            raise unknown("key in [grid]:", key, KEYS, where(["grid", key]))
    axes = grid.get("axes")
    if not isinstance(axes, dict) or not axes:
        raise UsageError(f"{where(['grid'])}: [grid] needs axes; write a [grid.axes.<axis>] with its levels")
    for axis, levels in axes.items():
        _check_axis(axis, levels, where)
    for key, kind, text in (("label", str, "a text"), ("skip", list, "a list of patterns")):
        if not isinstance(grid.get(key, kind()), kind):
            raise UsageError(f"{where(['grid', key])}: grid.{key} must be {text} (got {grid[key]!r})")
    return axes


def _check_axis(axis: str, levels: Any, where: Where) -> None:
    place = ["grid", "axes", axis]
    if not isinstance(levels, dict) or not levels:
        raise UsageError(f"{where(place)}: axis {axis!r} must be a table of levels, each a partial arm table")
    for name in (axis, *levels):
        if not re.fullmatch(NAME_PATTERN, name):
            what = "axis" if name is axis else "level"
            raise UsageError(f"{where([*place, name])}: {what} name {name!r} must match {NAME_PATTERN}")
    for level, table in levels.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{where([*place, level])}: level {level!r} of axis {axis!r} must be a partial arm table, "
                f"e.g. {{ update = {{ lr = 1e-4 }} }} (got {table!r})"
            )
        for key in GENERATED:
            if key in table:
                raise UsageError(
                    f"{where([*place, level, key])}: level {level!r} of axis {axis!r} sets {key!r}, which the grid "
                    "makes itself; see grid.label"
                )


def _check_written(arms: Any, axes: Axes, where: Where) -> None:
    """Arms that are written out beside the grid stand for cells of it, if for any."""
    if not isinstance(arms, dict):
        raise UsageError(f"{where(['arms'])}: 'arms' must be a table")
    for name, arm in arms.items():
        levels, place = arm.get("levels") if isinstance(arm, dict) else arm, where(["arms", name, "levels"])
        if not isinstance(levels, (dict, type(None))):
            raise UsageError(f"{place}: arm {name!r} or its levels are no table (got {levels!r})")
        for axis, level in (levels or {}).items():
            if axis not in axes:
                raise unknown("axis", axis, axes, place)
            if level not in axes[axis]:
                raise unknown(f"level of axis {axis!r}:", str(level), axes[axis], place)
        if levels and len(levels) < len(axes):
            missing = next(axis for axis in axes if axis not in levels)
            raise UsageError(f"{place}: the levels of arm {name!r} lack the axis {missing!r}")


def _cells(axes: Axes) -> Iterator[dict[str, str]]:
    """Axis → level of every cell, the last axis running fastest."""
    for levels in itertools.product(*axes.values()):
        yield dict(zip(axes, levels, strict=True))


def _names(axes: Axes, where: Where) -> list[str]:
    names = [_name_of(levels) for levels in _cells(axes)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{where(['grid', 'axes'])}: two cells are called {twice[0]!r}; rename a level that has a '.'")
    return names


def _name_of(levels: Mapping[str, str]) -> str:
    return ".".join(levels.values())


def _label_of(grid: Table, levels: dict[str, str], where: Where) -> str:
    template = grid.get("label")
    if not template:
        return " · ".join(levels.values())
    try:
        parsed = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UsageError(f"{where(['grid', 'label'])}: label {template!r}: {error}") from None
    for name, form, conversion in parsed:
        field = f"{name}{'!' * bool(conversion)}{conversion or ''}{':' * bool(form)}{form}"
        if field not in levels:  # no formats and no conversions either
            raise unknown("axis in the label:", field, levels, where(["grid", "label"]))
    return str(template.format_map(levels))


def _arm_of(axes: Axes, levels: dict[str, str], label: str, where: Where) -> Table:
    arm: Table = {}
    set_by: dict[tuple[str, ...], str] = {}
    for axis, level in levels.items():
        for key, value in _leaves(axes[axis][level]):
            _check_apart(set_by, arm, key, (axis, level, value), where)
            set_by[key] = axis
            _set(arm, key, value)
    return {"label": label, **arm, "levels": dict(levels)}


def _check_apart(
    set_by: Mapping[tuple[str, ...], str], arm: Table, key: tuple[str, ...], new: tuple[str, str, Any], where: Where
) -> None:
    """Refuse a key that another axis sets to another value, or to a table where this one has a value."""
    axis, level, value = new
    for other, other_axis in set_by.items():
        shorter = min(len(key), len(other))
        is_same = key == other and _get(arm, other) == value
        if key[:shorter] == other[:shorter] and not is_same:
            raise UsageError(
                f"{where(['grid', 'axes', axis, level, *key])}: axes {other_axis!r} and {axis!r} both set "
                f"{'.'.join(key[:shorter])!r}, to different values; a key belongs to one axis"
            )


def _leaves(table: Table, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def _set(table: Table, key: tuple[str, ...], value: Any) -> None:
    for part in key[:-1]:
        table = table.setdefault(part, {})
    table[key[-1]] = value


def _get(table: Table, key: tuple[str, ...]) -> Any:
    value: Any = table
    for part in key:
        value = value[part]
    return value


def held_depth(table: Any, keys: list[str]) -> int:
    """How many of `keys`, one below the other, `table` holds."""
    if not keys or not isinstance(table, dict) or keys[0] not in table:
        return 0
    return 1 + held_depth(table[keys[0]], keys[1:])


def _skipped(patterns: list[Any], names: list[str], where: Where) -> set[str]:
    skipped: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(names, str(pattern))
        if not matching:
            raise unknown("arm in grid.skip:", str(pattern), names, where(["grid", "skip"]))
        skipped |= set(matching)
    return skipped
