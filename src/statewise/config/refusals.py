"""What is told of a value of a study file that its model refuses: where it stands, what was found, what is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from statewise.errors import UsageError, unknown
from statewise.kind import Kind, Weighted

Keys = list[str | int]
# How a table is written that somebody gave as a value, which stands in the place of VALUE.
EXAMPLES = {
    "source": "{ kind = VALUE }", "signal": "{ kind = VALUE }", "locality": "{ kind = VALUE }",
    "adapter": "{ kind = VALUE }", "update": "{ num_updates = ..., lr = ... }",
    "budget": '{ unit = "loss_tokens", amount = VALUE }',
}  # fmt: skip
# Errors that say what the message of the value's own checks says.
OWN_WORDS = ("kind", "value_error")
NO_TABLE = ("table", "model_type", "model_attributes_type", "dict_type")


def read_kind(room: type[Kind], table: Any, where: str) -> Any:
    """One of the kinds of `room` from its table, as `ArmSection` reads it.

    Raises:
        UsageError: no or unknown kind, unknown key, or a value of the wrong type or range; begins with `where`.
    """
    try:
        return room.registry.build(table)
    except ValidationError as error:
        raise refusal(error.errors(), room, table, lambda keys: where) from None
    except ValueError as error:
        raise UsageError(f"{where}: {room.registry.what}: {error}") from None


def refusal(
    errors: Sequence[ErrorDetails], model: type[BaseModel], raw: Any, place_of: Callable[[Keys], str]
) -> UsageError:
    """The first of pydantic's `errors` about `raw`, read as `model`, in words.

    Args:
        errors: at least one.
        model: what `raw` was read as.
        raw: tables and values as given.
        place_of: where the value at a path of keys was given.
    """
    first = first_of(errors, raw)
    keys = keys_of(first, raw)
    # What is wrong with a kind is told of its table, and stands where the kind is given.
    where = place_of([*keys, "kind"] if first["type"] == "kind" else keys)
    dotted, table, key, got = _dotted(keys), _dotted(keys[:-1]), str(keys[-1]) if keys else "", first["input"]
    if first["type"] == "extra_forbidden":
        return unknown(f"key in [{table}]:" if table else "key:", key, known_keys(model, raw, keys[:-1]), where)
    if first["type"] == "missing":
        return UsageError(f"{where}: {f'[{table}]' if table else model.__name__} needs the key {key!r}")
    name = next((str(one) for one in reversed(keys) if isinstance(one, str)), "")
    if name in EXAMPLES and first["type"] in NO_TABLE and not isinstance(got, dict):
        shown = json.dumps(got) if isinstance(got, (str, int, float)) else "..."
        example = EXAMPLES[name].replace("VALUE", shown)
        return UsageError(f"{where}: {dotted}: must be a table; write {name} = {example} (got {got!r})")
    about = [one for one in errors if keys_of(one, raw) == keys]
    message = _message(about, first, [*_models_at(model, raw, keys)])
    found = "" if first["type"] in OWN_WORDS else f" (got {got!r})"
    return UsageError(f"{where}: {dotted}{': ' * bool(dotted)}{message}{found}")


def first_of(errors: Sequence[ErrorDetails], raw: Any) -> ErrorDetails:
    """The error that is told: a mistyped key is both unknown and missing, and the former says more.

    A table in the place of a value of several types has an error for each; its own, the last one, says most.
    """
    first = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    if first["type"] == "extra_forbidden" or not isinstance(first["input"], dict):
        return first
    keys = keys_of(first, raw)
    return [one for one in errors if keys_of(one, raw)[: len(keys)] == keys][-1]


def keys_of(error: ErrorDetails, raw: Any) -> Keys:
    """The keys of `raw` that an error is about: its location without the branches of unions and what holds a part."""
    keys: Keys = []
    value = raw
    for part in error["loc"]:
        if _has(value, part):
            keys.append(part)
            value = value[part]
    return [*keys, error["loc"][-1]] if error["type"] == "missing" else keys


def known_keys(hint: Any, value: Any, keys: Sequence[str | int]) -> list[str]:
    """The keys that the table at `keys` below `value`, which has the type `hint`, may have."""
    models = _models_at(hint, value, keys)
    return [name for model in models for name in model.model_fields if name != getattr(model, "holds", None)]


def _models_at(hint: Any, value: Any, keys: Sequence[str | int]) -> Iterator[type[BaseModel]]:
    """The models that the table at `keys` below `value`, which has the type `hint`, may be one of."""
    kept = get_origin(hint)
    if kept in (dict, list, tuple):
        # A list of tables may be given as one table.
        is_inside = bool(keys) and (kept is dict or not isinstance(value, dict))
        inside = (_get(value, keys[0]), keys[1:]) if is_inside else (value, keys)
        yield from _models_at(get_args(hint)[kept is dict], *inside)
    elif not isinstance(hint, type):
        for one in get_args(hint):
            yield from _models_at(one, value, keys)
    elif issubclass(hint, Kind) and "registry" in vars(hint):
        yield from _models_at(hint.registry.get(str(_get(value, "kind"))), value, keys)
    elif issubclass(hint, BaseModel):
        if issubclass(hint, Weighted):
            yield from _models_at(hint.model_fields[hint.holds].annotation, value, keys)
        if not keys:
            yield hint
        elif keys[0] in hint.model_fields:
            yield from _models_at(hint.model_fields[str(keys[0])].annotation, _get(value, keys[0]), keys[1:])


def _has(value: Any, key: str | int) -> bool:
    is_item = isinstance(value, list) and isinstance(key, int) and key < len(value)
    return is_item or (isinstance(value, dict) and key in value)


def _get(value: Any, key: str | int) -> Any:
    return value[key] if _has(value, key) else None


def _message(about: Sequence[ErrorDetails], first: ErrorDetails, tables: Sequence[type[BaseModel]]) -> str:
    """What is wrong with a value; one that may be of several types, such as `tables`, has an error for each."""
    fields = ", ".join(name for table in tables for name in table.model_fields)
    messages = [
        f"Input should be a table with {fields}" if one["type"] == "model_type" else one["msg"]
        for one in ([first] if isinstance(first["input"], dict) else about)
    ]
    plain = [message.removeprefix("Value error, ") for message in messages]
    told = [plain[0], *(message.removeprefix("Input should be ") for message in plain[1:])]
    return ", ".join(told[:-1]) + " or " * (len(told) > 1) + told[-1]


def _dotted(keys: Sequence[str | int]) -> str:
    return ".".join(map(str, keys))
