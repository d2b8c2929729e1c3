"""The sentences of a report: what was run, what came out, what an interval means. Generated from the data, neutral.

They say what was measured and how sure it is; what follows from it is left to the reader.
"""

from __future__ import annotations

import math

from statewise.console.printing import plural
from statewise.report import design, numbers, tables
from statewise.storage.records import LEVEL, Estimate, HypothesisSummary, Largest, RunSummary, StudySummary

VERDICTS = ("holds", "does not hold", "not resolved")
# What few training seeds leave open of a hypothesis.
SCOPES = {
    1: "One training seed: a hypothesis about these weights alone. Another seed of the same recipe may differ.",
    2: "Two training seeds: how far seeds differ is known from one pair alone. Run at least three.",
}
NOT_RECORDED = "Which run has the largest gain and F was not recorded by the version that wrote these results."
MOST_NAMES = 4
VERDICT_MARKS = {"holds": "●", "does not hold": "○", "not resolved": "◐"}
UNRESOLVED_LEGEND = (
    f"{numbers.UNRESOLVED} = not resolved: the interval covers 0 (for the retention ratio: 1), "
    "so the data do not tell the sign."
)


def scope(summary: StudySummary) -> str:
    """What was run: runs, seeds, items, tasks."""
    trained = tables.trained_runs(summary)
    has_base = len(trained) < len(summary.runs)
    models = "the base model and " * has_base + plural(len(trained), "post-trained run")
    target = f"{summary.columns[summary.target]} ({_items(summary, summary.target)})" if summary.columns else ""
    retention = ", ".join(f"{summary.columns[key]} ({_items(summary, key)})" for key in summary.retention)
    counts = numbers.span(run.num_seeds for run in trained)
    sentence = f"{models}, {counts} seed{'s' * (counts != '1')} each" if trained else models
    if target:
        sentence += f". Target: {target}" + f"; retention: {retention}" * bool(retention)
    return sentence[0].upper() + sentence[1:] + "."


def answer(summary: StudySummary) -> tuple[str, str, str]:
    """What came out: the largest gain and the F beside it, the largest F and the gain beside it, what is undecided.

    The interval of a largest value holds for all runs at once, since the data chose the run; one beside it is its own.
    """
    return _gained(summary), _forgot(summary), _undecided(summary)


def _gained(summary: StudySummary) -> str:
    gains = _estimates(summary, "gain")
    largest = next((one for one in summary.largest if one.response == "gain"), None)
    if not gains or largest is None:
        return "No gain was measured: no run was evaluated beside the base model." if not gains else NOT_RECORDED
    target = summary.columns[summary.target]
    told = f"{'largest ' * (len(gains) > 1)}gain on {target}: {_largest(summary, largest)}"
    beside = [estimate for arm, estimate in _estimates(summary, "forgetting").items() if largest.arms == (arm,)]
    told += "".join(f", beside F {_with_interval(estimate)}" for estimate in beside)
    return _capital(told if largest.estimate.value > 0 else f"no run improved {target}; {told}")


def _forgot(summary: StudySummary) -> str:
    gains, losses = _estimates(summary, "gain"), _estimates(summary, "forgetting")
    largest = next((one for one in summary.largest if one.response == "forgetting"), None)
    if not losses or largest is None:
        reason = "no run was evaluated beside the base model" if summary.retention else "the study retains no task"
        return f"Forgetting was not measured: {reason}." if not losses else NOT_RECORDED
    told = f"{'largest ' * (len(losses) > 1)}mean forgetting F: {_largest(summary, largest)}"
    beside = [estimate for arm, estimate in gains.items() if largest.arms == (arm,) and len(losses) > 1]
    told += "".join(f", beside gain {_with_interval(estimate)}" for estimate in beside)
    if len({gain.value for gain in gains.values()}) > 1:
        told += "; the runs differ in gain, so their F are not compared at equal gain"
    return _capital(told if largest.estimate.value > 0 else f"no run forgot on average; {told}")


def _undecided(summary: StudySummary) -> str:
    """The verdicts counted; how many gains and F are not resolved; what has no numbers, or those of one seed."""
    parts = []
    if summary.hypotheses:
        counts = [(sum(one.verdict == verdict for one in summary.hypotheses), verdict) for verdict in VERDICTS]
        counted = ", ".join(f"{count} {_verb(verdict, count)}" for count, verdict in counts if count)
        of_one_seed = [_num_seeds(hypothesis) == 1 for hypothesis in summary.hypotheses]
        weights = f", {'' if all(of_one_seed) else 'some '}of the weights of one seed" if any(of_one_seed) else ""
        parts.append(f"of {plural(len(summary.hypotheses), 'hypothesis')} put to the test{weights}: {counted}")
    trained = tables.trained_runs(summary)
    gains, losses = _estimates(summary, "gain"), _estimates(summary, "forgetting")
    open_ones = [
        f"{sum(bool(numbers.mark(one)) for one in found.values())} of {len(found)} {name}"
        for name, found in (("gains", gains), ("F", losses))
        if found
    ]
    if open_ones:
        is_held = any(one.p_adjusted is not None for one in gains.values()) and len(gains) > 1
        parts.append(f"{' and '.join(open_ones)} are not resolved" + ", all runs held together" * is_held)
    if without := [run.label for run in trained if run.arm not in gains]:
        parts.append(f"without numbers: {_listed(without)}")
    if diverged := [run.label for run in trained if run.num_diverged and run.num_seeds]:
        parts.append(f"in some seeds diverged: {_listed(diverged)}")
    if max((run.num_seeds for run in trained), default=0) == 1:
        parts.append("one seed a run, so nothing is said of another training")
    return _capital("; ".join(parts) or "nothing was measured")


