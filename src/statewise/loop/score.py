"""What a signal may look at: log-probabilities of the actions, or whole laws in chunks, at the training states only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from statewise.loop.build import Setup
from statewise.policy.load import Policy
from statewise.policy.score import (
    Law,
    action_logprobs,
    batch_tensors,
    chunked_over_laws,
    head_logits,
    state_hidden,
    states_per_chunk,
)
from statewise.types import SignalInputs, States


@dataclass(frozen=True)
class ScoredStates:
    """A micro-batch under its signal; float32 [states], row by row as `action_mask` is set.

    `losses`: unreduced, with gradient to the learner. `policy_logprobs`: of the actions, nats, without gradient; None
    where the signal compares whole laws.
    """

    losses: Tensor
    policy_logprobs: Tensor | None = None


def score_states(setup: Setup, states: States) -> ScoredStates:
    """The signal's loss at every training state of a micro-batch."""
    hidden = state_hidden(setup.learner, states, is_packed=setup.recipe.update.packing)
    if setup.recipe.signal.compares_laws:
        return ScoredStates(_compare_laws(setup, states, hidden))
    tensors = batch_tensors(states, device=hidden.device)
    inputs = SignalInputs(
        policy_logprobs=action_logprobs(setup.learner, hidden, tensors.actions, states.temperature),
        behavior_logprobs=tensors.behavior_logprobs,
        advantages=tensors.advantages,
    )
    return ScoredStates(setup.recipe.signal.loss(inputs), inputs.required("policy_logprobs").detach())


def _compare_laws(setup: Setup, states: States, hidden: Tensor) -> Tensor:
    """Loss of a signal that compares laws, never holding more than a chunk of [states, vocab]."""
    if setup.teacher is None:
        raise LookupError(f"signal {setup.recipe.signal.kind!r} compares laws but the setup has no teacher")
    with torch.no_grad():
        teacher_hidden = state_hidden(setup.teacher, states, is_packed=setup.recipe.update.packing)
    law = Law(setup.learner, states.temperature, states_per_chunk(setup.learner))
    score = law_loss(setup.recipe.signal.loss, setup.teacher, states.temperature)
    return chunked_over_laws(score, law, hidden, teacher_hidden)


def law_loss(
    loss: Callable[[SignalInputs], Tensor], teacher: Policy, temperature: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a signal that compares laws, as a function of a chunk's policy logits and teacher hidden states."""

    def of_chunk(policy_logits: Tensor, teacher_hidden: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = head_logits(teacher, teacher_hidden, temperature)
        return loss(SignalInputs(policy_logits=policy_logits, teacher_logits=teacher_logits))

    return of_chunk
