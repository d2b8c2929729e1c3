"""One update: gradients of all terms and micro-batches, locality, clip, AdamW.

A loss that is not finite stops the arm before it moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from statewise.config import UpdateSection
from statewise.errors import DivergedError, OutOfMemoryError
from statewise.locality.schedule import Schedule
from statewise.loop.build import Setup
from statewise.loop.constrain import Constraints
from statewise.loop.reduce import state_weights
from statewise.loop.score import OTHERS, Scored, Term, group_terms, score_terms
from statewise.policy.act import label_logprobs
from statewise.policy.packing import packed_batches
from statewise.policy.score import micro_batches, padding_share
from statewise.types import FloatArray, IntArray, take_rows


@dataclass(frozen=True)
class UpdateResult:
    """What one update did; losses (nats) and norm are those of its first gradient step.

    `loss`: of all terms, `term_losses` of each without its weight; `grad_norm` before clipping. `sampler_mismatch`:
    mean |log π(a|s) - log μ(a|s)| in nats over the states that the learner wrote itself in this update, where the
    loop's log-probability and the sampler's would be equal in exact arithmetic; None where there are none.
    """

    loss: float
    term_losses: tuple[float, ...]
    grad_norm: float
    lr: float
    num_micro_batches: int
    padding_share: float
    sampler_mismatch: float | None
    constraints: dict[str, float | int]


class Updater:
    """AdamW over the trainable weights with the arm's schedule, localities and clip."""

    def __init__(self, setup: Setup, constraints: Constraints | None = None) -> None:
        section = setup.recipe.update
        self._setup = setup
        self._max_tokens = section.max_tokens
        self._schedule = schedule_of(section)
        self.constraints = constraints or Constraints(setup)
        self.optimizer = torch.optim.AdamW(
            list(setup.trainable.values()), lr=section.lr, betas=section.betas, weight_decay=section.weight_decay
        )

    def apply(self, terms: Sequence[Term], step: int, share: float | None = None) -> UpdateResult:
        """Update the learner on the sum of `terms`, `num_epochs` times.

        Args:
            terms: what the signals made of the update's states; the localities add their own.
            step: update, from 0.
            share: of the arm's budget that is used, 0..1, where it has one; the schedule follows it.

        Raises:
            DivergedError: loss or gradient norm is not finite; the weights are as before this gradient step.
            OutOfMemoryError: a single trajectory does not fit the device's memory.
        """
        section = self._setup.recipe.update
        lr = self._schedule.lr_at(step, share)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        asked = [*terms, *self.constraints.terms(terms[0].states)]
        if section.num_epochs > 1:
            asked = [self._with_old_law(term) for term in asked]
        result = self._step(asked, step, lr)
        for _ in range(section.num_epochs - 1):
            self._step(asked, step, lr)
        return replace(result, constraints=result.constraints | self.constraints.end_update(result.term_losses))

    def _with_old_law(self, term: Term) -> Term:
        """The term with the learner's log-probabilities before the first of several gradient steps."""
        if "old_logprobs" not in term.what.needs:
            return term
        old = label_logprobs(self._setup.learner, term.states, self._max_tokens)
        self._setup.engine.account.score(self._setup.learner.model, int(term.states.lengths.sum()))
        return replace(term, states=replace(term.states, old_logprobs=old))

    def _step(self, terms: Sequence[Term], step: int, lr: float) -> UpdateResult:
        section = self._setup.recipe.update
        gradient = self._within_memory(terms, step)
        loss = sum(term.weight * value for term, value in zip(terms, gradient.losses, strict=True))
        changes = self.constraints.bend()
        # error_if_nonfinite would raise a bare RuntimeError; the arm must be marked diverged instead.
        norm = torch.nn.utils.clip_grad_norm_(self._setup.trainable.values(), section.clip_norm)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            raise DivergedError(f"update {step}: loss {loss}, gradient norm {norm.item()}")
        self.optimizer.step()
        self.constraints.follow()
        return UpdateResult(
            loss, tuple(gradient.losses), norm.item(), lr, len(gradient.padding_shares),
            float(np.mean(gradient.padding_shares)), gradient.sampler_mismatch, changes,
        )  # fmt: skip

    def _within_memory(self, terms: Sequence[Term], step: int) -> _Gradient:
        """Leave the gradient of the terms in the weights; where memory runs out, in micro-batches of half the size.

        The update stays the same but for rounding, since its weights are those of the whole of it.
        """
        groups = group_terms(terms)
        while True:
            batches = [self._split(group) for group in groups]
            gradient = _Gradient(dict.fromkeys(map(id, terms), 0.0))
            self.optimizer.zero_grad(set_to_none=True)
            try:
                for group, rows in zip(groups, batches, strict=True):
                    self._accumulate(group, rows, step, gradient)
                self._charge(groups, batches)
                return gradient
            except torch.OutOfMemoryError as error:
                sizes = [
                    _padded_tokens(group, rows) for group, part in zip(groups, batches, strict=True) for rows in part
                ]
                if all(is_single for _, is_single in sizes):
                    longest = max(int(group[0].states.lengths.max()) for group in groups)
                    raise OutOfMemoryError(
                        f"one trajectory of {longest} tokens does not fit the device's memory ({error}); train an "
                        "adapter, set update.activation_checkpointing, or shorten max_new_tokens"
                    ) from None
            # Outside of the handler, whose traceback would keep the tensors of the failed pass alive.
            self._max_tokens = min(self._max_tokens, max(size for size, _ in sizes)) // 2
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _split(self, group: list[Term]) -> list[IntArray]:
        """The contributing rows of a group in micro-batches."""
        rows = contributing_rows(group)
        states = take_rows(group[0].states, rows)
        is_packed = self._setup.recipe.update.packing and states.pair_ids is None
        batches = packed_batches(states.lengths, self._max_tokens) if is_packed else None
        return [rows[batch] for batch in batches or micro_batches(states, self._max_tokens)]

    def _accumulate(self, group: list[Term], batches: list[IntArray], step: int, gradient: _Gradient) -> None:
        """Add the gradient of a group's part of the loss to that in the trainable weights."""
        states, update = group[0].states, self._setup.recipe.update
        weights = state_weights(states, update.reduction, update.constant_tokens)
        with recomputed_activations(self._setup.learner.model):
            for rows in batches:
                micro = [term.rows(rows) for term in group]
                mask = micro[0].states.action_mask
                micro_weights = torch.from_numpy(weights[rows, : mask.shape[1]][mask]).to(self._setup.learner.device)
                scored = score_terms(self._setup, micro)
                parts = [(one.losses * micro_weights).sum() for one in scored]
                total = parts[0].new_zeros(())
                for term, part in zip(group, parts, strict=True):
                    total = total + term.weight * part
                    gradient.by_term[id(term)] += part.item()
                total.backward()  # type: ignore[no-untyped-call]
                gradient.mismatches.append(_mismatch(scored, micro, step))
        gradient.padding_shares += [padding_share(states, batches, is_packed=update.packing)] * len(batches)

    def _charge(self, groups: list[list[Term]], batches: list[list[IntArray]]) -> None:
        """Book the passes of a gradient step."""
        account, setup = self._setup.engine.account, self._setup
        num_trainable = sum(p.numel() for p in setup.trainable.values())
        for group, rows_of in zip(groups, batches, strict=True):
            num_tokens = sum(int(group[0].states.lengths[rows].sum()) for rows in rows_of)
            account.train(setup.learner.model, num_trainable, num_tokens)
            for name in OTHERS:
                if any(need.startswith(name) for term in group for need in term.what.needs):
                    account.score(setup.engine.policies[name].model, num_tokens)


