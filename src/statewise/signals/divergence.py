"""The teacher's next-token law at every state: forward KL, reverse KL and generalized JSD.

Offline KD on dataset states, GKD / token-level OPD on learner states. Exact over the vocabulary (the loop hands logits
over in chunks of states), over the teacher's top k tokens and a tail bucket, or from one action a state (`estimators`).
Differences from GKD: the states come from `states`, not from a coin inside the trainer; and a sampled estimator is
unbiased on any states, since an action that its own law did not just draw is drawn anew.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from statewise.batch import States
from statewise.signals.estimators import (
    Estimator,
    cut_to_top,
    forward_kl_estimate,
    is_sampled,
    jsd_estimate,
    reverse_kl_estimate,
)
from statewise.signals.signal import ActRequest, Cells, Signal
from statewise.types import SignalInputs

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


def kl(from_logprobs: Tensor, to_logprobs: Tensor) -> Tensor:
    """KL(from ‖ to) = Σ_v from(v) (log from(v) - log to(v)), summed over the last axis, nats, >= 0."""
    return (from_logprobs.exp() * (from_logprobs - to_logprobs)).sum(-1)


def _laws(inputs: SignalInputs, estimator: Estimator, top_k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (policy, teacher), float32 [states, outcomes], nats."""
    policy = inputs.required("policy_logits").log_softmax(-1)
    teacher = inputs.required("teacher_logits").log_softmax(-1)
    return cut_to_top(policy, teacher, top_k) if estimator == "top_k" else (policy, teacher)


def _actions(inputs: SignalInputs) -> tuple[Tensor, Tensor]:
    return inputs.required("policy_logprobs"), inputs.required("teacher_logprobs")


def _draw(states: States, supervision: Supervision, actor: Literal["learner", "teacher"], temperature: float) -> States:
    """The states with an action of `actor`'s law at each as label.

    What it wrote itself, from its whole law (and, of the learner, in this very update), is such a draw already, but
    where states leave the loss by what was drawn there (`Supervision.trains_end_of_text`).
    """
    is_fresh = (np.array(states.writers) == actor) & (states.top_p == 1) & supervision.trains_end_of_text
    if actor == "learner":
        is_fresh &= states.writer_updates == supervision.step
    if is_fresh.all():
        return states
    drawn = supervision.act(ActRequest(actor, states, temperature, supervision.key))
    return replace(states, label_ids=np.where(is_fresh[:, None], states.token_ids, drawn))


NAMES = {
    "dataset": "offline, word-level KD (arXiv:1503.02531); GKD with λ = 0",
    "teacher": "supervised KD on teacher text (arXiv:2306.13649)",
    "learner": "token-level OPD; GKD with λ = 1 (arXiv:2306.13649)",
    "base": "KD on the base model's states",
    "stale": "OPD with a stale actor",
    "replay": "OPD with a replay buffer",
    "prefix": "imitation KD with mixed roll-in (ImitKD, arXiv:2009.07253)",
    "log": "KD on another arm's states",
    "mixture": "GKD with 0 < λ < 1, by trajectory or by state",
}


class Divergence(Signal):
    """What the divergences share: their estimator, and whose actions a sampled one looks at."""

    drawn_by: ClassVar[Literal["learner", "teacher"]] = "learner"

    estimator: Estimator = "exact"
    top_k: Annotated[int, Field(ge=1)] = 64

    @property
    def needs(self) -> frozenset[str]:
        of = "logprobs" if is_sampled(self.estimator) else "logits"
        return frozenset({f"policy_{of}", f"teacher_{of}"})

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states as they are, z being the teacher's law at each; a sampled estimator gets actions as labels."""
        if not is_sampled(self.estimator):
            return states
        return _draw(states, supervision, self.drawn_by, states.temperature)


class ForwardKL(Divergence):
    """KL(teacher ‖ policy): the policy must cover what the teacher does.

    Fields: `estimator`: `exact`, `top_k` (with `top_k` tokens and a tail bucket), or `k1`, `k2`, `k3` from one action
    of the teacher at each state.
    """

    kind: Literal["forward_kl"] = "forward_kl"
    cells: ClassVar[Cells] = {"forward_kl": NAMES}
    drawn_by: ClassVar[Literal["learner", "teacher"]] = "teacher"

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = Σ_v q(v|s) (log q(v|s) - log p(v|s)), p = policy, q = teacher.

        Args:
            inputs: `policy_logits`, `teacher_logits`, float32 [states, vocab], sampling temperature applied; sampled:
                `policy_logprobs`, `teacher_logprobs` of the labels, float32 [states].

        Returns:
            Loss per state in nats, >= 0 but for k1; not masked, not averaged (see `loop.reduce`).

        Source:
            Hinton et al., arXiv:1503.02531; Agarwal et al., arXiv:2306.13649 (GKD).
        """
        if is_sampled(self.estimator):
            return forward_kl_estimate(self.estimator, *_actions(inputs))
        policy, teacher = _laws(inputs, self.estimator, self.top_k)
        return kl(teacher, policy)


class ReverseKL(Divergence):
    """KL(policy ‖ teacher): the policy must stay where the teacher has mass.

    Fields: `estimator`: `exact`, `top_k` (with the teacher's `top_k` tokens and a tail bucket), or `k1`, `k2`, `k3`
    from one action of the learner at each state.
    """

    kind: Literal["reverse_kl"] = "reverse_kl"
    cells: ClassVar[Cells] = {"reverse_kl": NAMES}

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = Σ_v p(v|s) (log p(v|s) - log q(v|s)), p = policy, q = teacher.

        Args:
            inputs: as in `ForwardKL.loss`.

        Returns:
            Loss per state in nats, >= 0 but for k1; not masked, not averaged (see `loop.reduce`).

        Source:
            Agarwal et al., arXiv:2306.13649 (GKD); Gu et al., arXiv:2306.08543 (MiniLLM).
        """
        if is_sampled(self.estimator):
            return reverse_kl_estimate(self.estimator, *_actions(inputs))
        policy, teacher = _laws(inputs, self.estimator, self.top_k)
        return kl(policy, teacher)


class JSD(Divergence):
    """Generalized Jensen–Shannon divergence; `beta` in (0, 1) is the teacher's share of the mixture.

    Fields: `beta`; `estimator` and `top_k` as in `reverse_kl` (`k1` and `k3` are the same here).
    """

    kind: Literal["jsd"] = "jsd"
    cells: ClassVar[Cells] = {"jsd": NAMES}

    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = β KL(q ‖ m) + (1-β) KL(p ‖ m), m = β q + (1-β) p, p = policy, q = teacher.

        Args:
            inputs: as in `ForwardKL.loss`.

        Returns:
            Loss per state in nats, 0..ln 2 at β = 1/2; not masked, not averaged (see `loop.reduce`).

        Source:
            Agarwal et al., arXiv:2306.13649, eq. 1. Difference from TRL: β = 0 and 1 are the signals `forward_kl` and
            `reverse_kl`; here they are refused, since the divergence itself vanishes there.
        """
        if is_sampled(self.estimator):
            return jsd_estimate(self.estimator, *_actions(inputs), self.beta)
        policy, teacher = _laws(inputs, self.estimator, self.top_k)
        mixture = (teacher + math.log(self.beta)).logaddexp(policy + math.log1p(-self.beta))
        return self.beta * kl(teacher, mixture) + (1 - self.beta) * kl(policy, mixture)
