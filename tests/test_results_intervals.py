"""Intervals: by hand, against scipy and statsmodels, by their coverage, and the paper's table from its scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from statewise.results.intervals import (
    LEAST_P,
    NO_SPREAD,
    ONE_SEED,
    SEVERAL_SEEDS,
    UNKNOWN_RANGE,
    Part,
    estimate_retention_ratio,
    estimate_score,
    weigh_difference,
    weigh_forgetting,
    weigh_sum,
)


def estimate_sum(parts):
    return weigh_sum([Part(part) for part in parts]).estimate()


def wide(part):
    """A part whose values are not held within -1..1."""
    return Part(part, -1e9, 1e9)


def column(*scores):
    """Scores of one seed, [items, 1]."""
    return np.array(scores, dtype=np.float64)[:, None]


def test_one_seed_is_a_t_interval_over_items_and_two_pseudo_items():
    # 0, 0, 1, 1, 0, 0 with -1 and 1: mean 1/4; squares 4, less 8/16, over 7 = .5; √(.5 / 8) = .25; t(5) = 2.57058.
    found = estimate_sum([column(0, 0, 1, 1, 0, 0)])
    assert found.value == pytest.approx(1 / 3)
    # The two changes by themselves: π from √.025 = .1581 to 1, so 2/6 (2 · .1581 - 1) = -.2279 to 2/6.
    assert (found.low, found.high) == pytest.approx((0.25 - 2.57058 / 4, 0.25 + 2.57058 / 4), abs=1e-5)
    assert (found.num_items, found.num_seeds) == (6, 1)
    assert found.method.startswith(ONE_SEED)


def test_several_seeds_cross_items_and_seeds():
    # Items (0, 0), (1, 0), (1, 1), (1, 1): item means 0, ½, 1, 1 with -1 and 1: mean 5/12, variance
    # (1 + 1 + 1 + 1/4 + 1 - 6 · 25/144) / 5 = .641667, / 6 = .106944. Seed means ¾, ½: variance 1/32, / 2 = .015625.
    # Residuals: ±1/8 for items 1, 3, 4 with opposite sign to item 2's ±3/8: squares 2 (3/64 + 9/64) = .375;
    # / (3 · 1) = .125; / 8 = .015625. h² = t²(3) (.106944 - .015625) + t²(1) .015625, beyond 1, where it is cut.
    part = wide(np.array([[0, 0], [1, 0], [1, 1], [1, 1]], dtype=np.float64))
    found = weigh_sum([part]).estimate()
    of_items, of_seeds = stats.t.ppf(0.975, [3, 1])
    half = (of_items**2 * (0.106944 - 0.015625) + of_seeds**2 * 0.015625) ** 0.5
    assert found.value == 0.625
    assert (found.low, found.high) == pytest.approx((5 / 12 - half, 5 / 12 + half), abs=1e-4)
    assert found.method.startswith(SEVERAL_SEEDS)


def test_a_difference_of_many_items_on_one_seed_is_scipys_paired_t_interval():
    rng = np.random.default_rng(0)
    post, base = rng.random((2, 5000)), rng.random((2, 5000))
    found = weigh_difference(post[0][:, None], base[0][:, None]).estimate()
    expected = stats.ttest_rel(post[0], base[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02 * (found.high - found.low))


def test_items_and_their_order_do_not_matter():
    scores = np.random.default_rng(1).random((30, 3))
    found, turned = estimate_sum([scores]), estimate_sum([scores[::-1, ::-1]])
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high))


def test_an_interval_scales_and_turns_with_its_differences():
    scores = np.random.default_rng(2).normal(0.1, 0.4, (30, 3))
    found, turned = weigh_sum([wide(scores)]).estimate(), weigh_sum([wide(-3 * scores)]).estimate()
    assert (turned.value, turned.low, turned.high) == pytest.approx((-3 * found.value, -3 * found.high, -3 * found.low))


def test_independent_tasks_add_their_variances():
    # Two parts of one seed and n items each: the half width is t(n - 1) √(v₁ + v₂), pseudo-items included.
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.5, 1, (40, 1)), 2 * rng.normal(0.5, 1, (40, 1))
    found = weigh_sum([wide(first), wide(second)]).estimate()
    variance = sum(np.append(x, [abs(x).max(), -abs(x).max()]).var(ddof=1) / 42 for x in (first, second))
    assert found.value == pytest.approx(first.mean() + second.mean())
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 39) * variance**0.5)


NUM_DRAWS, NUM_ITEMS, NUM_SEEDS, TRUTH = 600, 80, 3, 0.3


# 95 % less twice the error of a share of 600 draws, √(.95 · .05 / 600) = .0089.
@pytest.mark.parametrize(
    ("item", "seed", "rest"),
    [
        (1, 0, 0), (1, 0, 1), (0, 0, 1), (1, 0.03, 0.5), (1, 0.1, 1), (0.3, 0.05, 0.3), (0.1, 1, 0.1), (0.3, 0.1, 0.3),
    ],
)  # fmt: skip
def test_the_crossed_interval_covers_the_truth_as_often_as_it_says(item, seed, rest):
    rng = np.random.default_rng(round(1000 * item + 100 * seed + 10 * rest))
    items = item * rng.normal(size=(NUM_DRAWS, NUM_ITEMS, 1))
    seeds = seed * rng.normal(size=(NUM_DRAWS, 1, NUM_SEEDS))
    noise = rest * rng.normal(size=(NUM_DRAWS, NUM_ITEMS, NUM_SEEDS))
    found = [weigh_sum([wide(draw)]).estimate() for draw in TRUTH + items + seeds + noise]
    assert np.mean([one.low <= TRUTH <= one.high for one in found]) >= 0.93


def test_ignoring_the_seeds_would_not_cover():
    # What the crossing is for: seeds vary, and an interval over items alone misses the truth most of the time.
    rng = np.random.default_rng(5)
    draws = TRUTH + rng.normal(size=(200, 1, 3)) + 0.1 * rng.normal(size=(200, NUM_ITEMS, 3))
    pooled = [weigh_sum([wide(draw.mean(axis=1, keepdims=True))]).estimate() for draw in draws]
    assert np.mean([one.low <= TRUTH <= one.high for one in pooled]) < 0.5


@pytest.mark.parametrize(("score", "count"), [(1.0, 12), (0.0, 12), (1.0, 600), (0.0, 5)])
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_items_that_all_score_the_same_have_clopper_pearsons_interval(score, count, num_seeds):
    found = estimate_score(np.full((count, num_seeds), score))
    expected = stats.binomtest(int(score * count), count).proportion_ci(0.95, "exact")
    assert (found.value, found.low, found.high) == pytest.approx((score, expected.low, expected.high))
    assert (found.num_items, found.num_seeds, found.method) == (count, num_seeds, NO_SPREAD)
    # All of n correct: the lower end is .025^(1/n).
    if score == 1.0:
        assert found.low == pytest.approx(0.025 ** (1 / count))


def test_a_constant_score_that_is_no_count_is_not_read_as_one():
    # .1 on each of 10 items is not 1 of 10 correct: a share up to q = 1 - .025^(1/10) = .3085 of items may have any
    # score in 0..1, so that the mean lies in .1 (1 - q) .. .1 (1 - q) + q.
    found = estimate_score(np.full((10, 1), 0.1))
    assert (found.low, found.high) == pytest.approx((0.0692, 0.3777), abs=1e-4)
    assert found.method == NO_SPREAD


@pytest.mark.parametrize(("right", "count"), [(5, 50), (45, 50), (100, 200), (3, 600)])
def test_a_scores_interval_is_agresti_and_coulls_within_0_and_1(right, count):
    found = estimate_score(column(*[1] * right, *[0] * (count - right)))
    low, high = proportion_confint(right, count, method="agresti_coull")
    assert (found.low, found.high) == pytest.approx((max(0, low), min(1, high)), abs=0.05 * (high - low) + 0.01 / count)
    assert 0 <= found.low <= found.value <= found.high <= 1


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
    assert weigh_forgetting(base, post).estimate().value == pytest.approx(forgetting, abs=5e-5 + 1e-12)
    assert estimate_retention_ratio(base, post).value == pytest.approx(retention, abs=5e-5 + 1e-12)


def test_forgetting_is_paired():
    # Items differ by far more than they lose, and each loses about 1/10: the spread between items does not enter.
    lost = 0.1 + 0.01 * np.cos(np.arange(200.0))[:, None]
    base = np.linspace(0.2, 0.9, 200)[:, None]
    found = weigh_forgetting([base], [base - lost]).estimate()
    assert found.value == pytest.approx(lost.mean())
    assert found.high - found.low < 0.005
    assert estimate_score(base).high - estimate_score(base).low > 0.05


def test_that_every_item_lost_the_same_does_not_make_the_loss_certain():
    # .1 on each of 20 items; a share q = 1 - .025^(1/20) = .1684 may be anything in -1..1.
    base = column(*np.linspace(0.2, 0.9, 20))
    found = weigh_forgetting([base], [base - 0.1]).estimate()
    assert (found.low, found.high) == pytest.approx((0.1 - 1.1 * 0.1684, 0.1 + 0.9 * 0.1684), abs=1e-4)


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
    forgetting = weigh_forgetting(
        [np.ones((10, 1)), np.zeros((20, 1))], [np.ones((10, 1)), np.zeros((20, 1))]
    ).estimate()
    assert forgetting.high == pytest.approx((0.3085 + 0.1684) / 2, abs=1e-4)


def test_scores_beyond_0_to_1_keep_their_interval_and_have_none_where_all_are_equal():
    # Mean 3, variance 2, standard error 1; t with 1 degree of freedom at .975 is 12.706.
    found = estimate_score(column(2, 4))
    assert (found.value, found.low) == (3, pytest.approx(3 - 12.7062, abs=1e-3))
    same = estimate_score(column(37, 37, 37))
    assert (same.value, same.low, same.high, same.method) == (37, None, None, UNKNOWN_RANGE)
    equal = weigh_difference(column(37, 2, 5), column(37, 2, 5))
    assert (equal.estimate().low, equal.p_value(), equal.method) == (None, 1.0, UNKNOWN_RANGE)


def changed(num_up, num_down, num_items, num_seeds=1):
    """Differences of 0 and 1 scores, equal in all seeds."""
    part = np.zeros((num_items, num_seeds))
    part[:num_up], part[num_up : num_up + num_down] = 1, -1
    return part


# 13 is less than the largest counts, where they are skipped; 1319 items are GSM8K's.
@pytest.mark.parametrize("num_items", [13, 60, 200, 1319])
def test_an_interval_leaves_out_0_exactly_where_mcnemars_exact_p_is_below_05(num_items):
    for up, down in itertools.product(range(31), repeat=2):
        if 0 < up + down <= num_items:
            p = 2 * stats.binom.cdf(min(up, down), up + down, 0.5)
            found = estimate_sum([changed(up, down, num_items)])
            assert (found.low > 0 or found.high < 0) == (p < 0.05), (up, down, p, found)
            assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("up", "down"), [(4, 0), (6, 0), (2, 9), (12, 3), (5, 5)])
def test_the_p_of_a_difference_is_statsmodels_exact_mcnemar_or_a_little_more(up, down):
    expected = min(1.0, mcnemar([[30, up], [down, 30]], exact=True).pvalue)
    found = weigh_sum([Part(changed(up, down, 60 + up + down))]).p_value()
    assert expected * (1 - 1e-4) <= found <= expected * 1.1


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_seeds_that_agree_do_not_resolve_what_one_of_them_does_not(num_seeds):
    # 4 : 0 of 60 has p = .125; that every seed shows the same four items tells nothing of other items.
    assert estimate_sum([changed(4, 0, 60, num_seeds)]).low < 0
    assert estimate_sum([changed(8, 0, 60, num_seeds)]).low > 0
    # As F over two tasks, of which the other did not change.
    base = [changed(4, 0, 60, num_seeds), np.ones((60, num_seeds))]
    assert weigh_forgetting(base, [np.zeros((60, num_seeds)), np.ones((60, num_seeds))]).estimate().low < 0


def test_p_and_interval_agree_at_every_level():
    rng = np.random.default_rng(4)
    for num_seeds in (1, 3):
        found = weigh_sum([Part(rng.integers(-1, 2, (40, num_seeds)) * 0.5 + 0.2)])
        for null in (-0.1, 0.0, 0.05, 0.2):
            p = found.p_value(null)
            for alpha, is_covered in ((p * 0.99, True), (p * 1.01, False)):
                if alpha < 1:
                    low, high = found.interval(1 - alpha)
                    assert (low <= null <= high) == is_covered
        assert found.p_value(5.0) == pytest.approx(LEAST_P)


def test_a_task_on_which_nothing_changed_keeps_its_share_of_the_doubt():
    # Two tasks of 60 items; on one 5 % of items change for the worse, on the other 3 %. In a sixth of draws the second
    # shows no change at all; there the interval must cover as well (the variance alone covered .84 of them).
    rng = np.random.default_rng(7)
    ones = np.ones((60, 1))
    covered = []
    for _ in range(3000):
        first, second = rng.random((60, 1)) < 0.05, rng.random((60, 1)) < 0.03
        if not second.any() and first.any():
            found = weigh_forgetting([ones, ones], [ones - first, ones - second]).estimate()
            covered.append(found.low <= (0.05 + 0.03) / 2 <= found.high)
    assert len(covered) > 300
    assert np.mean(covered) >= 0.95


def test_a_retention_ratio_of_an_unchanged_task_is_no_certainty():
    base, lost = (np.arange(40) < 20).astype(float)[:, None], (np.arange(40) < 16).astype(float)[:, None]
    alone, both = estimate_retention_ratio([base], [lost]), estimate_retention_ratio([base, base], [lost, base])
    # Halving the first part's half-width is what certainty on the second would give.
    assert both.high - both.low > 1.05 * (alone.high - alone.low) / 2


def test_changes_that_cancel_over_the_seeds_of_every_item_have_an_interval():
    estimate = weigh_sum([Part(np.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]))]).estimate()
    assert estimate.value == 0
    assert estimate.low == -estimate.high < 0
