"""Drift within prompts: sees that prompts were given each other's answers, which no pooled distance can."""

import numpy as np
import pytest
from scipy import stats

from statewise.drift import DISTANCES, DriftConfig, FeatureConfig, measure_drift
from statewise.drift.comparison import Comparison, draw_signs
from statewise.drift.features import StateFeatures
from statewise.drift.mmd import paired_terms
from statewise.drift.within_prompts import within_prompt_mmd
from statewise.types import Rollout

NAME = "within_prompt_mmd"
NUM_PROMPTS = 40
CONFIG = DriftConfig(FeatureConfig(num_buckets=64, states_per_rollout=2), num_permutations=39, num_projections=5)


def sample(rng, *, shift=0, per_prompt=2):
    """Rollouts of prompts each of which has its own words; with `shift`, prompt i says what prompt i + shift would."""
    rollouts = []
    for row in range(NUM_PROMPTS * per_prompt):
        prompt = row % NUM_PROMPTS
        words = 5 * ((prompt + shift) % NUM_PROMPTS) + rng.integers(0, 20, size=12)
        tokens = tuple(int(word) % (5 * NUM_PROMPTS) for word in words)
        rollouts.append(Rollout((900, prompt), tokens, (-1.0,) * 12, is_finished=True))
    return rollouts


def p_values(num_draws, shift):
    """p of every distance in `num_draws` comparisons of base with a policy whose prompts are moved by `shift`."""
    rng, found = np.random.default_rng(31), []
    for key in range(num_draws):
        base, again, other = sample(rng), sample(rng), sample(rng, shift=shift)
        found.append({name: one.p_value for name, one in measure_drift(base, again, other, CONFIG, key).items()})
    return {name: np.array([one[name] for one in found]) for name in DISTANCES}


def comparison_of(x, y, prompts, bandwidth=1.0):
    no_ngrams = (frozenset(),) * len(x)
    return Comparison(
        StateFeatures(x, no_ngrams), StateFeatures(y, no_ngrams), bandwidth, np.eye(x.shape[-1]), np.array(prompts)
    )


def test_prompts_that_got_each_others_answers_are_seen_within_prompts_alone():
    found = p_values(40, shift=NUM_PROMPTS // 2)
    power = {name: float((p <= 0.05).mean()) for name, p in found.items()}
    assert power.pop(NAME) >= 0.9
    # The pooled distances look at the same words as before. 40 draws: more than 6 are seen with a chance below .01.
    assert stats.binom.sf(6, 40, 0.05) < 0.01
    assert max(power.values()) <= 6 / 40


def test_same_law_has_uniform_p_values_within_prompts():
    rng, x_shape = np.random.default_rng(32), (2, 30, 2, 3)
    p_values = []
    for key in range(400):
        x, y = np.tile(rng.normal(scale=3.0, size=(15, 1, 3)), (2, 1, 1)) + rng.normal(size=x_shape)
        signs = draw_signs(99, 30, key)
        distances = within_prompt_mmd(comparison_of(x, y, [*range(15)] * 2, bandwidth=3.0), signs)
        p_values.append((distances >= distances[0] - 1e-12).mean())
    # p is uniform on 1/100, 2/100, …, 1; taking a uniform share of a step off makes it uniform on (0, 1).
    smoothed = np.array(p_values) - np.random.default_rng(0).uniform(size=400) / 100
    assert stats.kstest(smoothed, "uniform").pvalue > 0.01


def test_within_prompt_mmd_by_hand():
    # One prompt, one state a rollout, bandwidth 1: x = 0, 0 and y = 2, 2. k(x, x) = k(y, y) = 1, k(x, y) = e^-2.
    # As it is: 1 + 1 - 2 e^-2. With the second pair swapped: x = 0, 2 and y = 2, 0: 2 e^-2 - 1 - 1.
    x, y = np.zeros((2, 1, 1)), np.full((2, 1, 1), 2.0)
    found = within_prompt_mmd(comparison_of(x, y, [7, 7]), np.array([[1.0, 1.0], [1.0, -1.0]]))
    gap = 2 - 2 * np.exp(-2)
    assert found == pytest.approx([gap, -gap])


def test_within_prompt_mmd_is_mmd_with_a_kernel_that_is_zero_between_prompts():
    # Two, three and four rollouts a prompt: the product kernel [same prompt] k, each rollout with the same weight.
    rng, prompts = np.random.default_rng(33), np.array([0, 1, 2, 0, 1, 2, 1, 2, 2])
    x, y = rng.normal(size=(2, 9, 2, 3))
    same = prompts[:, None] == prompts
    terms = paired_terms(x, y, 1.3) * same / (same.sum(axis=1) - 1)
    signs = draw_signs(20, 9, key=3)
    expected = np.einsum("wi,ij,wj->w", signs, terms, signs) / 9
    assert within_prompt_mmd(comparison_of(x, y, prompts, 1.3), signs) == pytest.approx(expected, abs=1e-12)


def test_within_prompt_mmd_is_unbiased_for_one_policy():
    rng, values = np.random.default_rng(34), []
    for _ in range(1000):
        x, y = np.tile(rng.normal(scale=2.0, size=(6, 1, 2)), (2, 1, 1)) + rng.normal(size=(2, 12, 1, 2))
        values.append(within_prompt_mmd(comparison_of(x, y, [*range(6)] * 2), np.ones((1, 12)))[0])
    assert abs(np.mean(values)) < 4 * np.std(values) / 1000**0.5


def test_a_prompt_with_one_rollout_leaves_the_distance_out():
    rng = np.random.default_rng(35)
    base, again, other = (sample(rng, per_prompt=1) for _ in range(3))
    assert list(measure_drift(base, again, other, CONFIG, key=0)) == [name for name in DISTANCES if name != NAME]
    more = [[*rollouts, *rollouts[1:]] for rollouts in (base, again, other)]
    assert NAME not in measure_drift(*more, CONFIG, key=0)


def test_the_floor_is_measured_within_prompts_too():
    rng = np.random.default_rng(36)
    base, again = sample(rng), sample(rng)
    found = measure_drift(base, again, again, CONFIG, key=0)[NAME]
    assert found.floor == pytest.approx(found.value, rel=1e-9) and abs(found.floor) < 0.1
