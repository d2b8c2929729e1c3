"""What every reader of logs yields: scores item by item, how each task was asked, and what cannot be used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from statewise.errors import UsageError
from statewise.folder.item_scores import Column, ItemScores, Scores

ItemName = int | str


@dataclass(frozen=True)
class EvaluationLog:
    """One model's evaluation by another tool.

    `protocols`: per task how it was asked, "" where the log does not say. `refused`: per task, or task and score, why
    it is not item by item. `notes`: what else a reader must know.
    """

    scores: Scores
    protocols: dict[str, str]
    refused: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LoggedItem:
    """One item's score, nan where it could not be scored; digest of what was asked; chance that a guess is right."""

    score: float
    digest: str
    chance: float = np.nan

    def is_like(self, other: LoggedItem) -> bool:
        is_same = self.score == other.score or (math.isnan(self.score) and math.isnan(other.score))
        return self.digest == other.digest and is_same


@dataclass
class Gathering:
    """The items of a log while it is read; what stands there twice is counted, and refused where it differs.

    `refused`: why a score is none that can be compared, by task and metric.
    """

    refused: dict[str, str] = field(default_factory=dict)
    columns: dict[Column, dict[ItemName, LoggedItem]] = field(default_factory=dict)
    repeated: Counter[str] = field(default_factory=Counter)

    def add(self, column: Column, name: ItemName, item: LoggedItem, place: str) -> None:
        """Keep one item of a column.

        Raises:
            UsageError: it is there already, with another score or another text.
        """
        items = self.columns.setdefault(column, {})
        if name not in items:
            items[name] = item
        elif items[name].is_like(item):
            self.repeated[column.task] += 1
        else:
            raise UsageError(
                f"{place}: item {name!r} of task {column.task!r} stands here twice, with different scores or texts; "
                "were two runs written into one file? Keep the lines of one"
            )

    def log(self, protocols: dict[str, str], notes: Iterable[str]) -> EvaluationLog:
        """What was gathered, without what was refused.

        Raises:
            UsageError: that leaves nothing.
        """
        kept = {one: items for one, items in self.columns.items() if f"{one.task} {one.metric}" not in self.refused}
        if not kept:
            raise UsageError("; ".join(f"{what}: {why}" for what, why in self.refused.items()) or "no item has a score")
        told = "equal rows that stand there twice, and count once"
        return EvaluationLog(
            {column: _in_order(items) for column, items in kept.items()},
            {column.task: protocols[column.task] for column in kept},
            self.refused,
            (*notes, *(f"{task}: {told}: {count:,}" for task, count in self.repeated.items())),
        )


def _in_order(items: dict[ItemName, LoggedItem]) -> ItemScores:
    names = sorted(items, key=lambda name: (isinstance(name, str), name))
    ordered = [items[name] for name in names]
    return ItemScores(
        tuple(names), np.array([item.score for item in ordered]), (None,) * len(names),
        tuple(item.digest for item in ordered), np.array([item.chance for item in ordered]),
    )  # fmt: skip