def _estimates(summary: StudySummary, response: str) -> dict[str, Estimate]:
    """The gain on the target, or F, of every run that has one, by arm."""
    found = {
        run.arm: run.against_base.get(summary.target) if response == "gain" else run.forgetting
        for run in tables.trained_runs(summary)
        if summary.columns
    }
    return {arm: estimate for arm, estimate in found.items() if estimate is not None}


def _listed(names: list[str]) -> str:
    """Names, of many the first ones."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _capital(sentence: str) -> str:
    return f"{sentence[0].upper()}{sentence[1:]}."


def seeds_note(summary: StudySummary) -> str:
    """What the intervals cover, given how many seeds there are."""
    largest = max((run.num_seeds for run in tables.trained_runs(summary)), default=0)
    if largest == 1:
        return "One seed a run: intervals cover the choice of test items only, not the chance of training."
    return "Intervals without a level are 95 % intervals; how each is computed is said under Methods."


def size(estimate: Estimate) -> str:
    """N of an estimate: items and seeds."""
    level = "" if estimate.level == LEVEL else f"{numbers.percent(estimate.level)} interval, "
    return f"{level}n = {estimate.num_items:,}, {plural(estimate.num_seeds, 'seed')}"


def scope_of_hypothesis(hypothesis: HypothesisSummary) -> str:
    """What the hypothesis is about, where few training seeds narrow it; else empty."""
    return SCOPES.get(_num_seeds(hypothesis), "")


def p_adjusted(hypothesis: HypothesisSummary) -> str:
    """The p-value that the verdict is taken from; empty in a record without one."""
    return "" if hypothesis.p_adjusted is None else f"p = {numbers.p_value(hypothesis.p_adjusted)}"


def hypothesis_family(summary: StudySummary) -> str:
    """How the hypotheses are held together; empty for one alone."""
    if len(summary.hypotheses) < 2:
        return ""
    return (
        f"The {len(summary.hypotheses)} hypotheses are one family: Holm’s procedure keeps the chance of any false "
        "verdict among them at .05. Their p is adjusted; an interval has the level that decided its hypothesis."
    )


def run_family(summary: StudySummary) -> str:
    """How gain and F are held together over the runs; empty for one run."""
    num_runs = max((largest.num_runs for largest in summary.largest), default=0)
    if num_runs < 2:
        return ""
    return (
        f"Gain on the target and mean forgetting are held together over the {num_runs} runs, each by Holm’s "
        f"procedure. {numbers.ALONE} = the run’s own 95 % interval leaves out 0, but its adjusted p is .05 or more, "
        "since one of so many may do so by chance. Other intervals are not adjusted for their number."
    )


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


def verdict_mark(hypothesis: HypothesisSummary) -> str:
    """A sign beside the verdict's words; it stands for nothing that the words do not say."""
    return VERDICT_MARKS.get(hypothesis.verdict, "·")


def _items(summary: StudySummary, column: str) -> str:
    counts = numbers.span(run.scores[column].num_items for run in summary.runs if column in run.scores)
    return "not evaluated" if counts == numbers.NOTHING else f"n = {counts}"


def _num_seeds(hypothesis: HypothesisSummary) -> int:
    return min((estimate.num_seeds for estimate in hypothesis.contrasts.values()), default=0)


def _verb(verdict: str, count: int) -> str:
    if count == 1:
        return {"not resolved": "is not resolved"}.get(verdict, verdict)
    return {"holds": "hold", "does not hold": "do not hold"}.get(verdict, "are not resolved")


def _largest(summary: StudySummary, largest: Largest) -> str:
    """The run with its value and the interval that holds for all runs at once; of a tie, all of its runs."""
    names = [tables.label_of(summary, arm) for arm in largest.arms]
    cell, over = tables.delta_cell(largest.estimate), ""
    if largest.num_runs > 1:
        over = f", for all {largest.num_runs} runs at once"
    level = "" if largest.estimate.low is None else f" ({numbers.percent(largest.estimate.level)} interval{over})"
    told = f"{cell.text} {cell.interval}{level}" + ", not resolved" * bool(cell.mark)
    return f"{names[0]}, {told}" if len(names) == 1 else f"{told}, a tie of {len(names)} runs ({_listed(names)})"


def _with_interval(estimate: Estimate) -> str:
    """A difference with its own interval, and in words what its mark says."""
    cell = tables.delta_cell(estimate)
    words = {"": "", numbers.UNRESOLVED: ", not resolved", numbers.ALONE: ", resolved alone but not among all runs"}
    return f"{cell.text} {cell.interval}{words[cell.mark]}"
