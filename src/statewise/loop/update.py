"""One update: gradients of all micro-batches, clip, AdamW. A loss that is not finite stops the arm before it moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from statewise.config import UpdateSection
from statewise.errors import DivergedError, OutOfMemoryError
from statewise.locality.schedule import Schedule
from statewise.loop.build import Setup
from statewise.loop.reduce import state_weights
from statewise.loop.score import ScoredStates, score_states
from statewise.policy.packing import packed_batches
from statewise.policy.score import micro_batches, padding_share, take_rows
from statewise.types import FloatArray, IntArray, States


@dataclass(frozen=True)
class UpdateResult:
    """What one update did; `loss` over all its states (nats), `grad_norm` before clipping.

    `sampler_mismatch`: mean |log π(a|s) - log μ(a|s)| in nats over the states that the learner wrote itself, where the
    loop's log-probability and the sampler's would be equal in exact arithmetic; None where there are none.
    """

    loss: float
    grad_norm: float
    lr: float
    num_micro_batches: int
    padding_share: float
    sampler_mismatch: float | None


class Updater:
    """AdamW over the trainable weights with the arm's schedule and clip; its moments are the only state it keeps."""

    def __init__(self, setup: Setup) -> None:
        section = setup.recipe.update
        self._setup = setup
        self._max_tokens = section.max_tokens
        self._schedule = schedule_of(section)
        self.optimizer = torch.optim.AdamW(
            list(setup.trainable.values()), lr=section.lr, betas=section.betas, weight_decay=section.weight_decay
        )

    def apply(self, states: States, step: int) -> UpdateResult:
        """Update the learner on `states`.

        Raises:
            DivergedError: loss or gradient norm is not finite; the weights are as before this update.
            OutOfMemoryError: a single trajectory does not fit the device's memory.
        """
        section = self._setup.recipe.update
        batches, gradient = self._within_memory(states)
        loss = gradient.loss
        # error_if_nonfinite would raise a bare RuntimeError; the arm must be marked diverged instead.
        norm = torch.nn.utils.clip_grad_norm_(self._setup.trainable.values(), section.clip_norm)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            raise DivergedError(f"update {step}: loss {loss}, gradient norm {norm.item()}")
        lr = self._schedule.lr_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        padding = padding_share(states, batches, is_packed=section.packing)
        return UpdateResult(loss, norm.item(), lr, len(batches), padding, gradient.sampler_mismatch)

    def _within_memory(self, states: States) -> tuple[list[IntArray], _Gradient]:
        """Leave the update's gradient in the weights; where memory runs out, in micro-batches of half the size.

        The update stays the same but for rounding, since its weights are those of the whole of it.
        """
        rows = contributing_rows(states)
        while True:
            batches = [rows[batch] for batch in self._split(take_rows(states, rows))]
            try:
                return batches, self._accumulate(states, batches)
            except torch.OutOfMemoryError as error:
                if all(len(batch) == 1 for batch in batches):
                    raise OutOfMemoryError(
                        f"one trajectory of {int(states.lengths[rows].max())} tokens does not fit the device's memory "
                        f"({error}); train an adapter, set update.activation_checkpointing, or shorten max_new_tokens"
                    ) from None
            # Outside of the handler, whose traceback would keep the tensors of the failed pass alive.
            self._max_tokens = min(self._max_tokens, max(int(states.lengths[b].max()) * len(b) for b in batches)) // 2
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _split(self, states: States) -> list[IntArray]:
        if self._setup.recipe.update.packing:
            return packed_batches(states.lengths, self._max_tokens)
        return micro_batches(states, self._max_tokens)

    def _accumulate(self, states: States, batches: list[IntArray]) -> _Gradient:
        """Leave the gradient of the update's loss in the trainable weights."""
        weights = state_weights(states, self._setup.recipe.update.reduction)
        self.optimizer.zero_grad(set_to_none=True)
        loss, mismatch, num_compared = 0.0, 0.0, 0
        with recomputed_activations(self._setup.learner.model):
            for rows in batches:
                micro = take_rows(states, rows)
                micro_weights = torch.from_numpy(weights[rows, : micro.token_ids.shape[1]][micro.action_mask])
                scored = score_states(self._setup, micro)
                part = (scored.losses * micro_weights.to(scored.losses.device)).sum()
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.item()
                differences = _mismatch(scored, micro)
                mismatch, num_compared = mismatch + float(differences.sum()), num_compared + len(differences)
        return _Gradient(loss, mismatch / num_compared if num_compared else None)


@dataclass(frozen=True)
class _Gradient:
    """What is known of an update whose gradient lies in the weights."""

    loss: float
    sampler_mismatch: float | None


def _mismatch(scored: ScoredStates, states: States) -> FloatArray:
    """|log π(a|s) - log μ(a|s)|, nats, at the states of `states` that the learner wrote itself."""
    is_own = np.array([writer == "learner" for writer in states.writers])[np.nonzero(states.action_mask)[0]]
    if scored.policy_logprobs is None or not is_own.any():
        return np.zeros(0, dtype=np.float32)
    behavior = states.behavior_logprobs[states.action_mask]
    differences: FloatArray = np.abs(scored.policy_logprobs.numpy(force=True) - behavior)[is_own]
    return differences


@contextmanager
def recomputed_activations(model: PreTrainedModel) -> Iterator[None]:
    """Layers that recompute their activations do so inside.

    transformers lets a layer recompute only in training mode, which would also turn dropout on; so the mode is set on
    these layers alone, not on what they contain.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode


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
