"""Intervals for scores that were measured on the same items by models of several training seeds.

Items and seeds are crossed: every seed is evaluated on every item. Both vary, and an interval that forgets either is
too narrow. With one seed only items vary, and the method text says so. Where few items differ, or none, a variance
says too little: pseudo-items, the test of the items that changed, and a bound on those that may keep the level.
docs/statistics.md explains each method, and holds how often these intervals cover a known truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from statewise.storage.records import LEVEL, Estimate
from statewise.types import Matrix

Interval = tuple[float, float]

SEVERAL_SEEDS = "t interval, items × seeds crossed (two-way random effects)"
ONE_SEED = "t interval over items; one training seed, so it says nothing about other seeds"
OF_SCORE = "two pseudo-items at either end of 0..1"
OF_DIFFERENCE = "pseudo-items, and the exact test of the items that changed where these are few"
NO_SPREAD = "no item differs from another; bound on the share that may (Clopper–Pearson), each by the most it can"
UNKNOWN_RANGE = "no interval: no item differs from another, and how far one may is unknown, as scores lie outside 0..1"

# A spread below this share of the largest value is rounding.
ROUNDING = 1e-12
# The smallest p that is told apart from 0.
LEAST_P = 1e-12
# Agresti and Coull (1998): two successes and two failures.
ENDS = np.array([0.0, 0.0, 1.0, 1.0])


def is_constant(values: Matrix) -> bool:
    """Whether values are equal but for rounding."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


@dataclass(frozen=True)
class Part:
    """What one task adds to a number: `values`, [items, seeds], coefficient included, and the range of each of them."""

    values: Matrix
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Evidence:
    """What the data say of one number: its intervals at any level, and the p-values that agree with them.

    `interval` takes a level and returns both ends; None where no interval can be given.
    """

    value: float
    num_items: int
    num_seeds: int
    method: str
    interval: Callable[[float], Interval] | None

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The number with its interval of `level`, 0..1."""
        low, high = self.interval(level) if self.interval else (None, None)
        return Estimate(self.value, low, high, self.num_items, self.num_seeds, self.method, level)

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p of `null`: the smallest α whose 1 − α interval leaves it out, by bisection; 1 without interval.

        Interval and p thus never contradict each other. Below `LEAST_P` it is `LEAST_P`.
        """
        if self.interval is None:
            return 1.0
        least, most = math.log(LEAST_P), 0.0
        while most - least > 1e-7:
            middle = (least + most) / 2
            low, high = self.interval(1 - math.exp(middle))
            least, most = (least, middle) if null < low or null > high else (middle, most)
        return math.exp(most)


def weigh_sum(parts: Sequence[Part]) -> Evidence:
    """The sum of the parts' means; a part holds differences, taken per item and seed before.

    Items of different parts are independent; seeds are the same in all parts. Parts in which nothing differs say that
    few items may, not that none does: pseudo-items in either direction stand for these in every part.

    Args:
        parts: non-empty; items_k >= 2, the same seeds in all, without nan.

    Returns:
        The evidence; `num_items` is that of the smallest part.

    Source:
        Two-way crossed random effects: Searle, Casella, McCulloch, Variance Components (1992), ch. 4; pseudo-items:
        Bonett and Price (2012), there for paired proportions; test of the changed items: McNemar (1947), for values
        other than −1, 0, 1 with the effective number of items of Korn and Graubard (1998).
    """
    value = float(sum(part.values.mean() for part in parts))
    num_items, num_seeds = min(part.values.shape[0] for part in parts), parts[0].values.shape[1]
    still = [part for part in parts if is_constant(part.values)]
    if any(not math.isfinite(part.high - part.low) for part in still):
        return Evidence(value, num_items, num_seeds, UNKNOWN_RANGE, None)
    ends = sum(part.low for part in parts), sum(part.high for part in parts)
    if len(still) == len(parts):
        return Evidence(value, num_items, num_seeds, NO_SPREAD, lambda level: _clip(_bound(parts, level), ends))
    spread = _spread(parts, [_unseen(part) for part in parts])
    changes = np.concatenate([part.values.mean(axis=1) / part.values.shape[0] for part in parts])
    method = f"{ONE_SEED if num_seeds == 1 else SEVERAL_SEEDS}; {OF_DIFFERENCE}"

    def interval(level: float) -> Interval:
        (low, high), (lowest, highest) = spread.interval(level), _interval_of_changes(changes, level)
        return _clip((min(low, lowest), max(high, highest)), ends)

    return Evidence(value, num_items, num_seeds, method, interval)


