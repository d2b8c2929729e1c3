"""Imitate the trajectory's own tokens: SFT on dataset states, sequence KD on teacher rollouts, RFT if filtered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from statewise.batch import States
from statewise.kind import Refusal
from statewise.signals.signal import Cells, Signal, Visited, refuse_given
from statewise.types import SignalInputs

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision

CORRECT = 1.0


class Imitate(Signal):
    """Cross-entropy of the actions that the trajectory holds.

    Field: `only_correct`: of those trajectories alone whose answer has reward 1 (an update without any has gradient 0).
    """

    kind: Literal["imitate"] = "imitate"
    cells: ClassVar[Cells] = {
        "imitate": {
            "dataset": "SFT",
            "teacher": "sequence-level KD (Kim & Rush 2016)",
            "learner": "self-training without a filter: zero gradient in expectation, a control",
            "base": "rehearsal of the base model's own text",
            "stale": "self-training on an older self's text",
            "replay": "self-training with a replay buffer",
            "prefix": "scheduled sampling (arXiv:1506.03099), the learner's own tokens as labels",
            "log": "SFT on another arm's states",
            "mixture": "SFT mixed with own text",
        },
        "imitate(only_correct)": {
            "dataset": "SFT, of the documents whose gold text the grader accepts",
            "teacher": "rejection-sampled distillation",
            "learner": "RFT / self-SFT (arXiv:2308.01825); one step of expert iteration",
            "base": "STaR-like rejection sampling from base (arXiv:2203.14465), without rationalization",
            "stale": "asynchronous RFT",
            "replay": "RFT with a replay buffer (ReST-like, arXiv:2308.08998)",
            "prefix": "RFT from given beginnings",
            "log": "RFT on another arm's states",
            "mixture": "SFT mixed with RFT",
        },
    }

    only_correct: bool = False

    @property
    def needs_reward(self) -> bool:
        return self.only_correct

    def refusal(self, visited: Visited) -> Refusal | None:
        return refuse_given(visited)

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
