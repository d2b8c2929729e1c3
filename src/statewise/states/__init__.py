"""Where updates are applied: the state sources q_k(s). One source a file; adding one is one entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from statewise.component import component
from statewise.errors import UsageError
from statewise.states.dataset import Dataset
from statewise.states.log import Log
from statewise.states.mixture import Mixture, Part
from statewise.states.prefix import Prefix
from statewise.states.ramp import Ramp, Share, ends_of
from statewise.states.rollout import ModelRollout
from statewise.states.source import EncodedExample, RecordedStates, Source, SourceContext

SOURCES: dict[str, type[Source]] = {
    "dataset": Dataset,
    "rollout": ModelRollout,
    "prefix": Prefix,
    "log": Log,
    "mixture": Mixture,
}

COUNTS = ("num_trajectories", "num_prompts")  # what says how much a source yields an update

__all__ = [
    "SOURCES",
    "EncodedExample",
    "RecordedStates",
    "Source",
    "SourceContext",
    "leaves",
    "read_source",
    "replace_leaves",
]


def read_source(table: dict[str, Any], where: str) -> Source:
    """The source that a table of a study file describes; the parts of a mixture are tables of the same kind.

    Raises:
        UsageError: no or unknown kind, unknown key, or a value of the wrong type or range.
    """
    if table.get("kind") != Mixture.kind:
        return component(SOURCES, table, "source", where)
    parts = table.get("parts")
    if not isinstance(parts, list) or len(parts) < 2 or not all(isinstance(part, dict) for part in parts):
        raise UsageError(f"{where}: source 'mixture' needs two or more parts = [{{ kind = ..., weight = ... }}, ...]")
    rest = {key: value for key, value in table.items() if key != "parts"}
    mixture = component({Mixture.kind: Mixture}, rest, "source", where)
    read = tuple(_read_part(part, f"{where}: part {index}") for index, part in enumerate(parts, start=1))
    for weights, when in zip(
        zip(*(ends_of(part.weight) for part in read), strict=True), ("first", "last"), strict=True
    ):
        if not any(weights):
            raise UsageError(
                f"{where}: the weights of a mixture are all 0 in the {when} update; give one part a weight above 0"
            )
    return replace(mixture, parts=read)


@dataclass(frozen=True)
class _Weight:
    weight: Share | Ramp


def _read_part(table: dict[str, Any], where: str) -> Part:
    if "weight" not in table:
        raise UsageError(f"{where}: a part of a mixture needs a weight, 0..1 or {{ start = ..., end = ... }}")
    for key in COUNTS:
        if key in table:
            raise UsageError(
                f"{where}: {key} of a part of a mixture is not used, since its weight says how much it gives; leave it "
                "out, and set num_trajectories of the mixture"
            )
    weighted = component({"part": _Weight}, {"kind": "part", "weight": table["weight"]}, "weight of a", where)
    return Part(read_source({key: value for key, value in table.items() if key != "weight"}, where), weighted.weight)


def leaves(source: Source) -> Iterator[Source]:
    """The sources that `source` draws from: itself, or the parts of a mixture."""
    if not isinstance(source, Mixture):
        yield source
        return
    for part in source.parts:
        yield from leaves(part.source)


def replace_leaves(source: Source, change: Callable[[Source], Source]) -> Source:
    """`source` with `change` made to each of its `leaves`."""
    if not isinstance(source, Mixture):
        return change(source)
    return replace(
        source, parts=tuple(replace(part, source=replace_leaves(part.source, change)) for part in source.parts)
    )
