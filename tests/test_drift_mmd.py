import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import pdist

from statewise.drift import mmd as mmd_module
from statewise.drift.mmd import median_bandwidth, mmd_squared, rollout_kernel, squared_distances

samples = arrays(np.float64, (4, 2, 3), elements=st.floats(-3, 3))


def plain_mmd_squared(x, y, bandwidth):
    """MMD^2 by loops over rollouts and states."""

    def k(a, b):
        values = [math.exp(-float(((s - t) ** 2).sum()) / (2 * bandwidth**2)) for s in a for t in b]
        return sum(values) / len(values)

    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs) / (n * (n - 1))


def test_mmd_squared_of_two_pairs_by_hand():
    # x = (0, 1), y = (2, 3), bandwidth 1, one state a rollout. With e(d) = exp(-d^2/2): h_12 = h_21 =
    # e(1) + e(1) - e(3) - e(1) = e(1) - e(3) = 0.6065307 - 0.0111090 = 0.5954217; their mean is the same.
    x, y = np.array([0.0, 1.0]).reshape(2, 1, 1), np.array([2.0, 3.0]).reshape(2, 1, 1)
    assert mmd_squared(x, y, 1.0) == pytest.approx(0.5954217, abs=1e-7)


def test_mmd_squared_of_three_pairs_by_hand():
    # x = (0, 1, 2), y = (1, 1, 1), bandwidth 1. h_12 = e(1) + 1 - e(1) - 1 = 0 with x_1 = 0, y_2 = 1, x_2 = 1, y_1 = 1:
    #   k(x1,x2) = e(1), k(y1,y2) = 1, k(x1,y2) = e(1), k(x2,y1) = 1 -> 0.   h_23 = e(1) + 1 - 1 - e(1) = 0.
    #   h_13 = e(2) + 1 - e(1) - e(1) = 0.1353353 + 1 - 1.2130613 = -0.0777260.   Mean of 6: 2 h_13 / 6 = -0.0259087.
    x, y = np.array([0.0, 1.0, 2.0]).reshape(3, 1, 1), np.ones((3, 1, 1))
    assert mmd_squared(x, y, 1.0) == pytest.approx(-0.0259087, abs=1e-7)


def test_kernel_between_rollouts_is_the_mean_over_their_states():
    # States (0, 2) against (0, 1), bandwidth 1: mean of e(0), e(1), e(2), e(1) = (1 + 0.1353353 + 1.2130613) / 4.
    x, y = np.array([[[0.0], [2.0]]]), np.array([[[0.0], [1.0]]])
    assert rollout_kernel(x, y, 1.0) == pytest.approx(np.array([[0.5870991]]), abs=1e-7)


def test_mmd_squared_equals_a_plain_double_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 7, 3, 5))
    assert mmd_squared(x, y + 0.3, 1.7) == pytest.approx(plain_mmd_squared(x, y + 0.3, 1.7), abs=1e-12)


def test_memory_blocks_do_not_change_the_result(monkeypatch):
    x, y = np.random.default_rng(1).normal(size=(2, 9, 3, 4))
    whole = mmd_squared(x, y, 1.0)
    monkeypatch.setattr(mmd_module, "BLOCK_ENTRIES", 160)
    assert mmd_squared(x, y, 1.0) == pytest.approx(whole, abs=1e-14)


@settings(max_examples=50, deadline=None)
@given(x=samples, y=samples)
def test_mmd_squared_is_symmetric_bounded_and_zero_on_itself(x, y):
    assert mmd_squared(x, y, 1.0) == pytest.approx(mmd_squared(y, x, 1.0), abs=1e-12)
    assert -2 <= mmd_squared(x, y, 1.0) <= 2
    assert mmd_squared(x, x, 1.0) == pytest.approx(0, abs=1e-12)


def test_mmd_squared_is_unbiased():
    # One law for x and y, prompts that differ a lot: the mean over 2000 draws is 0 within 4 standard errors.
    rng = np.random.default_rng(2)
    values = []
    for _ in range(2000):
        prompt = rng.normal(scale=2.0, size=(6, 1, 2))
        x, y = prompt + rng.normal(size=(2, 6, 1, 2))
        values.append(mmd_squared(x, y, 1.0))
    assert abs(np.mean(values)) < 4 * np.std(values) / 2000**0.5


def test_mmd_squared_of_far_samples_tends_to_the_two_kernel_means():
    # k(x, y) -> 0 for far apart samples, and each sample is one point: 1 + 1 - 0 - 0 = 2.
    x, y = np.zeros((3, 2, 2)), np.full((3, 2, 2), 100.0)
    assert mmd_squared(x, y, 1.0) == pytest.approx(2)


def test_squared_distances_equal_scipy():
    x = np.random.default_rng(3).normal(size=(4, 3, 6))
    expected = pdist(x.reshape(-1, 6)) ** 2
    assert squared_distances(x, x)[np.triu_indices(12, k=1)] == pytest.approx(expected, abs=1e-12)


def test_bandwidth_is_the_median_distance_of_the_pooled_states():
    x, y = np.random.default_rng(4).normal(size=(2, 5, 3, 2))
    assert median_bandwidth([x, y]) == pytest.approx(np.median(pdist(np.concatenate([x, y]).reshape(-1, 2))))


def test_bandwidth_leaves_out_repeated_states():
    # Points 0, 0, 0, 0, 3, 4: positive distances are 3 (4 times), 4 (4 times) and 1; their median, the 5th of 9, is 3.
    x = np.array([0.0, 0.0, 0.0, 0.0, 3.0, 4.0]).reshape(6, 1, 1)
    assert median_bandwidth([x]) == pytest.approx(3)


def test_bandwidth_of_equal_states_is_one():
    assert median_bandwidth([np.ones((3, 2, 4)), np.ones((3, 2, 4))]) == 1


def test_bandwidth_does_not_change_when_pairs_are_swapped(monkeypatch):
    monkeypatch.setattr(mmd_module, "BANDWIDTH_STATES", 20)
    x, y = np.random.default_rng(5).normal(size=(2, 15, 2, 3))
    swapped = np.random.default_rng(6).integers(0, 2, size=(15, 1, 1)) == 1
    assert median_bandwidth([np.where(swapped, y, x), np.where(swapped, x, y)]) == pytest.approx(
        median_bandwidth([x, y]), abs=1e-12
    )
