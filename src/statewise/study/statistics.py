"""Intervals for scores that were measured on the same items by models of several training seeds.

Items and seeds are crossed: every seed is evaluated on every item. Both vary, and an interval that forgets either is
too narrow. The variance of a mean is therefore estimated by the two-way random-effects method of moments,

    Var = V_item + V_seed - V_rest,

where V_item comes from the item means, V_seed from the seed means, and V_rest (counted in both) from the residuals.
With one seed only items vary, and the method text says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from statewise.records import Estimate

Matrix = npt.NDArray[np.float64]
LEVEL = 0.95
SEVERAL_SEEDS = "t interval, items × seeds crossed (two-way random effects, Satterthwaite degrees of freedom)"
ONE_SEED = "t interval over items; one training seed, so it says nothing about other seeds"
EXACT = "exact binomial (Clopper–Pearson) interval over items: every item has the same score"

NO_SPREAD = "no item differs from another; bound on the share that may (Clopper–Pearson), each by the most it can"


def estimate_sum(parts: Sequence[Matrix], bound: float = 1.0) -> Estimate:
    """The sum of the parts' means, with its 95 % interval.

    A part is what one task contributes, [items, seeds], already multiplied by its coefficient and paired (a difference
    is taken per item and seed before). Items of different parts are independent; seeds are the same in all parts.

    Args:
        parts: non-empty; each float64 [items_k, seeds], items_k >= 2, without nan.
        bound: the largest absolute value that an item of a part can have. It matters only where every item has the
            same value, e.g. where no answer changed: a variance of 0 would then claim certainty. Instead, a share of
            items as large as n equal ones still leave open (Clopper–Pearson) may differ by `bound`.

    Returns:
        The estimate; `num_items` is that of the smallest part.

    Source:
        Two-way crossed random effects: Searle, Casella, McCulloch, Variance Components (1992), ch. 4; degrees of
        freedom: Satterthwaite (1946).
    """
    num_seeds = parts[0].shape[1]
    smallest = min(part.shape[0] for part in parts)
    value = float(sum(part.mean() for part in parts))
    if all(np.ptp(part) == 0 for part in parts):
        half = sum(bound * (1 - ((1 - LEVEL) / 2) ** (1 / part.shape[0])) for part in parts)
        return Estimate(value, value - half, value + half, smallest, num_seeds, NO_SPREAD)
    by_item = sum(float(part.mean(axis=1).var(ddof=1)) / part.shape[0] for part in parts)
    if num_seeds == 1:
        half = _half_width(by_item, smallest - 1)
        return Estimate(value, value - half, value + half, smallest, 1, ONE_SEED)
    by_seed = float(np.sum([part.mean(axis=0) for part in parts], axis=0).var(ddof=1)) / num_seeds
    rest = sum(_residual_mean_square(part) / part.size for part in parts)
    # A moment estimate may fall below either of its parts by chance; the larger one is the safe side.
    variance = max(by_item + by_seed - rest, by_item, by_seed)
    spread = by_item**2 / (smallest - 1) + by_seed**2 / (num_seeds - 1)
    degrees = variance**2 / spread if spread > 0 else math.inf
    half = _half_width(variance, max(1.0, degrees))
    return Estimate(value, value - half, value + half, smallest, num_seeds, SEVERAL_SEEDS)


def estimate_score(scores: Matrix) -> Estimate:
    """The mean of scores, [items, seeds]; where all are in 0..1, so is the interval."""
    if scores.min() < 0 or scores.max() > 1:
        return estimate_sum([scores], float(np.abs(scores).max()))
    if np.ptp(scores) == 0:
        count = scores.shape[0]
        interval = stats.binomtest(round(scores[0, 0] * count), count).proportion_ci(LEVEL, "exact")
        return Estimate(float(scores[0, 0]), float(interval.low), float(interval.high), count, scores.shape[1], EXACT)
    found = estimate_sum([scores])
    low, high = max(0.0, found.low or 0.0), min(1.0, found.high if found.high is not None else 1.0)
    return Estimate(found.value, low, high, found.num_items, found.num_seeds, found.method)


def estimate_forgetting(base: Sequence[Matrix], post: Sequence[Matrix]) -> Estimate:
    """F = mean over retention tasks of score_base - score_post (arXiv:2605.22731, eq. 12)."""
    return estimate_sum([(b - p) / len(base) for b, p in zip(base, post, strict=True)], 1 / len(base))


def estimate_retention_ratio(base: Sequence[Matrix], post: Sequence[Matrix]) -> Estimate | None:
    """Mean over retention tasks of score_post / score_base; the interval by the delta method.

    None where the base model scores 0 on a task: there is no ratio to 0.

    A ratio r = p / b moves with an item's scores as (p_i - r b_i) / b; those values carry the interval.
    """
    if any(b.mean() == 0 for b in base):
        return None
    ratios = [float(p.mean() / b.mean()) for b, p in zip(base, post, strict=True)]
    moved = [(p - ratio * b) / (b.mean() * len(base)) for b, p, ratio in zip(base, post, ratios, strict=True)]
    around = estimate_sum(moved, 1 / (min(float(b.mean()) for b in base) * len(base)))
    value = float(np.mean(ratios))
    low = value + around.low if around.low is not None else None
    high = value + around.high if around.high is not None else None
    return Estimate(value, low, high, around.num_items, around.num_seeds, f"{around.method}; ratio by the delta method")


def _half_width(variance: float, degrees: float) -> float:
    quantile = stats.t.ppf(0.5 + LEVEL / 2, degrees) if math.isfinite(degrees) else stats.norm.ppf(0.5 + LEVEL / 2)
    return float(quantile * math.sqrt(variance))


def _residual_mean_square(part: Matrix) -> float:
    rest = part - part.mean(axis=1, keepdims=True) - part.mean(axis=0, keepdims=True) + part.mean()
    return float((rest**2).sum() / ((part.shape[0] - 1) * (part.shape[1] - 1)))
