"""The tables of a report as rows of cells: the terminal and the page print the same ones.

The first column of `StudySummary.columns` is the target, the others are retention tasks; the arm "base" is the model
before post-training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from statewise.records import DriftEstimate, Estimate, RunSummary, StudySummary
from statewise.report import numbers

BASE = "base"
SIGNIFICANCE = 0.05
DISTANCE_HEADINGS = {
    "mmd": "MMD²",
    "centroid": "centroid distance",
    "sliced_wasserstein": "sliced Wasserstein",
    "jaccard": "Jaccard distance",
}


@dataclass(frozen=True)
class Cell:
    """One value with its interval or range below it; `mark` is `numbers.UNRESOLVED` or "", `detail` a third line."""

    text: str
    interval: str = ""
    mark: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """`note` stands under the label: the teacher, or how many seeds diverged."""

    label: str
    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """`headings` are those of the cells; `heading` is that of the labels."""

    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    heading: str = "run"


EMPTY = Cell(numbers.NOTHING)


def score_table(summary: StudySummary) -> Table:
    """Scores, mean forgetting F and retention ratio of every run."""
    rows = []
    for run in summary.runs:
        scores = [_score_cell(run.scores.get(column)) for column in summary.columns]
        forgetting = delta_cell(run.forgetting) if run.forgetting else EMPTY
        rows.append(Row(run.label, (*scores, forgetting, _ratio_cell(run.retention_ratio)), divergence(run)))
    return Table(
        title="Scores and forgetting",
        caption="Score with its 95 % interval. F: mean of base minus run over the retention tasks, above 0 where the "
        "run forgot. Retention: mean of run over base.",
        headings=(*summary.columns.values(), "F", "retention"),
        rows=tuple(rows),
    )


def base_table(summary: StudySummary) -> Table | None:
    """Paired differences from the base model; None if no run has any."""
    rows = tuple(
        Row(run.label, _delta_cells(summary, run.against_base), divergence(run)) for run in trained_runs(summary)
    )
    caption = "Run minus base on the same items, with the 95 % interval of the difference."
    return _table_unless_empty("Paired differences from base", caption, summary, rows)


def teacher_table(summary: StudySummary) -> Table | None:
    """Paired differences of students from their teachers; None if no run has any."""
    rows = tuple(
        Row(run.label, _delta_cells(summary, run.against_teacher), f"teacher: {label_of(summary, run.teacher)}")
        for run in summary.runs
        if run.teacher is not None
    )
    caption = "Student minus its teacher on the same items, with the 95 % interval of the difference."
    return _table_unless_empty("Paired differences from the teacher", caption, summary, rows)


def drift_table(summary: StudySummary) -> Table | None:
    """Distances of every run's states from base, under a row with the noise floor; None if nothing was measured."""
    distances = drift_distances(summary)
    if not distances:
        return None
    rows = [Row("noise floor", tuple(_floor_cell(summary, distance) for distance in distances), "base against base")]
    rows += [
        Row(run.label, tuple(_drift_cell(run.drift.get(distance)) for distance in distances), divergence(run))
        for run in trained_runs(summary)
    ]
    return Table(
        title="Drift of the states from base",
        caption="Mean over seeds, smallest and largest seed in brackets, p of a permutation test per seed. "
        f"{numbers.UNRESOLVED} here: a seed at or below the floor, or with p ≥ {numbers.score(SIGNIFICANCE)}.",
        headings=tuple(distance_heading(distance) for distance in distances),
        rows=tuple(rows),
    )


def budget_table(summary: StudySummary) -> Table | None:
    """What every run realised, one column a budget; None if none was recorded."""
    keys = list(dict.fromkeys(key for run in summary.runs for key in run.budget))
    if not keys:
        return None
    rows = tuple(
        Row(run.label, tuple(_budget_cell(key, run.budget.get(key)) for key in keys))
        for run in summary.runs
        if run.budget
    )
    return Table("Realised budgets", "Mean over seeds.", tuple(_budget_heading(key) for key in keys), rows)


def delta_cell(estimate: Estimate | None, null: float = 0.0) -> Cell:
    """A signed difference, marked where its interval does not leave out `null`."""
    if estimate is None:
        return EMPTY
    bounds = numbers.interval(estimate.low, estimate.high, is_delta=True)
    return Cell(
        numbers.delta(estimate.value), bounds, "" if numbers.is_resolved(estimate, null) else numbers.UNRESOLVED
    )


