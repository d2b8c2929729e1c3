"""What a study promises and a plan must keep: arms differ in declared factors only, what is tested is measured."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel

from statewise.config.locations import Location
from statewise.config.refusals import known_keys
from statewise.config.study import StudyConfig, UpdateSection
from statewise.errors import UsageError, unknown
from statewise.locality import ADAPTERS, LOCALITIES
from statewise.signals import SIGNALS
from statewise.states import SOURCES


def check_factors(arms: Mapping[str, Mapping[str, Any]], factors: list[str], where: str) -> None:
    """Refuse arms that differ in a key that is not a declared factor or below one.

    Args:
        arms: resolved tables by name, with the defaults of source and signal written out, so that only a difference in
            what is done counts as one.
        factors: `study.factors`, dotted keys.
        where: where the factors are declared, for the error.

    Raises:
        UsageError: names every undeclared key in which arms differ, or a factor that is no key of an arm.
    """
    leaves = [flatten(arm) for arm in arms.values()]
    keys = sorted({key for leaf in leaves for key in leaf})
    _check_known(factors, keys, where)
    differing = [key for key in keys if len({repr(leaf.get(key)) for leaf in leaves}) > 1]
    undeclared = [key for key in differing if not any(key == f or key.startswith(f"{f}.") for f in factors)]
    if undeclared:
        raise UsageError(
            f"{where}: arms differ in {', '.join(undeclared)}, which study.factors does not declare; "
            "set them in [shared], or add them to study.factors so that the report says so"
        )


def _check_known(factors: list[str], keys: list[str], where: str) -> None:
    """Refuse a factor that no arm could differ in: neither one of `keys`, nor another that arms can have."""
    known = {prefix for key in [*keys, *_possible_keys()] for prefix in _prefixes(key)}
    for factor in factors:
        if factor in known:
            continue
        root = factor.partition(".")[0]
        told = [key for key in known if (key.startswith(f"{root}.") if root in known else "." not in key)]
        if nearest := difflib.get_close_matches(factor, sorted(known), n=1, cutoff=0.5):
            told.append(nearest[0])
        raise unknown("factor", factor, told, where)


def _possible_keys() -> Iterator[str]:
    """Dotted keys of every arm that there can be, as its resolved table has them."""
    yield from ("teacher", "signal.sum")
    yield from (f"update.{key}" for key in _keys_of(UpdateSection))
    for room, registry in (("source", SOURCES), ("signal", SIGNALS), ("adapter", ADAPTERS)):
        yield from (f"{room}.{key}" for kind in registry.values() for key in _keys_of(kind))
    for name, locality in LOCALITIES.items():
        yield from (f"locality.{name}.{key}" for key in _keys_of(locality))


def _keys_of(model: type[BaseModel]) -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield key
        if get_origin(field.annotation) is not tuple:  # a list of tables is compared as a whole
            yield from (f"{key}.{inner}" for inner in known_keys(field.annotation, None, []))


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def check_measures(config: StudyConfig, location: Location) -> None:
    """Refuse a hypothesis about something that the study does not measure; call it when the tasks are known to exist.

    Raises:
        UsageError: names the hypothesis and the nearest measure.
    """
    target, retention = config.shared.target, config.shared.retention
    measures = [target, f"{target}:greedy", f"{target}:sampled", *retention, *(["forgetting"] if retention else [])]
    for index, hypothesis in enumerate(config.hypotheses):
        if hypothesis.measure not in measures:
            where = location.of(["hypotheses", index, "measure"])
            raise unknown("measure", hypothesis.measure, measures, f"{where}: [[hypotheses]] {hypothesis.name!r}")


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of everything in `table` that is no table itself."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