@dataclass
class _Gradient:
    """What is known of a gradient that lies in the weights.

    `by_term`: loss of every term without its weight, by the term's id, in order; the lists: one entry a micro-batch.
    """

    by_term: dict[int, float]
    mismatches: list[FloatArray] = field(default_factory=list)
    padding_shares: list[float] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [*self.by_term.values()]

    @property
    def sampler_mismatch(self) -> float | None:
        found = np.concatenate(self.mismatches)
        return float(found.mean()) if len(found) else None


def _mismatch(scored: list[Scored], terms: list[Term], step: int) -> FloatArray:
    """|log π(a|s) - log μ(a|s)|, nats, at the states that the learner wrote in this update."""
    for one, term in zip(scored, terms, strict=True):
        states = term.states
        if one.policy_logprobs is None or states.label_ids is not None or not states.num_states:
            continue
        is_own = (np.array(states.writers) == "learner") & (states.writer_updates == step)
        behavior = states.behavior_logprobs[states.action_mask]
        differences = np.abs(one.policy_logprobs.numpy(force=True) - behavior)
        own: FloatArray = differences[is_own[np.nonzero(states.action_mask)[0]]]
        return own
    return np.zeros(0, dtype=np.float32)


def _padded_tokens(group: list[Term], rows: IntArray) -> tuple[int, bool]:
    """Padded tokens of a micro-batch, and whether it cannot be parted: one row, or the two of a preference."""
    states = group[0].states
    smallest = 1 if states.pair_ids is None else 2
    return int(states.lengths[rows].max()) * len(rows), len(rows) <= smallest


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


def contributing_rows(group: Sequence[Term]) -> IntArray:
    """The rows that can move the policy; the others need not pass the model.

    A row without a state cannot, nor one whose advantage is 0 (its whole group was right, or wrong) where that is all
    that counts. It keeps its part in the weights of the reduction. One row is always kept, so that an update without
    any still is one.
    """
    states = group[0].states
    is_used = states.action_mask.any(axis=1)
    if all(term.skips_zero_advantages for term in group):
        is_used &= np.any([term.states.advantages != 0 for term in group], axis=0)
    rows: IntArray = np.flatnonzero(is_used)
    return rows if len(rows) else np.zeros(1, dtype=np.int64)


def schedule_of(section: UpdateSection) -> Schedule:
    """The learning-rate schedule that an `update` table describes."""
    return Schedule(section.lr, section.num_updates, section.warmup_updates, section.schedule)
