"""Learning rate over the updates of an arm: linear warm-up, then constant, linear or cosine decay to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """`lr` is the peak; `warmup_updates` and `num_updates` count updates."""

    lr: float
    num_updates: int
    warmup_updates: int = 0
    shape: Literal["constant", "linear", "cosine"] = "constant"

    def lr_at(self, step: int, share: float | None = None) -> float:
        """Learning rate of update `step` (from 0), in (0, lr]: the last update of a decay is small, not zero.

        `share`: of the arm's budget that is used before this update, 0..1, where the arm ends by a budget; the decay
        then follows it in the place of the count of updates.
        """
        if step < self.warmup_updates:
            return self.lr * (step + 1) / self.warmup_updates
        span = max(1, self.num_updates - self.warmup_updates)
        done = (step - self.warmup_updates) / span if share is None else share
        if self.shape == "linear":
            return self.lr * (1 - done)
        if self.shape == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr
