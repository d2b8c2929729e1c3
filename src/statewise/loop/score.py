"""What a loss may look at: log-probabilities of the labels, or whole laws in chunks, at the training states only.

Terms of one update whose tokens and mask are the same share a forward pass of each model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from statewise.batch import IntArray, States, take_rows
from statewise.loop.build import Setup
from statewise.policy.load import Policy
from statewise.policy.score import (
    Law,
    StateTensors,
    action_logprobs,
    batch_tensors,
    chunked_over_laws,
    head_logits,
    state_hidden,
    states_per_chunk,
)
from statewise.types import SignalInputs

OTHERS = ("teacher", "base")


class Loss(Protocol):
    """A signal, or a locality's penalty: a loss per state from the inputs that it names (`signals.signal.Signal`)."""

    @property
    def kind(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def loss(self, inputs: SignalInputs) -> Tensor: ...


@dataclass(frozen=True)
class Term:
    """One summand of an update's loss: what, with which weight, on which states.

    `skips_zero_advantages`: a trajectory of advantage 0 cannot move the policy through this term.
    """

    what: Loss
    weight: float
    states: States
    skips_zero_advantages: bool = False

    def rows(self, rows: Sequence[int] | IntArray) -> Term:
        """The same term on some of its rows."""
        return replace(self, states=take_rows(self.states, rows))


@dataclass(frozen=True)
class Scored:
    """A term on a micro-batch; float32 [states], row by row as `action_mask` is set.

    `losses`: unreduced, with gradient to the learner. `policy_logprobs`: of the labels, nats, without gradient; None
    where the term compares whole laws.
    """

    losses: Tensor
    policy_logprobs: Tensor | None = None


def group_terms(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms in groups that share tokens and mask, in order."""
    groups: list[list[Term]] = []
    for term in terms:
        group = next((g for g in groups if term.states.has_states_of(g[0].states)), None)
        if group is None:
            groups.append([term])
        else:
            group.append(term)
    return groups


def score_terms(setup: Setup, terms: Sequence[Term]) -> list[Scored]:
    """The losses of terms that share tokens and mask, at every training state of a micro-batch."""
    states, is_packed = terms[0].states, setup.recipe.update.packing
    hidden = {"policy": state_hidden(setup.learner, states, is_packed=is_packed)}
    if not states.num_states:
        return [Scored(hidden["policy"].sum(-1) * 0)] * len(terms)  # nothing to learn from, but a gradient: zero
    with torch.no_grad():
        for name in OTHERS:
            if any(need.startswith(name) for term in terms for need in term.what.needs):
                hidden[name] = state_hidden(setup.writers.policies[name], states, is_packed=is_packed)
    return [_score_laws(setup, term, hidden) if _compares_laws(term) else _score(setup, term, hidden) for term in terms]


def _compares_laws(term: Term) -> bool:
    return "policy_logits" in term.what.needs


def _score(setup: Setup, term: Term, hidden: dict[str, Tensor]) -> Scored:
    """A term that looks at one token a state."""
    tensors = batch_tensors(term.states, device=hidden["policy"].device)
    logprobs = action_logprobs(setup.learner, hidden["policy"], tensors.labels, term.states.temperature)
    inputs = replace(
        tensors.inputs,
        policy_logprobs=logprobs,
        old_logprobs=logprobs.detach() if tensors.inputs.old_logprobs is None else tensors.inputs.old_logprobs,
        **{
            need: _others(setup, name, hidden, tensors, term)
            for name in OTHERS
            if (need := f"{name}_logprobs") in term.what.needs
        },
    )
    return Scored(term.what.loss(inputs), logprobs.detach())


def _others(setup: Setup, name: str, hidden: dict[str, Tensor], tensors: StateTensors, term: Term) -> Tensor:
    with torch.no_grad():
        return action_logprobs(setup.writers.policies[name], hidden[name], tensors.labels, term.states.temperature)


def _score_laws(setup: Setup, term: Term, hidden: dict[str, Tensor]) -> Scored:
    """A term that compares laws, never holding more than a chunk of [states, vocab]."""
    names = [name for name in OTHERS if f"{name}_logits" in term.what.needs]
    others = {name: setup.writers.policies[name] for name in names}
    law = Law(setup.learner, term.states.temperature, states_per_chunk(setup.learner))
    score = law_loss(term.what.loss, others, term.states.temperature)
    return Scored(chunked_over_laws(score, law, hidden["policy"], *(hidden[name] for name in names)))


def law_loss(
    loss: Callable[[SignalInputs], Tensor], others: Mapping[str, Policy], temperature: float
) -> Callable[..., Tensor]:
    """A loss that compares laws, as a function of a chunk's policy logits and the hidden states of `others`, in order.

    `others`: teacher, base, or both, by name.
    """

    def of_chunk(policy_logits: Tensor, *parts: Tensor) -> Tensor:
        with torch.no_grad():
            laws = {
                f"{name}_logits": head_logits(policy, part, temperature)
                for (name, policy), part in zip(others.items(), parts, strict=True)
            }
        return loss(SignalInputs(policy_logits=policy_logits, **laws))

    return of_chunk
