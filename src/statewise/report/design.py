"""A factorial design as a report sees it: its axes, its cells panel by panel, and which runs shared their states.

From the `levels` and `state_hashes` of the runs alone; tables, figures and sentences are made of what is found here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from statewise.storage.records import Estimate, RunSummary, StudySummary

# Digits of a hash that are shown: 48 bits.
SHOWN_DIGITS = 12
FORGETTING = "Mean forgetting F"


@dataclass(frozen=True)
class Panel:
    """Two axes at fixed levels of all others, which `title` names; `runs` has no entry for a cell that is not there."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    runs: dict[tuple[str, str], RunSummary]


def axes_of(summary: StudySummary) -> dict[str, tuple[str, ...]]:
    """Axes with at least two levels, in order of appearance."""
    designed = [run.levels for run in summary.runs if run.levels]
    names = dict.fromkeys(axis for levels in designed for axis in levels)
    axes = {axis: tuple(dict.fromkeys(levels[axis] for levels in designed if axis in levels)) for axis in names}
    return {axis: levels for axis, levels in axes.items() if len(levels) > 1}


def panels_of(summary: StudySummary) -> list[Panel]:
    """One panel per combination of levels of the axes after the first two; none where there are not two axes."""
    axes = axes_of(summary)
    if len(axes) < 2:
        return []
    (row_axis, rows), (column_axis, columns), *others = axes.items()
    panels = []
    for fixed in product(*(levels for _, levels in others)):
        wanted = dict(zip((axis for axis, _ in others), fixed, strict=True))
        runs = {
            (run.levels[row_axis], run.levels[column_axis]): run
            for run in summary.runs
            if run.levels and all(run.levels.get(axis) == level for axis, level in wanted.items())
        }
        if runs:
            panels.append(Panel(", ".join(f"{axis} {level}" for axis, level in wanted.items()), rows, columns, runs))
    return panels


def responses_of(summary: StudySummary) -> list[str]:
    """What the cells are compared in: gain, and forgetting where it was measured."""
    gain = f"Gain on {summary.columns[summary.target]}" if summary.columns else ""
    has = [any(response_of(summary, run, name) for run in summary.runs) for name in (gain, FORGETTING)]
    return [name for name, is_there in zip((gain, FORGETTING), has, strict=True) if is_there]


def response_of(summary: StudySummary, run: RunSummary, response: str) -> Estimate | None:
    """The run's estimate of one of `responses_of`."""
    return run.forgetting if response == FORGETTING else run.against_base.get(summary.target)


def shows_states(summary: StudySummary) -> bool:
    """Whether the hashes of training states say something: the study is a design, or two runs share one."""
    hashed = [run for run in summary.runs if run.state_hashes]
    return bool(hashed) and (any(run.levels for run in summary.runs) or bool(letters_of(summary)))


def letters_of(summary: StudySummary) -> dict[tuple[str, str], str]:
    """A letter for each (seed, hash) that at least two runs share, in order of appearance within the seed."""
    counts: dict[tuple[str, str], int] = {}
    for run in summary.runs:
        for key in run.state_hashes.items():
            counts[key] = counts.get(key, 0) + 1
    letters: dict[tuple[str, str], str] = {}
    used: dict[str, int] = {}
    for seed, state_hash in counts:
        if counts[seed, state_hash] > 1:
            letters[seed, state_hash] = _letter(used.get(seed, 0))
            used[seed] = used.get(seed, 0) + 1
    return letters


def state_groups(summary: StudySummary) -> list[list[RunSummary]]:
    """Groups of at least two runs whose hashes agree in every seed that they have in common."""
    groups: list[list[RunSummary]] = []
    for run in summary.runs:
        fitting = next((group for group in groups if all(_agree(run, other) for other in group)), None)
        if fitting is not None:
            fitting.append(run)
        elif run.state_hashes:
            groups.append([run])
    return [group for group in groups if len(group) > 1]


def has_partial_overlap(summary: StudySummary, groups: list[list[RunSummary]]) -> bool:
    """Whether two runs of different groups, or of none, share a hash."""
    home = {run.arm: index for index, group in enumerate(groups) for run in group}
    for seed, state_hash in letters_of(summary):
        sharing = [run.arm for run in summary.runs if run.state_hashes.get(seed) == state_hash]
        if len({home.get(arm, arm) for arm in sharing}) > 1:
            return True
    return False


def shared_level(summary: StudySummary, group: list[RunSummary]) -> tuple[str, str] | None:
    """The axis and level whose runs, as far as they were trained, are exactly those of `group`."""
    arms = {run.arm for run in group}
    for axis, levels in axes_of(summary).items():
        for level in levels:
            if arms == {run.arm for run in summary.runs if run.levels.get(axis) == level and run.state_hashes}:
                return axis, level
    return None


def _agree(one: RunSummary, other: RunSummary) -> bool:
    common = one.state_hashes.keys() & other.state_hashes.keys()
    return bool(common) and all(one.state_hashes[seed] == other.state_hashes[seed] for seed in common)


def _letter(index: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    letter = chr(ord("A") + index % 26)
    return _letter(index // 26 - 1) + letter if index >= 26 else letter


def has_drift_intervals(summary: StudySummary) -> bool:
    """Whether drift has intervals over seeds, which one seed does not."""
    return any(drift.low is not None for run in summary.runs for drift in run.drift.values())


def drift_basis(summary: StudySummary) -> str:
    """What distances, intervals and p of drift are of, up to what p is about."""
    if has_drift_intervals(summary):
        return "Mean over seeds with its 95 % interval over seeds, and one p for all seeds: that in none the states"
    return "Of one seed, which has no interval over seeds, and its p: that the states do not"
