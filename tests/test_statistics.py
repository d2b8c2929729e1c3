"""Intervals: by hand, against scipy, by their coverage, and the paper's table from its scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from statewise.study.statistics import (
    EXACT,
    NO_SPREAD,
    ONE_SEED,
    SEVERAL_SEEDS,
    estimate_forgetting,
    estimate_retention_ratio,
    estimate_score,
    estimate_sum,
)


def column(*scores):
    """Scores of one seed, [items, 1]."""
    return np.array(scores, dtype=np.float64)[:, None]


def test_one_seed_is_a_t_interval_over_items():
    # Mean 3/4; variance (3 · 1/16 + 9/16) / 3 = 1/4; standard error √(1/4 / 4) = 1/4; t(.975, 3) = 3.18245.
    found = estimate_sum([column(1, 0, 1, 1)])
    assert found.value == 0.75
    assert found.high - found.value == pytest.approx(3.18245 / 4, abs=1e-5)
    assert found.value - found.low == pytest.approx(3.18245 / 4, abs=1e-5)
    assert (found.num_items, found.num_seeds, found.method) == (4, 1, ONE_SEED)


def test_two_seeds_cross_items_and_seeds():
    # Items (0, 0), (1, 0), (1, 1), (1, 1): mean 5/8; item means 0, ½, 1, 1: variance .229167, / 4 = .057292.
    # Seed means ¾, ½: variance 1/32, / 2 = .015625. Residuals: ±1/8 for items 1, 3, 4 with opposite sign to item 2's
    # ±3/8: sum of squares 2 (3/64 + 9/64) = .375; / (3 · 1) = .125; / 8 = .015625.
    # Variance .057292 + .015625 - .015625 = .057292; Satterthwaite: .057292² / (.057292² / 3 + .015625² / 1) = 2.4540.
    found = estimate_sum([np.array([[0, 0], [1, 0], [1, 1], [1, 1]], dtype=np.float64)])
    variance = 0.229167 / 4
    degrees = variance**2 / (variance**2 / 3 + 0.015625**2)
    assert found.value == 0.625
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, degrees) * variance**0.5, abs=1e-4)
    assert found.method == SEVERAL_SEEDS


def test_a_difference_on_one_seed_is_scipys_paired_t_interval():
    rng = np.random.default_rng(0)
    post, base = (rng.integers(0, 2, (2, 50)) + rng.normal(0, 0.1, (2, 50))).astype(np.float64)
    found = estimate_sum([(post - base)[:, None]])
    expected = stats.ttest_rel(post, base).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_items_and_their_order_do_not_matter():
    scores = np.random.default_rng(1).random((30, 3))
    found, turned = estimate_sum([scores]), estimate_sum([scores[::-1, ::-1]])
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high))


def test_an_interval_scales_and_shifts_with_its_scores():
    scores = np.random.default_rng(2).random((30, 3))
    found, scaled = estimate_sum([scores]), estimate_sum([3 * scores + 1])
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (3 * found.value + 1, 3 * found.low + 1, 3 * found.high + 1)
    )


def test_independent_tasks_add_their_variances():
    # Two parts of one seed and n items each: the half width is t(n - 1) √(v₁ + v₂).
    rng = np.random.default_rng(3)
    first, second = rng.random((40, 1)), 2 * rng.random((40, 1))
    variance = (first.var(ddof=1) + second.var(ddof=1)) / 40
    found = estimate_sum([first, second])
    assert found.value == pytest.approx(first.mean() + second.mean())
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 39) * variance**0.5)


NUM_DRAWS, NUM_ITEMS, NUM_SEEDS, TRUTH = 600, 80, 3, 0.3


# 95 % less twice the error of a share of 600 draws, √(.95 · .05 / 600) = .0089. Where V_seed is about thrice V_item
# and has two degrees of freedom, Satterthwaite's approximation is at its worst: over 4000 draws it covers .931
# there, so the bar is .931 less twice its error.
@pytest.mark.parametrize(
    ("item", "seed", "rest", "bar"),
    [
        (1, 0, 0, 0.93), (1, 0, 1, 0.93), (0, 0, 1, 0.93), (1, 0.03, 0.5, 0.93), (1, 0.1, 1, 0.93),
        (0.3, 0.05, 0.3, 0.93), (0.1, 1, 0.1, 0.93), (0.3, 0.1, 0.3, 0.91),
    ],
)  # fmt: skip
def test_the_crossed_interval_covers_the_truth_as_often_as_it_says(item, seed, rest, bar):
    rng = np.random.default_rng(round(1000 * item + 100 * seed + 10 * rest))
    items = item * rng.normal(size=(NUM_DRAWS, NUM_ITEMS, 1))
    seeds = seed * rng.normal(size=(NUM_DRAWS, 1, NUM_SEEDS))
    noise = rest * rng.normal(size=(NUM_DRAWS, NUM_ITEMS, NUM_SEEDS))
    found = [estimate_sum([draw]) for draw in TRUTH + items + seeds + noise]
    assert np.mean([one.low <= TRUTH <= one.high for one in found]) >= bar


def test_ignoring_the_seeds_would_not_cover():
    # What the crossing is for: seeds vary, and an interval over items alone misses the truth most of the time.
    rng = np.random.default_rng(5)
    draws = TRUTH + rng.normal(size=(200, 1, 3)) + 0.1 * rng.normal(size=(200, NUM_ITEMS, 3))
    pooled = [estimate_sum([draw.mean(axis=1, keepdims=True)]) for draw in draws]
    assert np.mean([one.low <= TRUTH <= one.high for one in pooled]) < 0.5


@pytest.mark.parametrize(("score", "count"), [(1.0, 12), (0.0, 12), (1.0, 600), (0.0, 5)])
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_items_that_all_score_the_same_have_clopper_pearsons_interval(score, count, num_seeds):
    found = estimate_score(np.full((count, num_seeds), score))
    expected = stats.binomtest(int(score * count), count).proportion_ci(0.95, "exact")
    assert (found.value, found.low, found.high) == pytest.approx((score, expected.low, expected.high))
    assert (found.num_items, found.num_seeds, found.method) == (count, num_seeds, EXACT)
    # All of n correct: the lower end is .025^(1/n).
    if score == 1.0:
        assert found.low == pytest.approx(0.025 ** (1 / count))


def test_a_scores_interval_stays_within_0_and_1():
    found = estimate_score(column(*[0] * 9, 1))
    assert found.low == 0.0
    assert found.high == pytest.approx(estimate_sum([column(*[0] * 9, 1)]).high)
    assert estimate_score(column(*[1] * 9, 0)).high == 1.0


def around(mean):
    """Two items whose mean score is `mean`."""
    return column(mean - 0.1, mean + 0.1)


# arXiv:2605.22731, Table 2: TruthfulQA, MMLU, F (mean), retention; the base model scores .300 and .436.
TABLE_2 = {
    "mild SFT": (0.295, 0.444, -0.0015, 1.0008),
    "stress SFT": (0.245, 0.364, 0.0635, 0.8258),
    "OPD from mild SFT": (0.290, 0.434, 0.0060, 0.9810),
    "OPD from stress SFT": (0.275, 0.430, 0.0155, 0.9515),
    "on-policy RL": (0.290, 0.442, 0.0020, 0.9902),
}


@pytest.mark.parametrize("run", TABLE_2)
def test_forgetting_and_retention_are_the_papers_columns(run):
    truthful, mmlu, forgetting, retention = TABLE_2[run]
    base, post = [around(0.300), around(0.436)], [around(truthful), around(mmlu)]
    assert estimate_forgetting(base, post).value == pytest.approx(forgetting, abs=5e-5 + 1e-12)
    assert estimate_retention_ratio(base, post).value == pytest.approx(retention, abs=5e-5 + 1e-12)


def test_forgetting_is_paired():
    # Every item loses exactly 1/10: the loss is certain, whatever the spread between items.
    base = column(*np.linspace(0.2, 0.9, 20))
    found = estimate_forgetting([base], [base - 0.1])
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_retention_ratios_interval_is_the_bootstraps():
    rng = np.random.default_rng(6)
    base = [(rng.random((400, 1)) < 0.5).astype(float), (rng.random((300, 1)) < 0.7).astype(float)]
    post = [np.where(rng.random(b.shape) < 0.8, b, 1 - b) for b in base]
    found = estimate_retention_ratio(base, post)
    drawn = []
    for _ in range(2000):
        picks = [rng.integers(0, len(b), len(b)) for b in base]
        drawn.append(np.mean([p[i].mean() / b[i].mean() for b, p, i in zip(base, post, picks, strict=True)]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_there_is_no_retention_ratio_of_a_task_at_which_the_base_model_fails():
    base, post = [column(0, 0, 0), column(0, 1, 0)], [column(0, 1, 0), column(0, 1, 1)]
    assert estimate_retention_ratio(base, post) is None


def test_differences_that_are_all_zero_are_not_certain():
    # None of 10 items changed: a share up to 1 - .025^(1/10) = .3085 may change unseen, either way.
    found = estimate_sum([np.zeros((10, 1))])
    assert (found.low, found.high) == (pytest.approx(-0.3085, abs=1e-4), pytest.approx(0.3085, abs=1e-4))
    assert found.high == pytest.approx(stats.binomtest(0, 10).proportion_ci(0.95, "exact").high)
    assert found.method == NO_SPREAD
    many = estimate_sum([np.zeros((600, 3))])
    assert many.high == pytest.approx(0.00613, abs=1e-5)
    # Two retention tasks, of which neither moved: half of each one's bound.
    forgetting = estimate_forgetting([np.ones((10, 1)), np.zeros((20, 1))], [np.ones((10, 1)), np.zeros((20, 1))])
    assert forgetting.high == pytest.approx((0.3085 + 0.1684) / 2, abs=1e-4)


def test_scores_beyond_0_to_1_keep_their_interval():
    # Mean 3, variance 2, standard error 1; t with 1 degree of freedom at .975 is 12.706.
    found = estimate_score(column(2, 4))
    assert (found.value, found.low) == (3, pytest.approx(3 - 12.7062, abs=1e-3))
    same = estimate_score(column(37, 37, 37))  # .7076 of three items may differ, each by 37
    assert (same.value, same.high) == (37, pytest.approx(37 * 1.7076, abs=0.01))
