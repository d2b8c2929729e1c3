import subprocess
import sys
import time

import numpy as np
import pytest

from statewise.drift.features import FeatureConfig, extract_features, hash_ngrams
from statewise.errors import UsageError
from statewise.storage.records import ROLLOUT_SCHEMA, read_table, write_table
from statewise.types import Rollout


def rollout(*token_ids, prompt=(7,)):
    return Rollout(prompt, token_ids, (-0.5,) * len(token_ids), is_finished=True)


def splitmix_hash(ngram):
    """The hash written with Python's unbounded integers."""
    mask = (1 << 64) - 1
    h = len(ngram)
    for token in ngram:
        h = ((h ^ token) + 0x9E3779B97F4A7C15) & mask
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & mask
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & mask
        h ^= h >> 31
    return h


def plain_vector(tokens, config):
    """The features of one prefix by a plain loop."""
    counts = np.zeros(config.num_buckets)
    for order in config.ngram_orders:
        for start in range(len(tokens) - order + 1):
            counts[splitmix_hash(tokens[start : start + order]) % config.num_buckets] += 1
    norm = np.linalg.norm(counts)
    return counts / norm if norm else counts


def test_hash_is_the_published_splitmix64():
    # The first output of SplitMix64 seeded with 1234567 is 6457827717110365317 (Rosetta Code, "Pseudo-random
    # numbers/Splitmix64"). Here the seed is order xor token, and 1 xor 1234566 = 1234567.
    assert hash_ngrams(np.array([[1234566]]))[0] == 6457827717110365317


def test_hash_equals_unbounded_integer_arithmetic():
    ngrams = np.random.default_rng(0).integers(0, 152_000, size=(50, 3))
    assert [int(h) for h in hash_ngrams(ngrams)] == [splitmix_hash([int(t) for t in ngram]) for ngram in ngrams]


def test_hash_tells_orders_and_token_order_apart():
    assert hash_ngrams(np.array([[1, 2]]))[0] != hash_ngrams(np.array([[2, 1]]))[0]
    assert hash_ngrams(np.array([[0]]))[0] != hash_ngrams(np.array([[0, 0]]))[0]


def test_features_by_hand():
    # y = (5, 5, 9), orders (1,), 2 states: t = ceil(3/2) = 2, then 3. Prefix (5, 5) has count 2 in one bucket -> 1.
    # Prefix (5, 5, 9) has counts 2 and 1 -> 2/sqrt(5), 1/sqrt(5).
    config = FeatureConfig(ngram_orders=(1,), num_buckets=1000, states_per_rollout=2)
    vectors = extract_features([rollout(5, 5, 9)], config).vectors
    five, nine = splitmix_hash([5]) % 1000, splitmix_hash([9]) % 1000
    assert vectors.shape == (1, 2, 1000)
    assert vectors[0, 0, five] == 1 and vectors[0, 0].sum() == 1
    assert vectors[0, 1, [five, nine]] == pytest.approx([2 / 5**0.5, 1 / 5**0.5])


def test_features_equal_a_plain_loop():
    config = FeatureConfig(ngram_orders=(1, 2, 3), num_buckets=16, states_per_rollout=4)
    rng = np.random.default_rng(1)
    rollouts = [rollout(*(int(t) for t in rng.integers(0, 9, size=length))) for length in (1, 0, 2, 5, 4, 13)]
    expected = [
        [plain_vector(r.token_ids[: -(-len(r.token_ids) * k // 4)], config) for k in range(1, 5)] for r in rollouts
    ]
    np.testing.assert_allclose(extract_features(rollouts, config).vectors, expected, atol=1e-15)


def test_ngrams_of_a_rollout_are_all_orders_together():
    features = extract_features([rollout(1, 2, 1, 2), rollout(3)], FeatureConfig(ngram_orders=(1, 2)))
    assert features.ngrams == (frozenset({(1,), (2,), (1, 2), (2, 1)}), frozenset({(3,)}))


def test_rollouts_with_only_end_of_text_or_nothing_have_features():
    features = extract_features([rollout(0), rollout()], FeatureConfig())
    assert np.linalg.norm(features.vectors, axis=-1).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert features.ngrams == (frozenset({(0,)}), frozenset())


def test_prompt_and_logprobs_do_not_change_the_features():
    a, b = Rollout((1, 2), (3, 4), (-1.0, -2.0), True), Rollout((9,), (3, 4), (0.0, 0.0), False)
    vectors = extract_features([a, b], FeatureConfig()).vectors
    assert np.array_equal(vectors[0], vectors[1])


def test_features_of_two_hundred_rollouts_are_a_matter_of_seconds_at_most():
    rng = np.random.default_rng(0)
    rollouts = [rollout(*(int(t) for t in rng.integers(0, 5000, size=30))) for _ in range(200)]
    start = time.process_time()
    extract_features(rollouts, FeatureConfig())
    assert time.process_time() - start < 3  # about 0.2 on a quiet core


@pytest.mark.parametrize("settings", [{"ngram_orders": ()}, {"ngram_orders": (1, 0)}])
def test_orders_below_one_are_refused(settings):
    with pytest.raises(UsageError, match="at least one order, each >= 1"):
        FeatureConfig(**settings)


@pytest.mark.parametrize("name", ["num_buckets", "states_per_rollout"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} is 0: set it to 1 or more"):
        FeatureConfig(**{name: 0})


def test_rollouts_survive_a_table(tmp_path):
    from statewise.drift import rollouts_to_rows, rows_to_rollouts

    rollouts = [rollout(1, 2), rollout(), Rollout((4, 5), (6,), (-0.25,), is_finished=False)]
    write_table(tmp_path / "rollouts.parquet", rollouts_to_rows(rollouts, [3, 1, 2]), ROLLOUT_SCHEMA)
    rows = read_table(tmp_path / "rollouts.parquet")
    assert [row["prompt_index"] for row in rows] == [3, 1, 2]
    assert rows_to_rollouts(rows) == rollouts


def test_drift_is_imported_without_torch():
    code = "import statewise.drift, sys; assert not {'torch', 'ot'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
