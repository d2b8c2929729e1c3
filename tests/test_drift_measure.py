import json
from dataclasses import asdict

import numpy as np
import pytest

from statewise.drift import DISTANCES, DriftConfig, FeatureConfig, measure_drift
from statewise.drift.features import extract_features
from statewise.drift.mmd import median_bandwidth, mmd_squared
from statewise.errors import UsageError
from statewise.types import Rollout


def sample(seed, num_rollouts=40, *, vocabulary=30, length=15):
    """Two rollouts each of 20 prompts, on which their words depend; another `vocabulary` is another policy."""
    rng = np.random.default_rng(seed)
    rollouts = []
    for i in range(num_rollouts):
        tokens = tuple(int(t) for t in rng.integers(0, vocabulary, size=length) + 10 * (i % 4))
        rollouts.append(Rollout((100 + i % 20, 1), tokens, (-1.0,) * length, is_finished=True))
    return rollouts


def test_another_policy_is_far_above_the_floor_and_the_same_policy_is_not():
    config = DriftConfig(num_permutations=199)
    same = measure_drift(sample(0), sample(1), sample(2), config, key=5)
    other = measure_drift(sample(0), sample(1), sample(2, vocabulary=8), config, key=5)
    assert list(other) == ["mmd", "within_prompt_mmd", "centroid", "sliced_wasserstein", "jaccard"] == list(DISTANCES)
    for name in DISTANCES:
        assert other[name].value > other[name].floor and other[name].p_value == 1 / 200
        assert same[name].p_value > 0.01


def test_floor_is_the_value_that_the_second_base_sample_would_get():
    base, again = sample(0), sample(1)
    for result in measure_drift(base, again, again, DriftConfig(num_permutations=19), key=1).values():
        assert result.floor == pytest.approx(result.value, rel=1e-12)


def test_value_and_floor_share_the_bandwidth_of_all_three_samples():
    x, again, y = (extract_features(s, FeatureConfig()).vectors for s in (sample(0), sample(1), sample(2)))
    bandwidth = median_bandwidth([x, again, y])
    result = measure_drift(sample(0), sample(1), sample(2), DriftConfig(distances=("mmd",)), key=1)["mmd"]
    assert result.value == pytest.approx(mmd_squared(x, y, bandwidth), abs=1e-12)
    assert result.floor == pytest.approx(mmd_squared(x, again, bandwidth), abs=1e-12)


def test_the_floor_is_between_twins_where_the_base_has_no_second_sample():
    x, again, y, twin = (extract_features(sample(seed), FeatureConfig()).vectors for seed in range(4))
    bandwidth = median_bandwidth([x, again, y, twin])
    config = DriftConfig(distances=("mmd",))
    result = measure_drift(sample(0), sample(1), sample(2), config, key=1, twin=sample(3))["mmd"]
    assert result.value == pytest.approx(mmd_squared(x, y, bandwidth), abs=1e-12)
    assert result.floor == pytest.approx(mmd_squared(twin, again, bandwidth), abs=1e-12)


def test_counts_are_those_of_one_sample():
    config = DriftConfig(features=FeatureConfig(states_per_rollout=3), distances=("centroid",), num_permutations=1)
    result = measure_drift(sample(0), sample(1), sample(2), config, key=1)["centroid"]
    assert (result.num_rollouts, result.num_states) == (40, 120)


def test_same_key_gives_the_same_numbers_and_they_are_json():
    config = DriftConfig(num_permutations=19)
    first, second = (measure_drift(sample(0), sample(1), sample(2), config, key=8) for _ in range(2))
    assert first == second
    assert json.loads(json.dumps({name: asdict(value) for name, value in first.items()}, allow_nan=False))


def test_rollouts_of_only_end_of_text_have_no_drift():
    silent = [Rollout((i,), (0,), (-0.1,), is_finished=True) for i in range(5)]
    for result in measure_drift(silent, silent, silent, DriftConfig(num_permutations=9), key=0).values():
        assert (result.value, result.floor, result.p_value) == (0, 0, 1)


def test_unknown_distance_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"unknown distance 'jacard'\. Did you mean 'jaccard'"):
        DriftConfig(distances=("mmd", "jacard"))


@pytest.mark.parametrize("name", ["num_permutations", "num_projections"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} is 0: set it to 1 or more"):
        DriftConfig(**{name: 0})


def test_unequal_numbers_of_rollouts_are_refused():
    with pytest.raises(UsageError, match=r"sample 'other' has 39 rollouts, 'base' has 40: .* the same list of prompts"):
        measure_drift(sample(0), sample(1), sample(2)[:-1], DriftConfig(), key=0)


def test_other_prompts_are_refused():
    again = sample(1)
    again[3], again[4] = again[4], again[3]
    with pytest.raises(UsageError, match="rollout 3 of the sample 'base_again' continues another prompt"):
        measure_drift(sample(0), again, sample(2), DriftConfig(), key=0)


@pytest.mark.parametrize("num_rollouts", [0, 1])
def test_fewer_than_two_prompts_are_refused(num_rollouts):
    few = sample(0, num_rollouts)
    with pytest.raises(UsageError, match=f"has {num_rollouts} rollouts: sample at least 2 prompts"):
        measure_drift(few, few, few, DriftConfig(), key=0)
