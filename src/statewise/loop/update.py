"""One update: gradients of all terms and micro-batches, locality, clip, AdamW.

A loss that is not finite stops the arm before it moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from statewise.batch import FloatArray, IntArray, take_rows
from statewise.config.study import UpdateSection
from statewise.errors import DivergedError
from statewise.locality.schedule import Schedule
from statewise.loop.build import Setup
from statewise.loop.constrain import Constraints
from statewise.loop.oom import recomputed_activations
from statewise.loop.reduce import state_weights
from statewise.loop.score import OTHERS, Scored, Term, group_terms, score_terms
from statewise.policy.act import label_logprobs
from statewise.policy.packing import packed_batches
from statewise.policy.score import micro_batches, padding_share


@dataclass(frozen=True)
class UpdateResult:
    """What one update did; losses (nats) and norm are those of its first gradient step.

    `loss`: of all terms, `term_losses` of each without its weight, both reduced; `mean_losses` of each over its states,
    whatever the reduction, None where it has no state; `grad_norm` before clipping. `sampler_mismatch`:
    mean |log π(a|s) - log μ(a|s)| in nats over the states that the learner wrote itself in this update, where the
    loop's log-probability and the sampler's would be equal in exact arithmetic; None where there are none.
    """

    loss: float
    term_losses: tuple[float, ...]
    mean_losses: tuple[float | None, ...]
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
        self._schedule = schedule_of(section)
        self.constraints = constraints or Constraints(setup)
        self.optimizer = torch.optim.AdamW(
            decay_groups(setup.trainable.values(), section.weight_decay), lr=section.lr, betas=section.betas
        )

    def apply(self, terms: Sequence[Term], step: int, share: float | None = None) -> UpdateResult:
        """Update the learner on the sum of `terms`, `num_epochs` times.

        Args:
            terms: what the signals made of the update's states; the localities add their own.
            step: update, from 0.
            share: of the arm's budget that is used, 0..1, where it has one; the schedule follows it.

        Raises:
            DivergedError: loss or gradient norm is not finite (the weights are then as before this gradient step), or a
                weight after it.
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
        return replace(
            result, constraints=result.constraints | self.constraints.end_update(result.mean_losses[len(terms) :])
        )

    def _with_old_law(self, term: Term) -> Term:
        """The term with the learner's log-probabilities before the first of several gradient steps."""
        if "old_logprobs" not in term.what.needs:
            return term
        old = self._setup.limit.within(
            [term.states],
            lambda max_tokens: [micro_batches(term.states, max_tokens)],
            lambda batches: label_logprobs(self._setup.learner, term.states, batches[0]),
        )
        self._setup.writers.account.score(self._setup.learner.model, int(term.states.lengths.sum()))
        return replace(term, states=replace(term.states, old_logprobs=old))

    def _step(self, terms: Sequence[Term], step: int, lr: float) -> UpdateResult:
        section = self._setup.recipe.update
        gradient = self._gradient(terms, step)
        sums = [gradient.by_term[id(term)] for term in terms]
        loss = sum(term.weight * one.weighted for term, one in zip(terms, sums, strict=True))
        changes = self.constraints.on_gradient()
        # error_if_nonfinite would raise a bare RuntimeError; the arm must be marked diverged instead.
        norm = torch.nn.utils.clip_grad_norm_(self._setup.trainable.values(), section.clip_norm)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            raise DivergedError(f"update {step}: loss {loss}, gradient norm {norm.item()}")
        changes |= self.constraints.move(self.optimizer, lr)
        if not torch.stack([p.detach().isfinite().all() for p in self._setup.trainable.values()]).all():
            raise DivergedError(f"update {step}: a weight is not finite after a step at learning rate {lr:g}")
        return UpdateResult(
            loss, tuple(one.weighted for one in sums), tuple(one.mean for one in sums), norm.item(), lr,
            len(gradient.padding_shares), float(np.mean(gradient.padding_shares)), gradient.sampler_mismatch, changes,
        )  # fmt: skip

    def _gradient(self, terms: Sequence[Term], step: int) -> _Gradient:
        """Leave the gradient of the terms in the weights.

        However it is split, the update is the same but for rounding, since its weights are those of the whole of it.
        """
        groups = group_terms(terms)

        def accumulate(batches: Sequence[list[IntArray]]) -> _Gradient:
            gradient = _Gradient({id(term): _Sum(term.states.num_states) for term in terms})
            self.optimizer.zero_grad(set_to_none=True)
            for group, rows in zip(groups, batches, strict=True):
                self._accumulate(group, rows, step, gradient)
            for parameter in self._setup.trainable.values():
                if parameter.grad is None:  # AdamW would pass over it: no decay, no moments, a step behind the others
                    parameter.grad = torch.zeros_like(parameter)
            self._charge(groups, batches)
            return gradient

        return self._setup.limit.within(
            [group[0].states for group in groups],
            lambda max_tokens: [self._split(group, max_tokens) for group in groups],
            accumulate,
            is_packed=self._setup.recipe.update.packing,
        )

    def _split(self, group: list[Term], max_tokens: int) -> list[IntArray]:
        """The contributing rows of a group in micro-batches."""
        rows = contributing_rows(group)
        states = take_rows(group[0].states, rows)
        is_packed = self._setup.recipe.update.packing and states.pair_ids is None
        batches = packed_batches(states.lengths, max_tokens) if is_packed else None
        return [rows[batch] for batch in batches or micro_batches(states, max_tokens)]

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
                for term, part, one in zip(group, parts, scored, strict=True):
                    total = total + term.weight * part
                    gradient.by_term[id(term)].add(part.item(), one.losses.detach().sum().item())
                total.backward()  # type: ignore[no-untyped-call]
                gradient.mismatches.append(_mismatch(scored, micro, step))
        gradient.padding_shares += [padding_share(states, batches, is_packed=update.packing)] * len(batches)

    def _charge(self, groups: list[list[Term]], batches: Sequence[list[IntArray]]) -> None:
        """Book the passes of a gradient step."""
        account, setup = self._setup.writers.account, self._setup
        for group, rows_of in zip(groups, batches, strict=True):
            num_tokens = sum(int(group[0].states.lengths[rows].sum()) for rows in rows_of)
            account.train(setup.learner.model, setup.num_adapted, num_tokens)
            for name in OTHERS:
                if any(need.startswith(name) for term in group for need in term.what.needs):
                    account.score(setup.writers.policies[name].model, num_tokens)


