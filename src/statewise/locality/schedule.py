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
        then follows it in the place of the count of updates, from the first one on, so that nobody need know how much
        of the budget the warm-up will use.
        """
        peak = self.lr * (step + 1) / self.warmup_updates if step < self.warmup_updates else self.lr
        span = max(1, self.num_updates - self.warmup_updates)
        done = max(0, step - self.warmup_updates) / span if share is None else share
        if self.shape == "linear":
            return peak * (1 - done)
        if self.shape == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak
