"""What was measured in a study: the columns of its tables and the scores of every arm and seed."""

from __future__ import annotations

from dataclasses import dataclass

from statewise.config.study import StudyConfig
from statewise.folder.item_scores import Column, Scores, lay_out
from statewise.results.intervals import Evidence, weigh_difference
from statewise.types import Matrix

GAIN, FORGETTING = "gain", "forgetting"


@dataclass(frozen=True)
class Measured:
    """The scores of every arm and seed that was evaluated."""

    config: StudyConfig
    columns: tuple[Column, ...]
    scores: dict[tuple[str, int], Scores]

    def matrix(self, arm: str, column: Column, seeds: list[int]) -> Matrix:
        """[items, seeds]; an answer that could not be scored counts as not correct, and is reported as unscored."""
        return lay_out([self.scores[arm, seed][column] for seed in seeds])

    def retained(self, arm: str, seeds: list[int]) -> list[Matrix]:
        """The matrices of the retention tasks."""
        return [self.matrix(arm, column, seeds) for column in self.retention]

    def difference(self, column: Column, arm: str, than: str, seeds: list[int]) -> Evidence:
        """`arm` minus `than`, paired by item and seed."""
        return weigh_difference(self.matrix(arm, column, seeds), self.matrix(than, column, seeds))

    def seeds_of(self, *arms: str) -> list[int]:
        """The seeds in which all of `arms` were evaluated."""
        return [s for s in self.config.study.seeds if all((arm, s) in self.scores for arm in arms)]

    def primary(self, task: str, decoding: str | None = None) -> Column:
        """The column by which `task` is judged: the first of its columns, or the first with `decoding`."""
        return next(c for c in self.columns if _is_of(c, task, decoding))

    def has(self, measure: str) -> bool:
        """Whether a hypothesis's measure was scored: a task that scores given choices has no sampled answers."""
        task, _, decoding = measure.partition(":")
        return measure == FORGETTING or any(_is_of(c, task, decoding or None) for c in self.columns)

    @property
    def retention(self) -> list[Column]:
        return [self.primary(task) for task in self.config.shared.retention] if self.columns else []


def _is_of(column: Column, task: str, decoding: str | None) -> bool:
    return column.task == task and decoding in (None, column.decoding)
