"""The one reduction: weights that turn unreduced losses per state into the loss of an update.

Counts are those of the whole update, over all its micro-batches, so a loss is never a mean of means over unequal parts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from statewise.batch import FloatArray, States

Reduction = Literal["states", "trajectories", "constant"]


def state_weights(states: States, reduction: Reduction, constant_tokens: int = 1) -> FloatArray:
    """Weight of every training state of an update.

    `states`: 1 / N each, N = number of training states. `trajectories`: 1 / (B · n_b), n_b = states of trajectory b,
    B = trajectories that have any. `constant`: 1 / (B · L), L = `constant_tokens`.

    Args:
        states: the whole update, not a micro-batch.
        reduction: what weighs the same.
        constant_tokens: L, tokens >= 1.

    Returns:
        float32 [batch, time]; 0 outside the action mask; sums to 1, but for `constant`, and to 0 without any state.

    Source:
        `states` is TRL's SFT loss and its `dapo` loss of GRPO; `trajectories` is `grpo` (arXiv:2402.03300); `constant`
        is `dr_grpo` (arXiv:2503.20783), and with L = 1 the sum over a trajectory, as RLOO and DPO take it.
    """
    mask = states.action_mask.astype(np.float64)
    per_row = mask.sum(axis=1, keepdims=True)
    num_rows = (per_row > 0).sum()
    total = {
        "states": per_row.sum(),
        "trajectories": per_row * num_rows,
        "constant": float(num_rows * constant_tokens),
    }[reduction]
    weights: FloatArray = (mask / np.maximum(total, 1)).astype(np.float32)
    return weights
