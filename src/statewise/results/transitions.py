"""Two sides' scores of one column, item by item: the difference, and the items gained (0 → 1) and lost (1 → 0).

A guess among k choices moves from right to wrong and back though nothing was learned or forgotten. The adjusted shares
estimate how many items became known, and how many are known no more; docs/statistics.md derives them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from statewise.folder.item_scores import Column
from statewise.results.intervals import Evidence, Part, estimate_score, weigh_difference, weigh_sum
from statewise.storage.model_records import ScoreComparison
from statewise.types import Matrix

GENERATED = "answers are written, not chosen, so no guess is taken off"
UNKNOWN_CHOICES = "it is not known how likely a guess scores 1"


def compare_column(column: Column, a: Matrix, b: Matrix, chances: Matrix) -> ScoreComparison:
    """B minus A in one column, and what changed where all scores are 0 or 1.

    Args:
        column: of which the scores are.
        a: [items, seeds] or [items, 1], without nan.
        b: the same.
        chances: [items], that a guess is right; nan: not known, or nothing to guess among.
    """
    difference = b - a  # one model is compared with each of several: [items, 1] spreads over [items, seeds]
    paired = weigh_difference(b, a).estimate()
    asked = column.task, column.decoding, column.metric
    compared = ScoreComparison(*asked, estimate_score(a), estimate_score(b), paired, difference.size)
    if not np.isin(a, (0, 1)).all() or not np.isin(b, (0, 1)).all():
        return compared
    gained, lost = (difference > 0).astype(np.float64), (difference < 0).astype(np.float64)
    compared = replace(
        compared,
        num_only_a=int(lost.sum()),
        num_only_b=int(gained.sum()),
        mcnemar_p=mcnemar_exact(int(lost.sum()), int(gained.sum())) if difference.shape[1] == 1 else None,
        gained=estimate_score(gained),
        lost=estimate_score(lost),
    )
    if np.isnan(chances).any():
        return replace(compared, unadjusted=UNKNOWN_CHOICES if column.decoding == "choices" else GENERATED)
    return replace(
        compared,
        gained_adjusted=weigh_known(b, a, chances).estimate(),
        lost_adjusted=weigh_known(a, b, chances).estimate(),
        chance=float(chances.mean()),
    )


def weigh_known(right: Matrix, wrong: Matrix, chances: Matrix) -> Evidence:
    """The share of items that the side of `right` knows and the side of `wrong` does not.

    Mean over items of ([right = 1, wrong = 0] − g / (1 − g) · [both 0]) / (1 − g), g = chance of a guess, 1/k with k
    choices. A side either knows an item, and is right, or guesses evenly, independently of the other side's guess; then
    this is unbiased. It is below 0 where the sides' wrong answers agree more often than guesses would.

    Args:
        right: 0 or 1, [items, seeds] or [items, 1].
        wrong: the same.
        chances: [items], above 0 and below 1.

    Source:
        Harmon et al., arXiv:2510.17776. Difference: they take off (1 − ā)(1 − b̄) / (k − 1), ā and b̄ the accuracies,
        which holds if the sides know items independently of each other, cut at 0, and do not divide by 1 − g.
    """
    g = chances[:, None]
    values = (right * (1 - wrong) - g / (1 - g) * (1 - right) * (1 - wrong)) / (1 - g)
    most = float(chances.max())
    return weigh_sum([Part(values, -most / (1 - most) ** 2, 1 / (1 - most))])


def mcnemar_exact(num_only_a: int, num_only_b: int) -> float:
    """Exact McNemar test: two-sided binomial p that only-A and only-B are equally likely; 1 if there are none.

    The interval of the difference leaves out 0 exactly where this is below .05 (`results.intervals.weigh_sum`).

    Source:
        McNemar (1947), exact form: Binomial(num_only_a + num_only_b, 1/2).
    """
    total = num_only_a + num_only_b
    return float(stats.binomtest(num_only_a, total).pvalue) if total else 1.0
