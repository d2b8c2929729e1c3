"""A verified answer's reward, made relative to the group of answers to the same prompt (GRPO, Dr. GRPO).

The policy gradient of a group-relative advantage, with PPO's clipped ratio to the behavior policy. With one update per
batch of the learner's own rollouts the ratio is 1 up to rounding. Difference from GRPO: no KL term in here; locality is
a room of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from statewise.types import FloatArray, IntArray, SignalInputs, States

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision

# TRL's and DeepSeekMath's guard against a group without spread.
STD_FLOOR = 1e-4


@dataclass(frozen=True)
class Reward:
    """Policy gradient on group-relative advantages.

    Fields: `scale` divides a group's centred rewards by their standard deviation (`std`, GRPO) or not (`none`,
    Dr. GRPO); `clip` bounds the ratio to the behavior policy to [1 - clip, 1 + clip].
    """

    kind: ClassVar[str] = "reward"
    needs_teacher: ClassVar[bool] = False
    compares_laws: ClassVar[bool] = False

    scale: Literal["std", "none"] = "std"
    clip: Annotated[float, Field(gt=0)] = 0.2

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states with rewards, and with advantages relative to the rows of the same prompt.

        A response that cannot be scored has reward nan and advantage 0, and is left out of its group's mean.
        """
        rewards = np.array(
            [
                supervision.grade(int(states.prompt_indices[row]), states.response_ids(row))
                for row in range(len(states.lengths))
            ],
            dtype=np.float32,
        )
        return replace(states, rewards=rewards, advantages=self.advantages(rewards, states.prompt_indices))

    def advantages(self, rewards: FloatArray, groups: IntArray) -> FloatArray:
        """A_i = (r_i - mean(r)) / (std(r) + 1e-4) within each group; without the division for `scale = "none"`.

        Args:
            rewards: float32 [batch], nan where a response could not be scored.
            groups: int64 [batch]; equal values form a group.

        Returns:
            Advantages float32 [batch]; 0 for a nan reward and for a group of one.

        Source:
            Shao et al., arXiv:2402.03300 (GRPO; sample standard deviation, as TRL); Liu et al., arXiv:2503.20783.
        """
        advantages = np.zeros_like(rewards)
        for group in np.unique(groups):
            members = np.flatnonzero((groups == group) & ~np.isnan(rewards))
            if len(members) < 2:
                continue
            centred = rewards[members] - rewards[members].mean()
            spread = rewards[members].std(ddof=1) + STD_FLOOR if self.scale == "std" else 1.0
            advantages[members] = centred / spread
        return advantages

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = -min(ρ A, clip(ρ, 1-ε, 1+ε) A), ρ = π(a|s) / μ(a|s), μ = behavior policy.

        Args:
            inputs: `policy_logprobs`, `behavior_logprobs` (nan: the writer's law is not known, ρ starts at 1),
                `advantages`, float32 [states].

        Returns:
            Loss per state, any sign; its gradient at ρ = 1 is -A ∇ log π(a|s). Not masked, not averaged.

        Source:
            Schulman et al., arXiv:1707.06347 (PPO), eq. 7; Shao et al., arXiv:2402.03300.
        """
        policy, advantages = inputs.required("policy_logprobs"), inputs.required("advantages")
        behavior = inputs.required("behavior_logprobs")
        behavior = behavior.where(~behavior.isnan(), policy.detach())
        ratio = (policy - behavior).exp()
        return -(ratio * advantages).minimum(ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
