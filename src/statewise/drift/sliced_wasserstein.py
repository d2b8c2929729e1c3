"""Sliced Wasserstein distance of order 2 between the states of two samples.

It equals POT's `ot.sliced_wasserstein_distance` for the same projections (a test compares them). POT is not called
here: importing it imports torch, which this room does without, and it cannot share one sort among swaps.
"""

from __future__ import annotations

import numpy as np

from statewise.drift.comparison import Comparison
from statewise.drift.features import Float64Array
from statewise.seeding import generator


def sliced_wasserstein(comparison: Comparison, signs: Float64Array) -> Float64Array:
    """Sliced 2-Wasserstein distance between the states of x and y, for every swap of pairs.

    SW_2 = sqrt( mean over directions u of 1/m sum_k ((x u)_(k) - (y u)_(k))^2 ),  (k) = k-th smallest of m states

    It is biased: two samples of one policy are apart too, which the noise floor shows.

    Args:
        comparison: vectors of x and y [n, states, buckets], m = n states; projections [buckets, num_projections].
        signs: float64 [num_swaps, n].

    Returns:
        float64 [num_swaps], >= 0, at most 2.
    Source:
        Bonneel et al., J. Math. Imaging Vis. 51 (2015) 22-45. Difference: a fixed number of random directions.
    """
    num_states = comparison.x.vectors.shape[1]
    pooled = np.concatenate([comparison.x.vectors, comparison.y.vectors])
    lines = (pooled.reshape(-1, pooled.shape[-1]) @ comparison.projections).T
    stays = np.repeat(signs > 0, num_states, axis=1)
    is_first = np.concatenate([stays, ~stays], axis=1)
    sums = np.zeros(len(signs))
    for line in lines:
        # One sort serves all swaps: a swap only says which of the sorted states belong to the first sample.
        order = np.argsort(line, kind="stable")
        is_first_sorted = np.take(is_first, order, axis=1).ravel()
        values = np.tile(line[order], len(signs))
        gaps = np.compress(is_first_sorted, values) - np.compress(~is_first_sorted, values)
        sums += np.square(gaps).reshape(stays.shape).mean(axis=1)
    distances: Float64Array = np.sqrt(sums / len(lines))
    return distances


def draw_projections(num_buckets: int, num_projections: int, key: int) -> Float64Array:
    """Directions drawn uniformly from the sphere; float64 [num_buckets, num_projections], columns of length 1."""
    directions = generator("drift/projections", key).standard_normal((num_buckets, num_projections))
    lengths: Float64Array = np.linalg.norm(directions, axis=0)
    return directions / lengths
