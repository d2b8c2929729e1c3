"""Two samples of states side by side, and the permutation test that all distances share.

Rollout i of either sample continues the same prompt; a prompt may have several rollouts. If both samples come from the
same policy, the two rollouts of a pair are exchangeable, but rollouts of different prompts are not, and neither are the
states within a rollout. The test therefore swaps whole rollouts within their pair: a permutation is a vector of signs,
one a pair, where -1 swaps its two rollouts. The usual two-sample permutation, which shuffles all points, would be wrong
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from statewise.batch import IntArray
from statewise.drift.features import Float64Array, StateFeatures
from statewise.seeding import generator

# Swapping every pair gives back the same distance in exact arithmetic; rounding must not turn such a tie into a loss.
TIE_TOLERANCE = 1e-9  # of the largest distance
ROUNDING = 1e-14  # absolute, for samples that are equal: features and kernel values are at most about 1


@dataclass(frozen=True)
class Comparison:
    """What a distance may look at. Nothing in it but `x` and `y` depends on which of the two a rollout is in.

    `x`, `y`: samples of the same shape, paired by prompt. `bandwidth`: of the RBF kernel, > 0.
    `projections` float64 [buckets, num_projections]: directions of length 1. `prompts` int64 [rollouts]: equal where
    two pairs continue the same prompt.
    """

    x: StateFeatures
    y: StateFeatures
    bandwidth: float
    projections: Float64Array
    prompts: IntArray


class Distance(Protocol):
    """A distance between two samples, larger = more different, for many swaps of pairs at once.

    `signs` float64 [num_swaps, rollouts]: +1 leaves pair i as it is, -1 swaps its two rollouts; never changed in place.
    Returns float64 [num_swaps], or None where it asks for more rollouts a prompt than there are.
    """

    def __call__(self, comparison: Comparison, signs: Float64Array) -> Float64Array | None: ...


def draw_signs(num_permutations: int, num_rollouts: int, key: int) -> Float64Array:
    """Random swaps; row 0 swaps nothing, so that it gives the distance that was observed.

    Args:
        num_permutations: random rows, >= 0.
        num_rollouts: pairs.
        key: seed.

    Returns:
        float64 [1 + num_permutations, num_rollouts] of +1 and -1.
    """
    bits = generator("drift/signs", key).integers(0, 2, size=(num_permutations, num_rollouts))
    return np.concatenate([np.ones((1, num_rollouts)), 1.0 - 2.0 * bits])


def permutation_p_value(distances: Float64Array) -> float:
    """The one-sided permutation p-value, (1 + #{permuted >= observed}) / (1 + num_permutations).

    Args:
        distances: float64 [1 + num_permutations], the observed one first.

    Returns:
        1 / (1 + num_permutations) .. 1; P(p <= a) <= a for every a if both samples come from the same policy.
    Source:
        Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39, arXiv:1603.05766: counting the observed one keeps
        the test exact.
    """
    tolerance = max(ROUNDING, TIE_TOLERANCE * np.abs(distances).max())
    return float((distances >= distances[0] - tolerance).mean())
