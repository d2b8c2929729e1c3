"""The one reduction: weights that turn unreduced losses per state into the loss of an update.

The weights of an update sum to 1 over all its micro-batches, so a loss is never a mean of means over unequal parts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from statewise.types import FloatArray, States


def state_weights(states: States, reduction: Literal["states", "trajectories"]) -> FloatArray:
    """Weight of every training state of an update.

    `states`: 1 / N each, N = number of training states. `trajectories`: 1 / (B · n_b), n_b = states of trajectory b.

    Args:
        states: the whole update, not a micro-batch.
        reduction: what weighs the same.

    Returns:
        float32 [batch, time]; 0 outside the action mask; sums to 1.

    Source:
        `states` is TRL's SFT loss and its `dapo` loss of GRPO; `trajectories` is `grpo` (arXiv:2402.03300).
    """
    mask = states.action_mask.astype(np.float64)
    per_row = mask.sum(axis=1, keepdims=True)
    total = per_row * len(mask) if reduction == "trajectories" else per_row.sum()
    weights: FloatArray = (mask / total).astype(np.float32)
    return weights
