"""Imitate the trajectory's own tokens: SFT on dataset states, sequence KD on teacher rollouts, RFT if filtered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from statewise.types import SignalInputs, States

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision

CORRECT = 1.0


@dataclass(frozen=True)
class Imitate:
    """Cross-entropy of the actions that the trajectory holds.

    Field: `only_correct`: of those trajectories alone whose answer has reward 1 (an update without any has gradient 0).
    """

    kind: ClassVar[str] = "imitate"
    needs_teacher: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs"})
    skips_zero_advantages: ClassVar[bool] = False

    only_correct: bool = False

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states as they are, z being the action itself; with `only_correct` wrong answers leave the mask."""
        if not self.only_correct:
            return states
        rewards = supervision.rewards(states)
        mask = states.action_mask & (rewards >= CORRECT)[:, None]
        return replace(states, rewards=rewards, action_mask=mask)

    def loss(self, inputs: SignalInputs) -> Tensor:
        """-log π(a|s) of every action.

        Args:
            inputs: `policy_logprobs`, float32 [states], nats.

        Returns:
            Loss per state in nats, >= 0; not masked, not averaged (see `loop.reduce`).

        Source:
            arXiv:2605.22731, eq. 5; filtered: Yuan et al., arXiv:2308.01825 (RFT).
        """
        return -inputs.required("policy_logprobs")
