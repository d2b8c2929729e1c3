"""The sentences of a report: what was run, what came out, what an interval means. Generated from the data, neutral.

They say what was measured and how sure it is; what follows from it is left to the reader.
"""

from __future__ import annotations

import math

from statewise.records import Estimate, PhenomenonSummary, RunSummary, StudySummary
from statewise.report import design, numbers, tables

VERDICTS = ("holds", "does not hold", "not resolved")
VERDICT_MARKS = {"holds": "●", "does not hold": "○", "not resolved": "◐"}
UNRESOLVED_LEGEND = (
    f"{numbers.UNRESOLVED} = not resolved: the 95 % interval covers 0 (for the retention ratio: 1), "
    "so the data do not tell the sign."
)


def scope(summary: StudySummary) -> str:
    """What was run: runs, seeds, items, tasks."""
    trained = tables.trained_runs(summary)
    has_base = len(trained) < len(summary.runs)
    models = "the base model and " * has_base + plural(len(trained), "post-trained run")
    target = f"{summary.columns[summary.target]} ({_items(summary, summary.target)})" if summary.columns else ""
    retention = ", ".join(f"{summary.columns[key]} ({_items(summary, key)})" for key in summary.retention)
    sentence = f"{models}, {seeds_text(trained)}" if trained else models
    if target:
        sentence += f". Target: {target}" + f"; retention: {retention}" * bool(retention)
    return sentence[0].upper() + sentence[1:] + "."


def outcome(summary: StudySummary) -> str:
    """The verdicts counted, and the largest gain and forgetting with their intervals."""
    parts = []
    if summary.phenomena:
        counts = [(sum(claim.verdict == verdict for claim in summary.phenomena), verdict) for verdict in VERDICTS]
        counted = ", ".join(f"{count} {_verb(verdict, count)}" for count, verdict in counts if count)
        parts.append(f"Of {plural(len(summary.phenomena), 'statement')} put to the test: {counted}.")
    target = summary.target
    gains = [(run, run.against_base[target]) for run in summary.runs if target in run.against_base]
    losses = [(run, run.forgetting) for run in tables.trained_runs(summary) if run.forgetting]
    if gains:
        parts.append(_extreme(f"Largest gain on {summary.columns[target]}", gains))
    if losses:
        parts.append(_extreme("Largest mean forgetting F", losses))
    diverged = [run.label for run in summary.runs if run.num_diverged]
    if diverged:
        parts.append(f"Training diverged in at least one seed of: {', '.join(diverged)}.")
    return " ".join(parts)


def seeds_note(summary: StudySummary) -> str:
    """What the intervals cover, given how many seeds there are."""
    largest = max((run.num_seeds for run in tables.trained_runs(summary)), default=0)
    if largest == 1:
        return "One seed a run: intervals cover the choice of test items only, not the chance of training."
    return "Intervals are 95 % intervals; how each is computed is said under Methods."


def seeds_text(runs: tuple[RunSummary, ...]) -> str:
    """Seeds of the runs: 3 seeds each, 1 seed each, 1–3 seeds each."""
    counts = numbers.span(run.num_seeds for run in runs)
    return f"{counts} seed{'s' * (counts != '1')} each"


def size(estimate: Estimate) -> str:
    """N of an estimate: items and seeds."""
    return f"n = {estimate.num_items:,}, {plural(estimate.num_seeds, 'seed')}"


def missing_data(estimate: Estimate, margin: float = 0.0) -> str:
    """For an unresolved contrast the data that would resolve it from its margin, else ""."""
    factor = numbers.data_factor(estimate, margin)
    if factor is None:
        return ""
    null = numbers.delta(margin) if margin else "0"
    if math.isinf(factor):
        return f"The interval covers {null} and the estimate is {null}: no amount of data is implied."
    return (
        f"The interval covers {null}; a difference of this size would need at least {numbers.factor(factor)} the data."
    )


def identical_states(summary: StudySummary) -> str:
    """Which groups of runs trained on the same states; empty where the hashes are not shown."""
    if not design.shows_states(summary):
        return ""
    groups = design.state_groups(summary)
    named = [_group(summary, group) for group in groups]
    told = f"Trained on identical states: {'; '.join(named)}." if named else "No two runs trained on identical states."
    if design.has_partial_overlap(summary, groups):
        told += " Further runs share the states of some seeds but not of all."
    return told


def _group(summary: StudySummary, group: list[RunSummary]) -> str:
    if level := design.shared_level(summary, group):
        return f"all {len(group)} runs with {level[0]} {level[1]}"
    return ", ".join(f"“{run.label}”" for run in group)


def missing_effects(summary: StudySummary) -> str:
    """Why a response of a design has no effect sizes; empty where all have."""
    missing = [table for table in summary.effects if not table.effects]
    return " ".join(f"No effect sizes of {table.response}: {table.note}." for table in missing)


def left_out(summary: StudySummary, what: str) -> str:
    """Why a report of many runs is shorter; empty for few."""
    count = len(tables.trained_runs(summary))
    return f"{plural(count, 'run')}, so {what}." if count > tables.MOST_ROWS else ""


def methods(summary: StudySummary) -> dict[str, list[str]]:
    """How intervals were computed, in the words of the estimates: method to the kinds of numbers it was used for."""
    used: dict[str, list[str]] = {}
    for name, group in tables.all_estimates(summary).items():
        for method in sorted({estimate.method for estimate in group}):
            used.setdefault(method, []).append(name)
    return used


def verdict_mark(claim: PhenomenonSummary) -> str:
    """A sign beside the verdict's words; it stands for nothing that the words do not say."""
    return VERDICT_MARKS.get(claim.verdict, "·")


def plural(count: int, noun: str) -> str:
    """The count with its noun: 1 seed, 3 seeds."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _items(summary: StudySummary, column: str) -> str:
    counts = numbers.span(run.scores[column].num_items for run in summary.runs if column in run.scores)
    return "not evaluated" if counts == numbers.NOTHING else f"n = {counts}"


def _verb(verdict: str, count: int) -> str:
    if count == 1:
        return {"not resolved": "is not resolved"}.get(verdict, verdict)
    return {"holds": "hold", "does not hold": "do not hold"}.get(verdict, "are not resolved")


def _extreme(what: str, values: list[tuple[RunSummary, Estimate]]) -> str:
    run, estimate = max(values, key=lambda pair: pair[1].value)
    cell = tables.delta_cell(estimate)
    mark = ", not resolved" * bool(cell.mark)
    return f"{what}: {run.label}, {cell.text} {cell.interval}{mark}."