@dataclass
class _Sum:
    """The losses of a term without its weight, `weighted` by the reduction and `plain`, over `num_states`."""

    num_states: int
    weighted: float = 0.0
    plain: float = 0.0

    def add(self, weighted: float, plain: float) -> None:
        self.weighted += weighted
        self.plain += plain

    @property
    def mean(self) -> float | None:
        return self.plain / self.num_states if self.num_states else None


@dataclass
class _Gradient:
    """What is known of a gradient that lies in the weights: `by_term`, by the term's id; one entry a micro-batch."""

    by_term: dict[int, _Sum]
    mismatches: list[FloatArray] = field(default_factory=list)
    padding_shares: list[float] = field(default_factory=list)

    @property
    def sampler_mismatch(self) -> float | None:
        found = np.concatenate(self.mismatches)
        return float(found.mean()) if len(found) else None


def _mismatch(scored: list[Scored], terms: list[Term], step: int) -> FloatArray:
    """|log π(a|s) - log μ(a|s)|, nats, at the states that the learner wrote in this update, from its whole law."""
    for one, term in zip(scored, terms, strict=True):
        states = term.states
        if one.policy_logprobs is None or states.label_ids is not None or not states.num_states or states.top_p < 1:
            continue
        is_own = (np.array(states.writers) == "learner") & (states.writer_updates == step)
        behavior = states.behavior_logprobs[states.action_mask]
        differences = np.abs(one.policy_logprobs.numpy(force=True) - behavior)
        own: FloatArray = differences[is_own[np.nonzero(states.action_mask)[0]]]
        return own
    return np.zeros(0, dtype=np.float32)


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


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; gains and biases do not, as in transformers' Trainer: they set scales, and are few."""
    by_kind: dict[bool, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        by_kind.setdefault(parameter.ndim > 1, []).append(parameter)
    return [{"params": held, "weight_decay": weight_decay if is_matrix else 0.0} for is_matrix, held in by_kind.items()]


def schedule_of(section: UpdateSection) -> Schedule:
    """The learning-rate schedule that an `update` table describes."""
    return Schedule(section.lr, section.num_updates, section.warmup_updates, section.schedule)