def divergence(run: RunSummary) -> str:
    """How many seeds of the run ended without a model; empty if none did."""
    if run.num_diverged == 0:
        return ""
    if run.num_diverged >= run.num_seeds:
        return "diverged"
    return f"{run.num_diverged} of {run.num_seeds} seeds diverged"


def trained_runs(summary: StudySummary) -> tuple[RunSummary, ...]:
    """Every run but the base model, in order."""
    return tuple(run for run in summary.runs if run.arm != BASE)


def label_of(summary: StudySummary, arm: str | None) -> str:
    """The label of `arm`, or its bare name where the summary has no such run."""
    return next((run.label for run in summary.runs if run.arm == arm), arm or "")


def drift_distances(summary: StudySummary) -> tuple[str, ...]:
    """Names of the distances that any run has, in order of appearance."""
    return tuple(dict.fromkeys(distance for run in trained_runs(summary) for distance in run.drift))


def is_drift_noise(drift: DriftEstimate) -> bool:
    """Whether some seed cannot be told from base: at or below the floor, or without significance."""
    return drift.low <= drift.floor or any(p >= SIGNIFICANCE for p in drift.p_values)


def distance_heading(distance: str) -> str:
    """The distance as a reader knows it; an unknown one by its own name."""
    return DISTANCE_HEADINGS.get(distance, distance.replace("_", " "))


def all_estimates(summary: StudySummary) -> dict[str, list[Estimate]]:
    """Every estimate of the summary under the name of what it estimates."""
    runs = summary.runs
    groups: dict[str, Iterable[Estimate | None]] = {
        "scores": [estimate for run in runs for estimate in run.scores.values()],
        "differences from base": [estimate for run in runs for estimate in run.against_base.values()],
        "differences from the teacher": [estimate for run in runs for estimate in run.against_teacher.values()],
        "forgetting F": [run.forgetting for run in runs],
        "retention ratio": [run.retention_ratio for run in runs],
        "contrasts of the statements": [e for claim in summary.phenomena for e in claim.contrasts.values()],
    }
    present = {name: [estimate for estimate in group if estimate is not None] for name, group in groups.items()}
    return {name: group for name, group in present.items() if group}


def _score_cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return EMPTY
    return Cell(numbers.score(estimate.value), numbers.interval(estimate.low, estimate.high))


def _ratio_cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return EMPTY
    mark = "" if numbers.is_resolved(estimate, null=1.0) else numbers.UNRESOLVED
    return Cell(numbers.score(estimate.value), numbers.interval(estimate.low, estimate.high), mark)


def _delta_cells(summary: StudySummary, deltas: Mapping[str, Estimate]) -> tuple[Cell, ...]:
    return tuple(delta_cell(deltas.get(column)) for column in summary.columns)


def _drift_cell(drift: DriftEstimate | None) -> Cell:
    if drift is None:
        return EMPTY
    bounds = "" if drift.low == drift.high else f"[{numbers.quantity(drift.low)}, {numbers.quantity(drift.high)}]"
    mark = numbers.UNRESOLVED if is_drift_noise(drift) else ""
    return Cell(numbers.quantity(drift.value), bounds, mark, _p_text(drift.p_values))


def _p_text(p_values: tuple[float, ...]) -> str:
    shown = list(dict.fromkeys(numbers.score(p) for p in sorted(p_values)))
    return "p " + "–".join(dict.fromkeys((shown[0], shown[-1]))) if shown else ""


def _floor_cell(summary: StudySummary, distance: str) -> Cell:
    floors = sorted({run.drift[distance].floor for run in trained_runs(summary) if distance in run.drift})
    texts = list(dict.fromkeys((numbers.quantity(floors[0]), numbers.quantity(floors[-1]))))
    return Cell(texts[0]) if len(texts) == 1 else Cell(" to ".join(texts))


def _budget_heading(key: str) -> str:
    if key == "flops":
        return "FLOPs"
    return key.removeprefix("num_").removesuffix("_s").replace("_", " ")


def _budget_cell(key: str, value: float | None) -> Cell:
    if value is None:
        return EMPTY
    return Cell(numbers.duration(value) if key.endswith("_s") else numbers.quantity(value))


def _table_unless_empty(title: str, caption: str, summary: StudySummary, rows: tuple[Row, ...]) -> Table | None:
    if all(cell == EMPTY for row in rows for cell in row.cells):
        return None
    return Table(title, caption, tuple(summary.columns.values()), rows)