def weigh_difference(scores: Matrix, than: Matrix) -> Evidence:
    """The mean of `scores` minus `than`, [items, seeds] or [items, 1], paired."""
    return weigh_sum([_difference(scores, than)])


def weigh_forgetting(base: Sequence[Matrix], post: Sequence[Matrix]) -> Evidence:
    """F = mean over retention tasks of score_base - score_post (arXiv:2605.22731, eq. 12)."""
    parts = [_difference(b, p) for b, p in zip(base, post, strict=True)]
    return weigh_sum([Part(part.values / len(base), part.low / len(base), part.high / len(base)) for part in parts])


def estimate_score(scores: Matrix) -> Estimate:
    """The mean of scores, [items, seeds]; where all are in 0..1, so is the interval.

    Source:
        Agresti and Coull (1998) for the pseudo-items. Items that all have the same score v leave open that a share q of
        items, as large as n equal ones allow (Clopper–Pearson), lies anywhere in 0..1: v (1 − q) .. v (1 − q) + q.
    """
    part = Part(scores, *_range(scores))
    value, (num_items, num_seeds) = float(scores.mean()), scores.shape
    is_bounded = math.isfinite(part.high)
    if is_constant(part.values):
        interval = (lambda level: _bound([part], level)) if is_bounded else None
        return Evidence(value, num_items, num_seeds, NO_SPREAD if interval else UNKNOWN_RANGE, interval).estimate()
    spread = _spread([part], [ENDS if is_bounded else np.array([])])
    method = (ONE_SEED if num_seeds == 1 else SEVERAL_SEEDS) + f"; {OF_SCORE}" * is_bounded
    ends = part.low, part.high
    return Evidence(value, num_items, num_seeds, method, lambda level: _clip(spread.interval(level), ends)).estimate()


def estimate_retention_ratio(base: Sequence[Matrix], post: Sequence[Matrix]) -> Estimate | None:
    """Mean over retention tasks of score_post / score_base; the interval by the delta method.

    None where the base model scores 0 on a task: there is no ratio to 0.

    A ratio r = p / b moves with an item's scores as (p_i - r b_i) / b; those values carry the interval.
    """
    if any(b.mean() == 0 for b in base):
        return None
    ratios = [float(p.mean() / b.mean()) for b, p in zip(base, post, strict=True)]
    moved = []
    for b, p, ratio in zip(base, post, ratios, strict=True):
        scale = float(b.mean()) * len(base)
        is_bounded = math.isfinite(_range(b)[1] + _range(p)[1])
        low, high = (-ratio / scale, 1 / scale) if is_bounded else (-math.inf, math.inf)
        moved.append(Part((p - ratio * b) / scale, low, high))
    around = weigh_sum(moved).estimate()
    value = float(np.mean(ratios))
    lowest, highest = (None if end is None else value + end for end in (around.low, around.high))
    return Estimate(
        value, lowest, highest, around.num_items, around.num_seeds, f"{around.method}; ratio by the delta method"
    )


