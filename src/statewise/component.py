"""Sources, signals and localities from tables and back: a frozen dataclass whose fields are its configuration."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from statewise.errors import UsageError, unknown

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
        raise unknown(what, kind, registry, where)
    chosen = registry[kind]
    settings = {key: value for key, value in table.items() if key != "kind"}
    known = [field.name for field in dataclasses.fields(chosen)]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise unknown(f"key of {what} {kind!r}", key, known or ["(none)"], where)
        if isinstance(settings[key], float) and not math.isfinite(settings[key]):
            raise UsageError(f"{where}: {what} {kind!r}, key {key!r}: Input should be a finite number")
    try:
        # As JSON, since strict validation takes a dataclass from JSON but not from a dict.
        return TypeAdapter(chosen).validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        found = error.errors()
        key = str(found[0]["loc"][0]) if found[0]["loc"] else ""
        # A value of several types has an error for each; of a table the last one, the table's own, says most.
        first = found[-1] if isinstance(settings.get(key), dict) else found[0]
        message = first["msg"].removeprefix("Value error, ")
        told = f", key {key!r}: {message} (got {first['input']!r})" if key else f": {message}"
        raise UsageError(f"{where}: {what} {kind!r}{told}") from None


def describe(part: Any) -> Any:
    """A source, signal or locality as plain values: its fields, their defaults written out, and its kind."""
    if dataclasses.is_dataclass(part):
        kind = getattr(part, "kind", None)
        named = {} if kind is None else {"kind": kind}
        return named | {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
    return [describe(one) for one in part] if isinstance(part, tuple | list) else part
