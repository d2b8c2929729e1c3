"""One update: gradients of all micro-batches, clip, AdamW. A loss that is not finite stops the arm before it moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statewise.config import UpdateSection
from statewise.errors import DivergedError
from statewise.locality.schedule import Schedule
from statewise.loop.build import Setup
from statewise.loop.reduce import state_weights
from statewise.loop.score import state_losses
from statewise.policy.score import micro_batches, padding_share, take_rows
from statewise.types import IntArray, States


@dataclass(frozen=True)
class UpdateResult:
    """What one update did; `loss` over all its states (nats), `grad_norm` before clipping."""

    loss: float
    grad_norm: float
    lr: float
    num_micro_batches: int
    padding_share: float


class Updater:
    """AdamW over the trainable weights with the arm's schedule and clip; its moments are the only state it keeps."""

    def __init__(self, setup: Setup) -> None:
        section = setup.recipe.update
        self._setup = setup
        self._schedule = schedule_of(section)
        self.optimizer = torch.optim.AdamW(
            list(setup.trainable.values()), lr=section.lr, betas=section.betas, weight_decay=section.weight_decay
        )

    def apply(self, states: States, step: int) -> UpdateResult:
        """Update the learner on `states`.

        Raises:
            DivergedError: loss or gradient norm is not finite; the weights are as before this update.
        """
        section = self._setup.recipe.update
        rows = contributing_rows(states)
        batches = [rows[batch] for batch in micro_batches(take_rows(states, rows), section.max_tokens)]
        loss = self._accumulate(states, batches)
        # error_if_nonfinite would raise a bare RuntimeError; the arm must be marked diverged instead.
        norm = torch.nn.utils.clip_grad_norm_(self._setup.trainable.values(), section.clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise DivergedError(f"update {step}: loss {loss.item()}, gradient norm {norm.item()}")
        lr = self._schedule.lr_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return UpdateResult(loss.item(), norm.item(), lr, len(batches), padding_share(states, batches))

    def _accumulate(self, states: States, batches: list[IntArray]) -> Tensor:
        """Leave the gradient of the update's loss in the trainable weights; returns that loss."""
        weights = state_weights(states, self._setup.recipe.update.reduction)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for rows in batches:
            micro = take_rows(states, rows)
            time = micro.token_ids.shape[1]
            micro_weights = torch.from_numpy(weights[rows, :time][micro.action_mask])
            losses = state_losses(self._setup, micro)
            loss = (losses * micro_weights.to(losses.device)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().cpu()
        return total


def contributing_rows(states: States) -> IntArray:
    """The rows that can move the policy; the others need not pass the model.

    A row whose advantage is 0 (its whole group was right, or wrong) has loss and gradient 0 under any policy. It keeps
    its part in the weights of the reduction. One row is always kept, so that an update without any still is one.
    """
    rows: IntArray = np.flatnonzero(states.advantages != 0)  # nan: the signal has no advantages
    return rows if len(rows) else np.zeros(1, dtype=np.int64)


def schedule_of(section: UpdateSection) -> Schedule:
    """The learning-rate schedule that an `update` table describes."""
    return Schedule(section.lr, section.num_updates, section.warmup_updates, section.schedule)
