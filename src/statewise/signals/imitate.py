"""Imitate the trajectory's own tokens: SFT on dataset states, sequence-level KD on teacher rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from statewise.types import SignalInputs, States

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


@dataclass(frozen=True)
class Imitate:
    """Cross-entropy of the actions that the trajectory holds."""

    kind: ClassVar[str] = "imitate"
    needs_teacher: ClassVar[bool] = False
    compares_laws: ClassVar[bool] = False

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states as they are: z is the action itself."""
        return states

    def loss(self, inputs: SignalInputs) -> Tensor:
        """-log π(a|s) of every action.

        Args:
            inputs: `policy_logprobs`, float32 [states], nats.

        Returns:
            Loss per state in nats, >= 0; not masked, not averaged (see `loop.reduce`).

        Source:
            arXiv:2605.22731, eq. 5.
        """
        return -inputs.required("policy_logprobs")
