import math

import numpy as np
import pytest
from scipy import stats

from statewise.drift.comparison import Comparison, draw_signs, permutation_p_value
from statewise.drift.features import StateFeatures
from statewise.drift.measure import DriftValue
from statewise.drift.mmd import median_bandwidth, mmd
from statewise.drift.over_seeds import over_seeds


def seed(value=0.1, p_value=0.05, floor=0.02):
    return DriftValue(value, floor, p_value, num_rollouts=40, num_states=160)


def combined(*p_values):
    return over_seeds([seed(p_value=p) for p in p_values]).p_value


def mmd_p_values(num_runs, num_seeds, shift):
    """p [num_runs, num_seeds] of MMD² on 20 prompts, which all seeds share; each draws base and policy anew."""
    rng, directions = np.random.default_rng(21), np.eye(2)
    p_values = np.zeros((num_runs, num_seeds))
    for run, one in np.ndindex(num_runs, num_seeds):
        if one == 0:
            prompts = rng.normal(scale=3.0, size=(20, 1, 2))
        x, y = prompts + rng.normal(size=(2, 20, 1, 2))
        samples = (StateFeatures(sample, (frozenset(),) * 20) for sample in (x, y + shift))
        comparison = Comparison(*samples, median_bandwidth([x, y + shift]), directions, np.arange(20))
        p_values[run, one] = permutation_p_value(mmd(comparison, draw_signs(99, 20, run * num_seeds + one)))
    return p_values


def share_resolved(p_values):
    return float(np.mean([combined(*row) < 0.05 for row in p_values]))


def test_combined_p_by_hand():
    # chi2 with 4 degrees of freedom: P(> -2 ln q) = q (1 - ln q) with q = .03 * .08 = .0024: .0024 * 7.0323 = .016878.
    assert combined(0.03, 0.08) == pytest.approx(0.016878, abs=1e-6)


def test_one_seed_keeps_its_p_value_and_has_no_interval():
    drift = over_seeds([seed(0.3, 0.04)])
    assert drift.p_value == pytest.approx(0.04)
    assert (drift.value, drift.low, drift.high, drift.num_seeds) == (0.3, None, None, 1)
    assert drift.method.startswith("one training seed: no interval")


def test_interval_over_seeds_by_hand():
    # Values .1, .2, .3: mean .2, standard error .1 / sqrt(3), t of 2 degrees of freedom at .975: 4.3027.
    drift = over_seeds([seed(0.1), seed(0.3), seed(0.2)])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (drift.low, drift.value, drift.high) == pytest.approx((0.2 - half, 0.2, 0.2 + half), abs=1e-6)


def test_seeds_of_one_value_hypothesis_no_certainty():
    drift = over_seeds([seed(0.0), seed(0.0)])
    assert (drift.value, drift.low, drift.high) == (0, None, None)
    assert drift.method.startswith("every seed has the same value")


def test_distances_without_a_test_have_no_combined_p():
    assert over_seeds([seed(p_value=None), seed(p_value=None)]).p_value is None


def test_permutations_bound_the_combined_p_from_below():
    # chi2 with 6 degrees of freedom at 6 ln 501.
    assert combined(1 / 501) == pytest.approx(1 / 501)
    assert combined(1 / 501, 1 / 501, 1 / 501) == pytest.approx(1.5e-6, rel=0.05)


def test_more_seeds_resolve_a_small_drift_more_often():
    p_values = mmd_p_values(60, 5, shift=0.8)
    shares = [share_resolved(p_values[:, :count]) for count in (1, 2, 5)]
    assert shares[0] < shares[1] < shares[2] and shares[2] > 0.9
    # What a rule that wants every seed below the level does with the same numbers.
    assert (p_values < 0.05).all(axis=1).mean() < shares[0]


def test_seeds_that_share_their_prompts_keep_the_level():
    p_values = mmd_p_values(200, 3, shift=0.0)
    # 200 runs of three seeds each: at a level of .05 more than 18 are seen with a chance below .01.
    assert stats.binom.sf(18, 200, 0.05) < 0.01
    assert share_resolved(p_values) * 200 <= 18
    # The standard error of a correlation of independent values is 1 / sqrt(200) = .07.
    assert abs(np.corrcoef(p_values.T)[np.triu_indices(3, 1)]).max() < 0.28
