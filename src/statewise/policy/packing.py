"""Rows of unequal length laid end to end in rows of equal length, so that a forward pass computes hardly any padding.

Position ids start again with every text, by which transformers keeps texts apart (its masks become block-diagonal). A
packed row is as long as the longest text of its micro-batch, so attention costs what it would without packing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from statewise.batch import IntArray, States


@dataclass(frozen=True)
class Packing:
    """Where each row of a batch lies. Shapes: `token_ids`, `position_ids` [bins, time]; `bins`, `starts` [batch].

    The last token of a row is left out: it is an action only, and nothing follows it.
    """

    token_ids: IntArray
    position_ids: IntArray
    bins: IntArray
    starts: IntArray


def pack(states: States) -> Packing:
    """First fit, longest first: each row goes into the first bin that has room, a bin being as long as the longest row.

    Uses at most 11/9 of the fewest bins, plus one (Johnson, 1973).
    """
    lengths = states.lengths - 1
    time = int(lengths.max())
    bins, starts, used = np.zeros_like(lengths), np.zeros_like(lengths), list[int]()
    for row in np.argsort(-lengths, kind="stable").tolist():
        place = next((index for index, filled in enumerate(used) if filled + lengths[row] <= time), len(used))
        if place == len(used):
            used.append(0)
        bins[row], starts[row] = place, used[place]
        used[place] += int(lengths[row])
    token_ids = np.zeros((len(used), time), dtype=np.int64)
    position_ids = np.zeros_like(token_ids)
    for place, filled in enumerate(used):
        position_ids[place, filled:] = np.arange(time - filled)  # what is left over is a text of its own
    for row, length in enumerate(lengths.tolist()):
        span = slice(int(starts[row]), int(starts[row]) + length)
        token_ids[bins[row], span] = states.token_ids[row, :length]
        position_ids[bins[row], span] = np.arange(length)
    return Packing(token_ids, position_ids, bins, starts)


def packed_batches(lengths: IntArray, max_tokens: int) -> list[IntArray]:
    """Rows in micro-batches of at most `max_tokens` tokens, longest first; a longer row gets one of its own."""
    batches: list[list[int]] = []
    filled = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        if not batches or filled + lengths[row] > max_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(row)
        filled += int(lengths[row])
    return [np.array(batch, dtype=np.int64) for batch in batches]
