"""Squared maximum mean discrepancy between two samples of rollouts, the paper's main measure of drift.

Departure from Gretton et al.: the points are rollouts, not states, since the states of a rollout depend on each other;
the kernel between two rollouts is the mean of an RBF kernel over their pairs of states, so the result still measures
how far the two *state* distributions are apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statewise.drift.comparison import Comparison
from statewise.drift.features import Float64Array

# Bounds memory only (8 bytes an entry): no result depends on it beyond rounding.
BLOCK_ENTRIES = 4_000_000
# The median of 2 million distances does not get better with more, and the table of distances grows with the square.
BANDWIDTH_STATES = 2_000
# |a - b|^2 comes from a difference of numbers near 1: what is below this is rounding, not distance.
SMALLEST_SQUARED_DISTANCE = 1e-12


def mmd(comparison: Comparison, signs: Float64Array) -> Float64Array:
    """Unbiased MMD^2 for every swap of pairs, see `mmd_squared`.

    MMD^2(w) = w' H w / (n (n - 1)) with H of `paired_terms`: swapping one of the pairs i, j turns h_ij into -h_ij.

    Args:
        comparison: vectors of x and y [n, states, buckets], n >= 2; bandwidth.
        signs: float64 [num_swaps, n].

    Returns:
        float64 [num_swaps], may be below 0, at most 2.
    """
    terms = paired_terms(comparison.x.vectors, comparison.y.vectors, comparison.bandwidth)
    num_pairs = len(terms)
    distances: Float64Array = np.einsum("wi,wi->w", signs @ terms, signs) / (num_pairs * (num_pairs - 1))
    return distances


def mmd_squared(x: Float64Array, y: Float64Array, bandwidth: float) -> float:
    """Unbiased MMD^2 between two samples of rollouts that are paired by prompt.

    MMD^2 = 1 / (n (n - 1)) sum_{i != j} [K(x_i, x_j) + K(y_i, y_j) - K(x_i, y_j) - K(x_j, y_i)]
    K(x_i, y_j) = mean over their states a, b of exp(-|a - b|^2 / (2 bandwidth^2))

    Args:
        x: float64 [n, states, dim], n >= 2.
        y: the same shape; y[i] continues the prompt of x[i].
        bandwidth: > 0, in units of x.

    Returns:
        0 in expectation if x and y come from the same policy; may be below 0, at most 2.
    Source:
        Gretton et al., JMLR 13 (2012), eq. 4, whose sum leaves out i = j in the cross term too: here that is needed,
        because x_i and y_i share a prompt. Choice of MMD with an RBF kernel: arXiv:2605.22731.
    """
    num_pairs = len(x)
    return float(paired_terms(x, y, bandwidth).sum()) / (num_pairs * (num_pairs - 1))


def paired_terms(x: Float64Array, y: Float64Array, bandwidth: float) -> Float64Array:
    """h_ij = K(x_i, x_j) + K(y_i, y_j) - K(x_i, y_j) - K(x_j, y_i), and 0 for i = j; float64 [n, n]."""
    cross = rollout_kernel(x, y, bandwidth)
    terms = rollout_kernel(x, x, bandwidth) + rollout_kernel(y, y, bandwidth) - cross - cross.T
    np.fill_diagonal(terms, 0.0)
    return terms


def rollout_kernel(x: Float64Array, y: Float64Array, bandwidth: float) -> Float64Array:
    """K[i, j] = mean over states a of x_i and b of y_j of exp(-|a - b|^2 / (2 bandwidth^2)); float64 [n, m], 0..1."""
    rollouts_per_block = max(1, BLOCK_ENTRIES // (x.shape[1] * y.shape[0] * y.shape[1]))
    blocks = []
    for start in range(0, len(x), rollouts_per_block):
        block = x[start : start + rollouts_per_block]
        kernel = np.exp(squared_distances(block, y) / (-2.0 * bandwidth**2))
        blocks.append(kernel.reshape(len(block), x.shape[1], len(y), y.shape[1]).mean(axis=(1, 3)))
    return np.concatenate(blocks)


def squared_distances(x: Float64Array, y: Float64Array) -> Float64Array:
    """|a - b|^2 for every state a of x [n, s, dim] and b of y [m, t, dim]; float64 [n s, m t], >= 0."""
    a, b = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    squares: Float64Array = np.einsum("ad,ad->a", a, a)[:, None] + np.einsum("bd,bd->b", b, b) - 2.0 * (a @ b.T)
    np.maximum(squares, 0.0, out=squares)
    return squares


def median_bandwidth(samples: Sequence[Float64Array]) -> float:
    """The median distance between two different states of the pooled samples.

    Swapping rollouts between the samples does not change the pool, so a test with this bandwidth stays exact. Distances
    of 0 are left out: short rollouts repeat states, and a bandwidth of 0 would make every kernel value 0 or undefined.

    Args:
        samples: arrays [n, states, dim] of the same shape; of large ones every k-th prompt is taken, in all samples.

    Returns:
        > 0, in units of the states; 1 if all states are equal (MMD^2 is then 0 under any bandwidth).
    Source:
        Gretton et al., JMLR 13 (2012), section 8 (median heuristic).
    """
    num_states = sum(len(sample) * sample.shape[1] for sample in samples)
    stride = -(-num_states // BANDWIDTH_STATES)
    pooled = np.concatenate([sample[::stride] for sample in samples])
    squares = squared_distances(pooled, pooled)
    squares = squares[np.triu_indices(len(squares), k=1)]
    squares = squares[squares > SMALLEST_SQUARED_DISTANCE]
    return float(np.sqrt(np.median(squares))) if squares.size else 1.0
