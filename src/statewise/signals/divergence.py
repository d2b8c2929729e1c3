"""The teacher's whole next-token law at every state: forward KL, reverse KL and generalized JSD, all exact.

Offline KD on dataset states, GKD / token-level OPD on learner states. The loop hands the logits over in chunks of
states. Difference from GKD: the states come from `states`, not from a coin inside the trainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from statewise.types import SignalInputs, States

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


def kl(from_logprobs: Tensor, to_logprobs: Tensor) -> Tensor:
    """KL(from ‖ to) = Σ_v from(v) (log from(v) - log to(v)), summed over the last axis, nats, >= 0."""
    return (from_logprobs.exp() * (from_logprobs - to_logprobs)).sum(-1)


def _laws(inputs: SignalInputs) -> tuple[Tensor, Tensor]:
    """Log-probabilities (policy, teacher), float32 [states, vocab], nats."""
    return inputs.required("policy_logits").log_softmax(-1), inputs.required("teacher_logits").log_softmax(-1)


@dataclass(frozen=True)
class ForwardKL:
    """KL(teacher ‖ policy): the policy must cover what the teacher does."""

    kind: ClassVar[str] = "forward_kl"
    needs_teacher: ClassVar[bool] = True
    compares_laws: ClassVar[bool] = True

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states as they are: z is the teacher's law at each."""
        return states

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = Σ_v q(v|s) (log q(v|s) - log p(v|s)), p = policy, q = teacher.

        Args:
            inputs: `policy_logits`, `teacher_logits`, float32 [states, vocab], sampling temperature applied.

        Returns:
            Loss per state in nats, >= 0; not masked, not averaged (see `loop.reduce`).

        Source:
            Hinton et al., arXiv:1503.02531; Agarwal et al., arXiv:2306.13649 (GKD).
        """
        policy, teacher = _laws(inputs)
        return kl(teacher, policy)


@dataclass(frozen=True)
class ReverseKL:
    """KL(policy ‖ teacher): the policy must stay where the teacher has mass."""

    kind: ClassVar[str] = "reverse_kl"
    needs_teacher: ClassVar[bool] = True
    compares_laws: ClassVar[bool] = True

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states as they are: z is the teacher's law at each."""
        return states

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = Σ_v p(v|s) (log p(v|s) - log q(v|s)), p = policy, q = teacher.

        Args:
            inputs: `policy_logits`, `teacher_logits`, float32 [states, vocab], sampling temperature applied.

        Returns:
            Loss per state in nats, >= 0; not masked, not averaged (see `loop.reduce`).

        Source:
            Agarwal et al., arXiv:2306.13649 (GKD); Gu et al., arXiv:2306.08543 (MiniLLM).
        """
        policy, teacher = _laws(inputs)
        return kl(policy, teacher)


@dataclass(frozen=True)
class JSD:
    """Generalized Jensen–Shannon divergence; `beta` in (0, 1) is the teacher's share of the mixture."""

    kind: ClassVar[str] = "jsd"
    needs_teacher: ClassVar[bool] = True
    compares_laws: ClassVar[bool] = True

    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states as they are: z is the teacher's law at each."""
        return states

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = β KL(q ‖ m) + (1-β) KL(p ‖ m), m = β q + (1-β) p, p = policy, q = teacher.

        Args:
            inputs: `policy_logits`, `teacher_logits`, float32 [states, vocab], sampling temperature applied.

        Returns:
            Loss per state in nats, 0..ln 2 at β = 1/2; not masked, not averaged (see `loop.reduce`).

        Source:
            Agarwal et al., arXiv:2306.13649, eq. 1. Difference from TRL: β = 0 and 1 are the signals `forward_kl` and
            `reverse_kl`; here they are refused, since the divergence itself vanishes there.
        """
        policy, teacher = _laws(inputs)
        mixture = (teacher + math.log(self.beta)).logaddexp(policy + math.log1p(-self.beta))
        return self.beta * kl(teacher, mixture) + (1 - self.beta) * kl(policy, mixture)
