"""Squared MMD between two policies' answers to one prompt, averaged over prompts: it knows which prompt was continued.

A state is (prompt, prefix). The other distances pool the states of all prompts, so that a policy which gives every
prompt another prompt's answers is at distance 0. This one needs at least two rollouts a prompt and policy.
"""

from __future__ import annotations

import numpy as np

from statewise.drift.comparison import Comparison
from statewise.drift.features import Float64Array


def within_prompt_mmd(comparison: Comparison, signs: Float64Array) -> Float64Array | None:
    """Unbiased MMD^2 with the product kernel [same prompt] K, for every swap of pairs.

    MMD^2(w) = 1/n sum_i 1/(m_i - 1) sum_{j != i, prompt_j = prompt_i} w_i w_j h_ij
    h_ij = K(x_i, x_j) + K(y_i, y_j) - K(x_i, y_j) - K(x_j, y_i), K as in `mmd`

    m_i counts the rollouts of prompt i in one sample. With two a prompt, a swap can only turn the sign of the prompt's
    one term: of fewer than five prompts p cannot be below .05.

    Args:
        comparison: vectors of x and y [n, states, buckets]; prompts [n]; bandwidth.
        signs: float64 [num_swaps, n].

    Returns:
        float64 [num_swaps], may be below 0, at most 2; None where a prompt has only one rollout a sample.
    Source:
        The mean over prompts of the squared MMD between conditional laws is the squared ECMMD of Chatterjee, Niu and
        Bhattacharya, arXiv:2407.16550. Difference: prompts repeat, so that no neighbours stand in for them.
    """
    same = comparison.prompts[:, None] == comparison.prompts
    num_others = same.sum(axis=1) - 1
    if num_others.min() < 1:
        return None
    i, j = np.nonzero(np.triu(same, k=1))
    x, y = comparison.x.vectors, comparison.y.vectors
    terms = sum(
        sign * _kernel(a, b, comparison.bandwidth)
        for sign, a, b in ((1, x[i], x[j]), (1, y[i], y[j]), (-1, x[i], y[j]), (-1, x[j], y[i]))
    )
    distances: Float64Array = (signs[:, i] * signs[:, j]) @ (2.0 * terms / num_others[i]) / len(x)
    return distances


def _kernel(x: Float64Array, y: Float64Array, bandwidth: float) -> Float64Array:
    """Mean over states a of x_p, b of y_p of exp(-|a - b|^2 / (2 bandwidth^2)); [pairs, states, dim] -> [pairs]."""
    squares = np.square(x).sum(axis=-1)[:, :, None] + np.square(y).sum(axis=-1)[:, None, :] - 2.0 * x @ y.swapaxes(1, 2)
    kernel: Float64Array = np.exp(np.maximum(squares, 0.0) / (-2.0 * bandwidth**2)).mean(axis=(1, 2))
    return kernel
