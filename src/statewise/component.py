"""Sources, signals and localities from tables and back: a frozen dataclass whose fields are its configuration."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from statewise.errors import UsageError, unknown

# Keys that the reader of such a table takes out before; a typo of one of them ends here.
READ_BEFORE = {"signal": ("weight",)}
ComponentType = TypeVar("ComponentType")


def component(
    registry: Mapping[str, type[ComponentType]], table: Mapping[str, Any], what: str, where: str
) -> ComponentType:
    """Build the source, signal, … that `table` describes: `kind` picks the class, the other keys are its fields.

    Raises:
        UsageError: no or unknown kind, unknown key, missing key, or a value of the wrong type or range.
    """
    if "kind" not in table:
        raise UsageError(f"{where}: {what} has no 'kind'. Known: {', '.join(sorted(registry))}.")
    kind = str(table["kind"])
    if kind not in registry:
        raise unknown(what, kind, registry, where, ("kind",))
    chosen = registry[kind]
    settings = {key: value for key, value in table.items() if key != "kind"}
    known = [*fields_of(chosen), *READ_BEFORE.get(what, ())]
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"key of {what} {kind!r}:", key, known or ["(none)"], where, (key,))
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}: {what} {kind!r}, key {key!r}: Input should be a finite number", (key,))
        _check_inner_keys(chosen, key, value, f"{what} {kind!r}", where)
    try:
        # As JSON, since strict validation takes a dataclass from JSON but not from a dict.
        return TypeAdapter(chosen).validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        raise _refusal(error.errors(), settings, chosen, f"{where}: {what} {kind!r}") from None


def fields_of(chosen: type[Any]) -> dict[str, tuple[type[Any], ...]]:
    """The fields of a component, and the dataclasses that a table given for each may stand for."""
    hints = get_type_hints(chosen)
    return {field.name: tuple(_dataclasses_in(hints[field.name])) for field in dataclasses.fields(chosen)}


def _dataclasses_in(hint: Any) -> Iterator[type[Any]]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _dataclasses_in(part)


def _check_inner_keys(chosen: type[Any], key: str, value: Any, what: str, where: str) -> None:
    """A dataclass inside a component ignores keys that it does not know, and says of a typo only what is missing."""
    tables = fields_of(chosen).get(key)
    if not tables or not isinstance(value, dict):
        return
    known = [name for table in tables for name in fields_of(table)]
    for inner in value:
        if inner not in known:
            raise unknown(f"key in {key!r} of {what}:", inner, known, where, (key, inner))


def _refusal(found: list[ErrorDetails], settings: Mapping[str, Any], chosen: type[Any], place: str) -> UsageError:
    """What is told of the value that the first of the errors `found` is about."""
    if not found[0]["loc"]:
        return UsageError(f"{place}: {found[0]['msg'].removeprefix('Value error, ')}")
    key = str(found[0]["loc"][0])
    value = settings.get(key)
    # A value of several types has an error for each; of a table the last one, the table's own, says most.
    about = [one for one in found if one["loc"][0] == key] if not isinstance(value, dict) else found[-1:]
    tables = [name for table in fields_of(chosen).get(key, ()) for name in fields_of(table)]
    messages = [
        f"Input should be a table with {', '.join(tables)}"
        if one["type"] == "dataclass_type"
        else one["msg"].removeprefix("Value error, ")
        for one in about
    ]
    told = [messages[0], *(message.removeprefix("Input should be ") for message in messages[1:])]
    text = ", ".join(told[:-1]) + " or " * (len(told) > 1) + told[-1]
    inner = [str(part) for part in about[-1]["loc"][1:] if isinstance(value, dict) and part in value]
    return UsageError(f"{place}, key {'.'.join([key, *inner])!r}: {text} (got {about[0]['input']!r})", (key, *inner))


def describe(part: Any) -> Any:
    """A source, signal or locality as plain values: its fields, their defaults written out, and its kind."""
    if dataclasses.is_dataclass(part):
        kind = getattr(part, "kind", None)
        named = {} if kind is None else {"kind": kind}
        return named | {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
    return [describe(one) for one in part] if isinstance(part, tuple | list) else part
