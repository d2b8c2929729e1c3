"""`statewise compare`: two sides, item by item, on the tasks that both were asked in the same way.

Items are paired; where limits differ, those that both sides have. Seeds are paired by number, which is right for seeds
of one run and costs only degrees of freedom for others. One model against several seeds is compared with each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from statewise.console.printing import plural
from statewise.errors import UsageError
from statewise.folder.item_scores import ItemScores, lay_out
from statewise.folder.protocol import comparable, differing_parts, without_limit
from statewise.models.model_folder import is_base_of
from statewise.models.sides import UNKNOWN, Side
from statewise.plan.dag import BASE
from statewise.results.intervals import weigh_forgetting
from statewise.results.transitions import compare_column
from statewise.storage.integrity import NOT_VERIFIED
from statewise.storage.model_records import Comparison, ScoreComparison
from statewise.storage.records import Estimate
from statewise.types import Matrix


@dataclass
class _Found:
    """What the comparison of the tasks yields."""

    scores: list[ScoreComparison] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    primary: dict[str, tuple[Matrix, Matrix]] = field(default_factory=dict)


def compare(a: Side, b: Side) -> Comparison:
    """B against A on every task that both were evaluated on, under the same protocol, on the same items.

    Raises:
        UsageError: they share no task, no task can be compared, or no seed.
    """
    shared = [task for task in a.tasks if task in b.tasks]
    if not shared:
        raise UsageError(
            f"{a.label} and {b.label} share no task ({', '.join(a.tasks)}; {', '.join(b.tasks)}); evaluate both on one"
        )
    seeds_a, seeds_b, found = *_align(a, b), _Found()
    found.notes += _notes_on_seeds(a, b, seeds_a, seeds_b)
    found.notes += [f"{side.label}: {NOT_VERIFIED}" for side in (a, b) if side.is_older]
    for side in (a, b):
        found.notes += [f"{side.label}: {note}" for note in side.notes]
        found.refused |= {what: f"{why} ({side.label})" for what, why in side.refused.items()}
    alone = [task for task in (*a.tasks, *b.tasks) if task not in shared]
    found.notes += [f"on one side only: {', '.join(alone)}"] * bool(alone)
    is_base = is_base_of(a.weights_sha256, a.origin.arm, b.origin) and b.origin.arm != BASE
    target = a.target or b.target
    for task in shared:
        reason = _refusal(a, b, task)
        if reason:
            found.refused[task] = reason
            continue
        _compare_task(found, a, b, (seeds_a, seeds_b), task)
    if not found.scores:
        raise UsageError("; ".join(f"{task} cannot be compared: {why}" for task, why in found.refused.items()))
    unknown = [task for task in found.primary if not (task in a.digests and task in b.digests)]
    if unknown:
        found.notes.append(f"items are paired by number, without a digest in an older record: {', '.join(unknown)}")
    if a.devices and b.devices and a.devices != b.devices:
        computed = "; ".join(f"{side.label} on {' and '.join(sorted(side.devices))}" for side in (a, b))
        found.notes.append(f"not computed alike: {computed}")
    wanted = b.origin.retention or a.origin.retention
    retention = tuple(task for task in found.primary if (task in wanted if wanted else task != target))
    return Comparison(
        a=a.label,
        b=b.label,
        scores=tuple(
            replace(score, forgetting=score.difference.negated) if is_base and score.task in retention else score
            for score in found.scores
        ),
        protocols={task: _common_protocol(a, b, task) for task in found.primary},
        refused=found.refused,
        notes=tuple(found.notes),
        forgetting=_mean_forgetting(found, retention) if is_base and retention else None,
        forgetting_tasks=retention if is_base else (),
    )


def _align(a: Side, b: Side) -> tuple[list[int], list[int]]:
    """The seeds of both sides, pair by pair; one model is paired with each of the other side.

    The base model is one and the same in every seed of a run, so it follows the seeds of the other side.
    """
    both = [seed for seed in a.seeds if seed in b.seeds]
    is_single = len(a.seeds) == 1 or len(b.seeds) == 1
    if is_single and not (both and BASE in (a.origin.arm, b.origin.arm)):
        return list(a.seeds), list(b.seeds)
    if not both:
        raise UsageError(
            f"{a.label} has seeds {', '.join(map(str, a.seeds))} and {b.label} {', '.join(map(str, b.seeds))}, none in "
            "common; compare single seeds, RUN:ARM:SEED"
        )
    return both, both


def _notes_on_seeds(a: Side, b: Side, seeds_a: list[int], seeds_b: list[int]) -> list[str]:
    notes = []
    for side, used in ((a, seeds_a), (b, seeds_b)):
        left = [str(seed) for seed in side.seeds if seed not in used]
        is_missed = bool(left) and side.origin.arm != BASE
        notes += [f"{side.label}: seeds {', '.join(left)} have no partner and are left out"] * is_missed
    if len(seeds_a) != len(seeds_b):
        one, several = (a, b) if len(seeds_a) == 1 else (b, a)
        notes.append(f"{one.label} is one model: intervals cover the seeds of {several.label} only")
    return notes


def _refusal(a: Side, b: Side, task: str) -> str:
    """Why a task cannot be compared; "" if it can."""
    protocols = sorted((a.protocols[task] | b.protocols[task]) - {UNKNOWN})
    if len({comparable(protocol) for protocol in protocols}) > 1:
        ours, theirs = (comparable(sorted(side.protocols[task])[end]) for side, end in ((a, 0), (b, -1)))
        if ours == theirs:  # the seeds of one side differ
            ours, theirs = comparable(protocols[0]), comparable(protocols[-1])
        parts = differing_parts(ours, theirs)
        return f"its protocol differs: A {parts[0] or 'without that'}, B {parts[1] or 'without that'}"
    columns = [{column for column in next(iter(side.scores.values())) if column.task == task} for side in (a, b)]
    if not columns[0] & columns[1]:
        asked = (", ".join(sorted(f"{one.decoding} {one.metric}" for one in side)) for side in columns)
        return "no score in common: A {}, B {}".format(*asked)
    if len(protocols) > 1 or a.is_log or b.is_log:
        return _refusal_of_common(a, b, task)
    if len(a.digests.get(task, set()) | b.digests.get(task, set())) > 1:
        return "its items differ: same name and protocol, but other documents or prompts (items_sha256)"
    numbers = {one.items for side in _scores_of(a, b, task) for one in side}
    if len(numbers) > 1:
        sizes = sorted({len(number) for number in numbers})
        return f"its items differ: {' and '.join(map(str, sizes))} items, or other numbers"
    return "it has a single item, of which no interval can be given" if len(next(iter(numbers))) < 2 else ""


def _refusal_of_common(a: Side, b: Side, task: str) -> str:
    """The same where limits differ: each common item has to be one and the same document and prompt."""
    common = _common_items(a, b, task)
    digests: dict[int | str, set[str | None]] = {item: set() for item in common}
    for one in (one.take(common) for side in _scores_of(a, b, task) for one in side):
        for item, digest in zip(one.items, one.digests, strict=True):
            digests[item].add(digest)
    if any(None in found for found in digests.values()):
        return "its limits differ, and an older record does not tell which items are the same; evaluate that side again"
    if others := [item for item, found in digests.items() if len(found) > 1]:
        return f"its items differ: {len(others)} of the same number are other documents or prompts (item_sha256)"
    if len(common) < 2:
        return f"its items differ: the sides have {plural(len(common), 'item')} in common; evaluate both on more"
    return ""


def _scores_of(a: Side, b: Side, task: str) -> list[list[ItemScores]]:
    """The scores of either side that every seed of both has: another one may be of fewer items."""
    every = [{column for column in scores if column.task == task} for side in (a, b) for scores in side.scores.values()]
    shared = set.intersection(*every)
    return [
        [scores[column] for scores in side.scores.values() for column in scores if column in shared] for side in (a, b)
    ]


def _common_items(a: Side, b: Side, task: str) -> set[int | str]:
    """The items that every seed of both sides was evaluated on."""
    return set.intersection(*(set(one.items) for side in _scores_of(a, b, task) for one in side))


def _common_protocol(a: Side, b: Side, task: str) -> str:
    protocols = sorted((a.protocols[task] | b.protocols[task]) - {UNKNOWN}) or [UNKNOWN]
    return protocols[0] if len(protocols) == 1 else without_limit(protocols[0])


def _compare_task(found: _Found, a: Side, b: Side, seeds: tuple[list[int], list[int]], task: str) -> None:
    first, other = a.scores[seeds[0][0]], b.scores[seeds[1][0]]
    common = _common_items(a, b, task)
    sizes = [max(len(one.items) for one in side) for side in _scores_of(a, b, task)]
    if sizes != [len(common)] * 2:
        told = " and ".join(f"{size:,} of {side.label}" for side, size in zip((a, b), sizes, strict=True))
        limits = "" if a.is_log or b.is_log else "limits differ; "
        found.notes.append(f"{task}: {limits}compared on the {len(common):,} items in common, of {told}")
    alone = [column for column in {**first, **other} if column.task == task and (column in first) != (column in other)]
    if alone:
        told = ", ".join(f"{column.decoding} {column.metric}" for column in alone)
        found.notes.append(f"{task}: on one side only: {told}")
    for column in (column for column in first if column.task == task and column in other):
        sides = zip((a, b), seeds, strict=True)
        ours, theirs = ([side.scores[s][column].take(common) for s in own] for side, own in sides)
        for side, models in ((a, ours), (b, theirs)):
            if count := sum(one.num_unscored for one in models):
                asked = f"{side.label}, {task} {column.decoding}"
                found.notes.append(f"{asked}: {count} unscored answers count as not correct")
        matrices = lay_out(ours), lay_out(theirs)
        # The items are the same; a log without its results does not tell of how many choices.
        chances = np.where(np.isnan(ours[0].chances), theirs[0].chances, ours[0].chances)
        compared = compare_column(column, *matrices, chances)
        found.scores.append(replace(compared, num_items_a=sizes[0], num_items_b=sizes[1]))
        found.primary.setdefault(task, matrices)


def _mean_forgetting(found: _Found, tasks: tuple[str, ...]) -> Estimate:
    pairs = [np.broadcast_arrays(*found.primary[task]) for task in tasks]
    return weigh_forgetting([a for a, _ in pairs], [b for _, b in pairs]).estimate()
