"""Lexical Jaccard distance between what two samples say: the share of n-grams that only one of them uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from statewise.drift.comparison import Comparison
from statewise.drift.features import Float64Array, NGram

if TYPE_CHECKING:
    from scipy import sparse  # a third of a second of every plan

# Bounds memory only (8 bytes an entry): the result does not depend on it.
BLOCK_ENTRIES = 2_000_000


def jaccard(comparison: Comparison, signs: Float64Array) -> Float64Array:
    """1 - |A and B| / |A or B| for the n-gram vocabularies A, B of the two samples, for every swap of pairs.

    A sample's vocabulary is the union over its rollouts. Swaps change the intersection of the two, never their union.
    Rare n-grams make two samples of one policy differ, the more the smaller they are: only a floor of the same size,
    as `measure_drift` takes it, tells that apart from drift.

    Args:
        comparison: n-gram sets of x and y, one a rollout.
        signs: float64 [num_swaps, n].

    Returns:
        float64 [num_swaps], 0..1; 0 if neither sample has any n-gram.
    Source:
        Named in arXiv:2605.22731 without a formula; the distance is Jaccard's (1901).
    """
    x, y = comparison.x.ngrams, comparison.y.ngrams
    columns = {ngram: column for column, ngram in enumerate(frozenset().union(*x, *y))}
    if not columns:
        return np.zeros(len(signs))
    in_x, in_y = _incidence(x, columns), _incidence(y, columns)
    stays = (signs > 0).astype(np.float64).T
    num_shared = np.zeros(len(signs))
    block = max(1, BLOCK_ENTRIES // len(signs))
    for start in range(0, len(columns), block):
        rows = slice(start, start + block)
        uses_in_first = in_x[rows] @ stays + in_y[rows] @ (1.0 - stays)
        uses_in_second = in_x[rows] @ (1.0 - stays) + in_y[rows] @ stays
        num_shared += ((uses_in_first > 0) & (uses_in_second > 0)).sum(axis=0)
    distances: Float64Array = 1.0 - num_shared / len(columns)
    return distances


def _incidence(ngrams: tuple[frozenset[NGram], ...], columns: dict[NGram, int]) -> sparse.csr_array:
    """Which n-gram is in which rollout: 0/1, sparse [vocabulary, rollouts]."""
    from scipy import sparse

    rows = [columns[ngram] for rollout in ngrams for ngram in rollout]
    owners = np.repeat(np.arange(len(ngrams)), [len(rollout) for rollout in ngrams])
    return sparse.csr_array((np.ones(len(rows)), (rows, owners)), shape=(len(columns), len(ngrams)))
