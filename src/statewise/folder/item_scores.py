"""Scores item by item, as every evaluation stores them in `evals/<task>.parquet`: read and laid side by side here.

Light, so that a mistyped folder, arm or seed is answered at once; the arithmetic is in `results.intervals`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from statewise.storage import records
from statewise.types import Matrix


@dataclass(frozen=True)
class Column:
    """One measured score: a task, how it was decoded, and lm-eval's metric; of all its items, or those of a member."""

    task: str
    decoding: str
    metric: str
    member: str = ""
    heading: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        return f"{self.task}:{self.decoding}:{self.metric}" + (f":{self.member}" if self.member else "")


@dataclass(frozen=True)
class ItemScores:
    """The scores of one model in one column: `values`, float64 [items], nan where an answer could not be scored.

    `items`: their numbers, ascending, or how a log calls them, sorted. `finished`: whether the answer ended by itself;
    None: not one generated answer, or of an earlier version. `digests`: SHA-256 over document and prompt; None: of an
    earlier version. `chances`, float64 [items]: that a guess among the item's choices scores 1; nan: it has none, or
    they were not recorded.
    """

    items: tuple[int | str, ...]
    values: Matrix
    finished: tuple[bool | None, ...]
    digests: tuple[str | None, ...]
    chances: Matrix

    @property
    def num_unscored(self) -> int:
        return int(np.isnan(self.values).sum())

    def take(self, items: Collection[int | str]) -> ItemScores:
        """The scores of some items alone."""
        kept = [place for place, item in enumerate(self.items) if item in items]
        return ItemScores(
            tuple(self.items[place] for place in kept), self.values[kept],
            tuple(self.finished[place] for place in kept), tuple(self.digests[place] for place in kept),
            self.chances[kept],
        )  # fmt: skip


Scores = dict[Column, ItemScores]


def read_scores(folder: Path, files: Collection[str] | None = None, parts_of: str = "") -> Scores:
    """The scores of one model, task by task in alphabetical order.

    Args:
        folder: holds `evals/`.
        files: those to read, by path there, others are left alone; None: all, as an older version recorded.
        parts_of: a task whose members have columns of their own beside the whole one.
    """
    found: dict[Column, list[dict[str, Any]]] = {}
    for path in sorted((folder / "evals").glob("*.parquet")):
        for row in records.read_table(path) if files is None or f"evals/{path.name}" in files else ():
            whole = Column(path.stem, row["decoding"], row["metric"])
            found.setdefault(whole, []).append(row)
            if path.stem == parts_of and row["member"]:
                found.setdefault(replace(whole, member=row["member"]), []).append(row)
    return {column: _in_order(rows) for column, rows in found.items()}


def _in_order(rows: list[dict[str, Any]]) -> ItemScores:
    rows = sorted(rows, key=lambda row: int(row["item"]))
    scores = [np.nan if row["score"] is None else row["score"] for row in rows]
    chances = [np.nan if row.get("chance") is None else row["chance"] for row in rows]
    return ItemScores(
        tuple(row["item"] for row in rows), np.array(scores),
        tuple(row.get("is_finished") for row in rows), tuple(row.get("item_sha256") for row in rows),
        np.array(chances),
    )  # fmt: skip


def lay_out(models: Sequence[ItemScores]) -> Matrix:
    """[items, models] of one column; an answer that could not be scored counts as not correct."""
    return np.nan_to_num(np.stack([one.values for one in models], axis=1))
