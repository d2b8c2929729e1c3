"""What was measured in a study, item by item: the columns of its tables and the scores of every arm and seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from statewise.config import StudyConfig
from statewise.study.statistics import Matrix

GAIN, FORGETTING = "gain", "forgetting"


@dataclass(frozen=True)
class Column:
    """One measured score: a task, how it was decoded, and lm-eval's metric; of all its items, or those of a member."""

    task: str
    decoding: str
    metric: str
    heading: str
    member: str = ""

    @property
    def key(self) -> str:
        return f"{self.task}:{self.decoding}:{self.metric}" + (f":{self.member}" if self.member else "")


@dataclass(frozen=True)
class Measured:
    """The items of every arm and seed: `scores[arm, seed][column key]` is float64 [items], nan where unscored.

    `answers[arm, seed]`: how many answers to the target's items were generated, cut at the limit of tokens, and right.
    """

    config: StudyConfig
    columns: tuple[Column, ...]
    scores: dict[tuple[str, int], dict[str, Matrix]]
    answers: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)

    def matrix(self, arm: str, column: Column, seeds: list[int]) -> Matrix:
        """[items, seeds]; an answer that could not be scored counts as not correct, and is reported as unscored."""
        return np.nan_to_num(np.stack([self.scores[arm, seed][column.key] for seed in seeds], axis=1))

    def seeds_of(self, *arms: str) -> list[int]:
        """The seeds in which all of `arms` were evaluated."""
        return [s for s in self.config.study.seeds if all((arm, s) in self.scores for arm in arms)]

    def primary(self, task: str, decoding: str | None = None) -> Column:
        """The column by which `task` is judged: the first of its columns, or the first with `decoding`."""
        return next(c for c in self.columns if _is_of(c, task, decoding))

    def has(self, measure: str) -> bool:
        """Whether a claim's measure was scored: a task that scores given choices has no sampled answers."""
        task, _, decoding = measure.partition(":")
        return measure == FORGETTING or any(_is_of(c, task, decoding or None) for c in self.columns)

    @property
    def retention(self) -> list[Column]:
        return [self.primary(task) for task in self.config.shared.retention] if self.columns else []


def _is_of(column: Column, task: str, decoding: str | None) -> bool:
    return column.task == task and decoding in (None, column.decoding)
