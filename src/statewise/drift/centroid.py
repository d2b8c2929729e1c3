"""Distance between the mean states of two samples: the simplest measure, blind to everything but the mean."""

from __future__ import annotations

import numpy as np

from statewise.drift.comparison import Comparison
from statewise.drift.features import Float64Array


def centroid(comparison: Comparison, signs: Float64Array) -> Float64Array:
    """Euclidean distance between the mean state features, for every swap of pairs.

    D(w) = | 1/n sum_i w_i (mean state of x_i - mean state of y_i) |

    It is biased: two samples of one policy are apart too, which the noise floor shows.

    Args:
        comparison: vectors of x and y [n, states, buckets].
        signs: float64 [num_swaps, n].

    Returns:
        float64 [num_swaps], >= 0, at most 2.
    Source:
        Named in arXiv:2605.22731 without a formula.
    """
    gaps = comparison.x.vectors.mean(axis=1) - comparison.y.vectors.mean(axis=1)
    distances: Float64Array = np.linalg.norm(signs @ gaps / len(gaps), axis=1)
    return distances