@dataclass(frozen=True)
class _Spread:
    """A centre and the variances around it: of item means, of seed means, and what is counted in both."""

    center: float
    by_item: float
    by_seed: float
    rest: float
    num_items: int
    num_seeds: int

    def interval(self, level: float) -> Interval:
        """Centre ± h, h² = t²(n − 1) max(V_item − V_rest, 0) + t²(s − 1) V_seed, at least t²(n − 1) V_item."""
        of_items = float(special.stdtrit(self.num_items - 1, (1 + level) / 2)) ** 2
        square = of_items * self.by_item
        if self.num_seeds > 1:
            of_seeds = float(special.stdtrit(self.num_seeds - 1, (1 + level) / 2)) ** 2
            square = max(square, of_items * max(self.by_item - self.rest, 0.0) + of_seeds * self.by_seed)
        return self.center - math.sqrt(square), self.center + math.sqrt(square)


def _spread(parts: Sequence[Part], pseudo: Sequence[Matrix]) -> _Spread:
    """The moments of the parts; `pseudo` are item means that are added to each part's own."""
    num_seeds = parts[0].values.shape[1]
    means = [np.concatenate([part.values.mean(axis=1), more]) for part, more in zip(parts, pseudo, strict=True)]
    by_seed = rest = 0.0
    if num_seeds > 1:
        by_seed = float(np.sum([part.values.mean(axis=0) for part in parts], axis=0).var(ddof=1)) / num_seeds
        rest = sum(_residual_mean_square(part.values) / part.values.size for part in parts)
    return _Spread(
        center=float(sum(one.mean() for one in means)),
        by_item=sum(float(one.var(ddof=1)) / one.size for one in means),
        by_seed=by_seed,
        rest=rest,
        num_items=min(part.values.shape[0] for part in parts),
        num_seeds=num_seeds,
    )


def _interval_of_changes(changes: Matrix, level: float) -> Interval:
    """Σ changes, given how much changed: only its direction is uncertain.

    With changes of equal size, b up and c down, this is (b + c) (2 π − 1) times that size with the Clopper–Pearson
    interval of π = b / (b + c): it leaves out 0 exactly where McNemar's exact test has p < 1 − level.
    """
    up, total = float(changes[changes > 0].sum()), float(np.abs(changes).sum())
    if total == 0:  # the changes of each item cancel over the seeds
        return 0.0, 0.0
    number = total**2 / float((changes**2).sum())
    count = number * up / total
    tail = (1 - level) / 2
    low = float(special.betaincinv(count, number - count + 1, tail)) if up > 0 else 0.0
    high = float(special.betaincinv(count + 1, number - count, 1 - tail)) if up < total else 1.0
    return total * (2 * low - 1), total * (2 * high - 1)


def _bound(parts: Sequence[Part], level: float) -> Interval:
    """Ends of a sum whose items show no spread: a share q of them may lie at the end of their range, unseen."""
    low = high = 0.0
    for part in parts:
        value = float(part.values.mean())
        share = 1 - ((1 - level) / 2) ** (1 / part.values.shape[0])
        low, high = low + value + share * (part.low - value), high + value + share * (part.high - value)
    return low, high


def _difference(scores: Matrix, than: Matrix) -> Part:
    reach = 1.0 if math.isfinite(_range(scores)[1] + _range(than)[1]) else math.inf
    return Part(scores - than, -reach, reach)


def _range(scores: Matrix) -> Interval:
    return (0.0, 1.0) if scores.min() >= 0 and scores.max() <= 1 else (-math.inf, math.inf)


def _unseen(part: Part) -> Matrix:
    """A part's pseudo-items: one in either direction, as large as the largest value that was seen.

    Where no item differs, two as large as can be: at 95 % they reach 3.9 / n, `_bound` 3.7 / n.
    """
    if is_constant(part.values):
        return max(-part.low, part.high) * np.array([-1.0, -1.0, 1.0, 1.0])
    return float(np.abs(part.values).max()) * np.array([-1.0, 1.0])


def _clip(interval: Interval, ends: Interval) -> Interval:
    return max(interval[0], ends[0]), min(interval[1], ends[1])


def _residual_mean_square(part: Matrix) -> float:
    rest = part - part.mean(axis=1, keepdims=True) - part.mean(axis=0, keepdims=True) + part.mean()
    return float((rest**2).sum() / ((part.shape[0] - 1) * (part.shape[1] - 1)))
