"""Two sides, or one evaluated model, as printed in a terminal and as JSON; from records alone.

Both say the same: JSON carries what the table marks (is it resolved, and how many items would resolve it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from statewise.report import numbers
from statewise.report.tables import EMPTY, Cell, Row, Table, delta_cell, score_cell
from statewise.report.terminal import print_line, print_table
from statewise.storage.model_records import Comparison, ScoreComparison
from statewise.storage.records import Estimate

UNRESOLVED = f"{numbers.UNRESOLVED} = not resolved: the 95 % interval covers 0, so the data do not tell the sign."


def items_needed(estimate: Estimate) -> int | None:
    """Items that would at least resolve a difference of this size between two single models.

    None if it is resolved, exactly 0, or of several seeds, since more items alone do not narrow what seeds vary.
    """
    factor = numbers.data_factor(estimate)
    if factor is None or math.isinf(factor) or estimate.num_seeds > 1:
        return None
    return math.ceil(factor * estimate.num_items)


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison with, per difference, `is_resolved`, `data_factor` and `num_items_needed` (null: no number)."""
    value = asdict(comparison)
    for score, written in zip(comparison.scores, value["scores"], strict=True):
        factor = numbers.data_factor(score.difference)
        written["is_resolved"] = numbers.is_resolved(score.difference)
        written["data_factor"] = None if factor is None or math.isinf(factor) else factor
        written["num_items_needed"] = items_needed(score.difference)
    return value


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the differences with their intervals, who is right alone, and what cannot be compared."""
    print_line(console, f"A: {comparison.a}", "bold")
    print_line(console, f"B: {comparison.b}", "bold")
    print_table(console, _table(comparison))
    if any(score.gained for score in comparison.scores):
        print_table(console, _transition_table(comparison))
        for line in _unadjusted_lines(comparison):
            print_line(console, line)
    for line in (*_forgetting_lines(comparison), *_missing_lines(comparison)):
        print_line(console, line)
    _print_protocols(console, comparison.protocols)
    for task, reason in comparison.refused.items():
        print_line(console, f"! {task} is not compared: {reason}", "yellow")
    for note in comparison.notes:
        print_line(console, f"Note: {note}.", "dim")
    print_line(console, UNRESOLVED, "dim")
    for method in dict.fromkeys(score.difference.method for score in comparison.scores):
        print_line(console, f"Differences: {method}.", "dim")


def print_scores(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the scores of one evaluated model, rows as of `models.evaluation.scores_of`."""
    print_table(
        console,
        Table(
            title="Scores",
            caption="Score with its 95 % interval over items.",
            headings=("decoding", "metric", "score", "n"),
            rows=tuple(_score_row(row) for row in rows),
            heading="task",
        ),
    )
    _print_protocols(console, {row["task"]: row["protocol"] for row in rows})


def _score_row(row: dict[str, Any]) -> Row:
    estimate = Estimate(**row["estimate"])
    note = f"{row['num_unscored']} unscored" if row["num_unscored"] else ""
    cells = (Cell(row["decoding"]), Cell(row["metric"]), score_cell(estimate), Cell(f"{estimate.num_items:,}"))
    return Row(row["task"], cells, note)


def _print_protocols(console: Console, protocols: dict[str, str]) -> None:
    for task, protocol in protocols.items():
        print_line(console, f"{task}: {protocol}", "dim")


def _table(comparison: Comparison) -> Table:
    return Table(
        title="Paired differences",
        caption="B − A on the same items, with its 95 % interval; n: items × seeds. Only A/B: items that one side "
        "alone scored 1; p: exact McNemar test.",
        headings=("A", "B", "B − A", "n", "only A/B"),
        rows=tuple(
            Row(
                score.task,
                (score_cell(score.a), score_cell(score.b), delta_cell(score.difference), *_count_cells(score)),
                f"{score.decoding} {score.metric}".replace(",none", ""),
            )
            for score in comparison.scores
        ),
        heading="task",
    )


def _transition_table(comparison: Comparison) -> Table:
    return Table(
        title="Items gained (0 → 1) and lost (1 → 0), from A to B",
        caption="Share of the pairs with its 95 % interval. No guess: known to B and not to A (gained), to A and not "
        "to B (lost), if what is not known is guessed, each time anew; below 0 where the sides' wrong answers agree "
        "more than guesses would.",
        headings=("gained", "lost", "gained, no guess", "lost, no guess"),
        rows=tuple(
            Row(
                score.task,
                (
                    *(score_cell(share) for share in (score.gained, score.lost)),
                    *(delta_cell(share) for share in (score.gained_adjusted, score.lost_adjusted)),
                ),
                f"{score.decoding} {score.metric}".replace(",none", ""),
            )
            for score in comparison.scores
            if score.gained
        ),
        heading="task",
    )


def _unadjusted_lines(comparison: Comparison) -> list[str]:
    """Of which scores no guess is taken off, and why."""
    reasons: dict[str, list[str]] = {}
    for score in comparison.scores:
        if score.unadjusted:
            reasons.setdefault(score.unadjusted, []).append(f"{score.task} {score.decoding} {score.metric}")
    return [f"Not adjusted: {', '.join(names).replace(',none', '')}: {why}." for why, names in reasons.items()]


def _count_cells(score: ScoreComparison) -> list[Cell]:
    seeds = f" × {score.difference.num_seeds}" if score.difference.num_seeds > 1 else ""
    p = "" if score.mcnemar_p is None else f"p {numbers.p_value(score.mcnemar_p)}"
    alone = EMPTY if score.num_only_a is None else Cell(f"{score.num_only_a:,} / {score.num_only_b:,}", p)
    return [Cell(f"{score.difference.num_items:,}{seeds}"), alone]


def _forgetting_lines(comparison: Comparison) -> list[str]:
    """F per task, by its first score, and the mean; none where A is not the base model."""
    first = {score.task: score.forgetting for score in reversed(comparison.scores) if score.forgetting}
    lines = [f"{task} {delta_cell(first[task]).line}" for task in reversed(first)]
    if comparison.forgetting and len(comparison.forgetting_tasks) > 1:
        lines.append(f"mean over {', '.join(comparison.forgetting_tasks)} {delta_cell(comparison.forgetting).line}")
    return [f"Forgetting F = A − B, A being the base model: {'; '.join(lines)}"] if lines else []


def _missing_lines(comparison: Comparison) -> list[str]:
    """What is not resolved, and the data that would resolve it; equal answers on one line."""
    lines: dict[str, list[str]] = {}
    for score in comparison.scores:
        if missing := _missing(score.difference):
            lines.setdefault(missing, []).append(f"{score.task} {score.decoding} {score.metric}".replace(",none", ""))
    return [f"Not resolved: {', '.join(names)}. {missing}." for missing, names in lines.items()]


def _missing(estimate: Estimate) -> str:
    """What it would take to resolve a difference; "" if it is resolved."""
    factor = numbers.data_factor(estimate)
    if factor is None:
        return ""
    if math.isinf(factor):
        return "The difference is 0, so no number of items is implied"
    if factor > numbers.LARGEST_FACTOR or estimate.num_seeds > 1:
        bound = "" if factor > numbers.LARGEST_FACTOR else "at least "
        return f"A difference of this size would need {bound}{numbers.factor(factor)} the data"
    return f"A difference of this size would need at least n = {items_needed(estimate):,}"
