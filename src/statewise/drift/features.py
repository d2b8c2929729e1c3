"""Rollouts -> prefix states -> lexical feature vectors: what every distance of this room looks at.

A state is (prompt, generated prefix). A vector describes the prefix alone: the counts of its token n-grams, hashed into
buckets and scaled to length 1. Which prompt it belongs to is for the distance to look at (`Comparison.prompts`).
No model is needed, and an old run can be measured again from its records.

The paper (arXiv:2605.22731) says "lightweight lexical features" and no more; n-gram orders, buckets, scaling and the
number of prefixes are this room's choice and are fields of `FeatureConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from statewise.batch import IntArray
from statewise.errors import UsageError
from statewise.types import Rollout

Float64Array = npt.NDArray[np.float64]
HashArray = npt.NDArray[np.uint64]
NGram = tuple[int, ...]

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): its increment, then the shifts and multipliers of its finaliser.
SPLITMIX_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
SPLITMIX_ROUNDS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
SPLITMIX_LAST_SHIFT = np.uint64(31)


@dataclass(frozen=True)
class FeatureConfig:
    """How a state becomes a vector.

    `ngram_orders`: lengths of the token n-grams, each >= 1. `num_buckets`: dimension of the vector, >= 1.
    `states_per_rollout`: evenly spaced prefixes of each rollout, >= 1; the last is the whole continuation.
    """

    ngram_orders: tuple[int, ...] = (1, 2)
    num_buckets: int = 256
    states_per_rollout: int = 4

    def __post_init__(self) -> None:
        if not self.ngram_orders or min(self.ngram_orders) < 1:
            raise UsageError(f"drift: ngram_orders is {self.ngram_orders}: give at least one order, each >= 1")
        for name in ("num_buckets", "states_per_rollout"):
            if getattr(self, name) < 1:
                raise UsageError(f"drift: {name} is {getattr(self, name)}: set it to 1 or more")


@dataclass(frozen=True)
class StateFeatures:
    """The states of one sample: row i of every field belongs to rollout i.

    `vectors` float64 [rollouts, states, buckets], each of length 1, or 0 for a prefix without n-grams;
    `ngrams` holds each rollout's distinct n-grams, all orders together.
    """

    vectors: Float64Array
    ngrams: tuple[frozenset[NGram], ...]


def extract_features(rollouts: Sequence[Rollout], config: FeatureConfig) -> StateFeatures:
    """Lexical features of the prefix states of every rollout.

    v[i, k] = c / |c|,  c[b] = number of n-grams of y_i[:t_k] that hash to bucket b,  t_k = ceil(k T_i / S), k = 1..S.

    The empty prefix (k = 0) is left out: it is the prompt alone, the same state in both samples. The end-of-text token
    counts as a token. A rollout shorter than S tokens repeats prefixes; one without tokens gives zero vectors.

    Args:
        rollouts: any lengths, may be empty continuations.
        config: orders, buckets B and states per rollout S.

    Returns:
        `vectors` float64 [rollouts, S, B], entries in 0..1; `ngrams`, one set a rollout.
    """
    num_rollouts, num_states = len(rollouts), config.states_per_rollout
    lengths = np.array([len(r.token_ids) for r in rollouts], dtype=np.int64)
    tokens = np.array([token for r in rollouts for token in r.token_ids], dtype=np.int64)
    owners = np.repeat(np.arange(num_rollouts), lengths)
    positions = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    cuts = -(-lengths[:, None] * np.arange(1, num_states + 1) // num_states)
    counts = np.zeros(num_rollouts * num_states * config.num_buckets)
    for order in config.ngram_orders:
        starts = np.flatnonzero(positions + order <= lengths[owners])
        owner, end = owners[starts], positions[starts] + order
        first_state = (cuts[owner] < end[:, None]).sum(axis=1)
        hashes = hash_ngrams(tokens[starts[:, None] + np.arange(order)])
        buckets = (hashes % np.uint64(config.num_buckets)).astype(np.int64)
        cells = (owner * num_states + first_state) * config.num_buckets + buckets
        counts += np.bincount(cells, minlength=len(counts))
    # An n-gram was counted in the first prefix that holds it; every later prefix of the rollout holds it too.
    vectors = counts.reshape(num_rollouts, num_states, config.num_buckets).cumsum(axis=1)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return StateFeatures(
        vectors=np.divide(vectors, norms, out=vectors, where=norms > 0),
        ngrams=tuple(_distinct_ngrams(r.token_ids, config.ngram_orders) for r in rollouts),
    )


def hash_ngrams(ngrams: IntArray) -> HashArray:
    """A 64-bit hash of every n-gram that depends on its order and its tokens; the same on every machine.

    h = n;  h = splitmix64(h xor token) for each token. Python's own `hash` is not used: what it gives for strings
    changes from process to process, and what it gives for tuples may change from version to version.

    Args:
        ngrams: int64 [num_ngrams, order], token ids >= 0.

    Returns:
        uint64 [num_ngrams].
    """
    hashes = np.full(len(ngrams), ngrams.shape[1], dtype=np.uint64)
    for column in ngrams.astype(np.uint64).T:
        hashes = (hashes ^ column) + SPLITMIX_INCREMENT
        for shift, multiplier in SPLITMIX_ROUNDS:
            hashes = (hashes ^ (hashes >> shift)) * multiplier
        hashes = hashes ^ (hashes >> SPLITMIX_LAST_SHIFT)
    return hashes


def _distinct_ngrams(token_ids: tuple[int, ...], orders: tuple[int, ...]) -> frozenset[NGram]:
    return frozenset(ngram for order in orders for ngram in zip(*(token_ids[k:] for k in range(order)), strict=False))
