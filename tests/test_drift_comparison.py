import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from statewise.drift import DISTANCES
from statewise.drift.comparison import Comparison, draw_signs, permutation_p_value
from statewise.drift.features import FeatureConfig, StateFeatures, extract_features
from statewise.drift.mmd import median_bandwidth, mmd
from statewise.drift.sliced_wasserstein import draw_projections
from statewise.types import Rollout


def on_vectors(x, y, bandwidth=1.0):
    """A comparison of plain vectors, for the distances that look at nothing else."""
    no_ngrams = (frozenset(),) * len(x)
    projections = draw_projections(x.shape[-1], 10, 0)
    return Comparison(
        StateFeatures(x, no_ngrams), StateFeatures(y, no_ngrams), bandwidth, projections, np.arange(len(x))
    )


def on_tokens(x, y):
    """A comparison of two lists of token sequences."""
    config = FeatureConfig(num_buckets=32, states_per_rollout=2)
    a, b = (
        extract_features([Rollout((0,), tuple(t), (0.0,) * len(t), is_finished=True) for t in sample], config)
        for sample in (x, y)
    )
    return Comparison(a, b, median_bandwidth([a.vectors, b.vectors]), draw_projections(32, 10, 0), np.zeros(len(x)))


def dependent_samples(rng, num_pairs, shift=0.0):
    """Two samples of one law (up to `shift`): prompts far apart, the three states of a rollout close together."""
    prompt = rng.normal(scale=3.0, size=(num_pairs, 1, 2))
    rollouts = rng.normal(size=(2, num_pairs, 1, 2))
    x, y = prompt + rollouts + rng.normal(scale=0.1, size=(2, num_pairs, 3, 2))
    return x, y + shift


def mmd_p_value(x, y, key, num_permutations=99):
    comparison = on_vectors(x, y, median_bandwidth([x, y]))
    return permutation_p_value(mmd(comparison, draw_signs(num_permutations, len(x), key)))


def swap(comparison, signs):
    """The comparison with the pairs of negative sign swapped by hand."""
    x, y = comparison.x, comparison.y
    first = [(x, y)[s < 0] for s in signs]
    second = [(y, x)[s < 0] for s in signs]
    swapped = [
        StateFeatures(
            np.stack([sample.vectors[i] for i, sample in enumerate(samples)]),
            tuple(sample.ngrams[i] for i, sample in enumerate(samples)),
        )
        for samples in (first, second)
    ]
    return Comparison(swapped[0], swapped[1], comparison.bandwidth, comparison.projections, comparison.prompts)


token_lists = st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=4, max_size=4)


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=30, deadline=None)
@given(x=token_lists, y=token_lists, signs=st.lists(st.sampled_from([1.0, -1.0]), min_size=4, max_size=4))
def test_a_sign_of_minus_one_swaps_the_pair(name, x, y, signs):
    comparison = on_tokens(x, y)
    by_hand = DISTANCES[name](swap(comparison, signs), np.ones((1, 4)))
    assert DISTANCES[name](comparison, np.array([signs])) == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=30, deadline=None)
@given(x=token_lists, y=token_lists, order=st.permutations(range(4)))
def test_distance_is_symmetric_and_blind_to_the_order_of_pairs(name, x, y, order):
    distance, ones = DISTANCES[name], np.ones((1, 4))
    value = distance(on_tokens(x, y), ones)[0]
    assert distance(on_tokens(y, x), ones)[0] == pytest.approx(value, abs=1e-9)
    reordered = on_tokens([x[i] for i in order], [y[i] for i in order])
    assert distance(reordered, ones)[0] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=30, deadline=None)
@given(x=token_lists)
def test_identical_samples_have_distance_zero_and_p_value_one(name, x):
    distances = DISTANCES[name](on_tokens(x, x), draw_signs(20, 4, 0))
    assert distances == pytest.approx(np.zeros(21), abs=1e-12)
    assert permutation_p_value(distances) == 1


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_grow_with_the_share_of_other_words(name):
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 50, size=(2, 30, 12)).tolist()
    values = []
    for num_replaced in (0, 4, 12):
        other = [[t + 50 if k < num_replaced else t for k, t in enumerate(tokens)] for tokens in y]
        values.append(DISTANCES[name](on_tokens(x, other), np.ones((1, 30)))[0])
    assert values[0] < values[1] < values[2]


def test_signs_start_with_no_swap_and_repeat_with_the_key():
    signs = draw_signs(1000, 8, key=3)
    assert signs.shape == (1001, 8) and np.all(signs[0] == 1) and set(signs[1:].ravel()) == {1.0, -1.0}
    assert abs(signs[1:].mean()) < 0.05
    assert np.array_equal(signs, draw_signs(1000, 8, key=3))
    assert not np.array_equal(signs, draw_signs(1000, 8, key=4))


def test_p_value_by_hand():
    # Observed 3; of the permuted 1, 3, 5, 2 two are at least 3: (1 + 2) / (1 + 4).
    assert permutation_p_value(np.array([3.0, 1.0, 3.0, 5.0, 2.0])) == pytest.approx(0.6)


def test_p_value_counts_a_tie_that_rounding_broke():
    # (1 + 1) / (1 + 1), though the second distance is one unit in the last place short of the first.
    assert permutation_p_value(np.array([0.3, np.nextafter(0.3, 0)])) == 1


@pytest.mark.parametrize("num_pairs", [4, 5, 6])
@pytest.mark.parametrize("name", DISTANCES)
def test_random_swaps_approach_the_enumeration_of_all(name, num_pairs):
    x, y = np.random.default_rng(num_pairs).integers(0, 6, size=(2, num_pairs, 5)).tolist()
    comparison = on_tokens(x, [[token + 2 for token in tokens] for tokens in y])
    every = np.array(list(itertools.product([1.0, -1.0], repeat=num_pairs)))
    exact = permutation_p_value(DISTANCES[name](comparison, every))
    drawn = permutation_p_value(DISTANCES[name](comparison, draw_signs(4000, num_pairs, key=1)))
    # The standard error of a share of 4000 draws is at most 0.008.
    assert drawn == pytest.approx(exact, abs=0.03)


def null_p_values(num_draws=1000):
    rng = np.random.default_rng(11)
    return np.array([mmd_p_value(*dependent_samples(rng, 20), key) for key in range(num_draws)])


def test_mmd_test_has_its_level_and_uniform_p_values_on_dependent_data():
    p_values = null_p_values()
    # 1000 draws: the standard error at .05 is .007.
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    # p is uniform on 1/100, 2/100, …, 1; taking a uniform share of a step off makes it uniform on (0, 1).
    smoothed = p_values - np.random.default_rng(0).uniform(size=len(p_values)) / 100
    assert stats.kstest(smoothed, "uniform").pvalue > 0.01


def test_swapping_states_instead_of_rollouts_would_reject_far_too_often():
    rng = np.random.default_rng(12)
    rejected = []
    for key in range(200):
        x, y = (sample.reshape(-1, 1, 2) for sample in dependent_samples(rng, 20))
        rejected.append(mmd_p_value(x, y, key) <= 0.05)
    assert np.mean(rejected) > 0.2


def test_mmd_test_has_power_that_grows_with_the_shift():
    power = []
    for shift in (0.0, 0.7, 2.0):
        rng = np.random.default_rng(13)
        p_values = [mmd_p_value(*dependent_samples(rng, 20, shift), key) for key in range(100)]
        power.append(np.mean(np.array(p_values) <= 0.05))
    assert power[0] < power[1] < power[2]
    assert power[2] >= 0.9
