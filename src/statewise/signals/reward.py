"""A verified answer's reward as a policy gradient: REINFORCE, RLOO, GRPO, Dr. GRPO, with PPO's clip.

How rewards become advantages, the clip, and the importance weight of states that the learner did not write are fields
of their own, so that every state source can be trained on. Difference from GRPO as published: no KL term in here;
locality is a room of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from statewise.errors import UsageError
from statewise.types import FloatArray, IntArray, SignalInputs, States

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision

# TRL's and DeepSeekMath's guard against a group without spread.
STD_FLOOR = 1e-4
OF_GROUPS = ("grpo", "dr_grpo", "rloo")


@dataclass(frozen=True)
class Reward:
    """Policy gradient on verified answers.

    Fields: `advantage`: `grpo` ((r - mean) / std of the answers to one prompt), `dr_grpo` (r - mean), `rloo` (r - mean
    of the others), `reinforce` (r less `baseline`: `none` or the `batch` mean); `clip`: the ratio to the learner that
    took up the batch stays in [1 - clip, 1 + clip] (0: no clip); `importance` weighs states by that learner's law over
    the writer's: `none`, per `token`, or per `sequence`, at most `importance_cap`.
    """

    kind: ClassVar[str] = "reward"
    needs_teacher: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset(
        {"policy_logprobs", "old_logprobs", "behavior_logprobs", "advantages", "rows"}
    )
    skips_zero_advantages: ClassVar[bool] = True

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce"] = "grpo"
    baseline: Literal["none", "batch"] = "none"
    clip: Annotated[float, Field(ge=0)] = 0.2
    importance: Literal["none", "token", "sequence"] = "none"
    importance_cap: Annotated[float, Field(gt=0)] = 2.0

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states with rewards and advantages.

        An answer that cannot be scored has reward nan and advantage 0, and leaves its group's mean. Raises UsageError
        where importance weights are asked for and a writer's law is not known.
        """
        if self.importance != "none" and np.isnan(states.behavior_logprobs[states.action_mask]).any():
            raise UsageError(
                f"signal 'reward': importance = {self.importance!r} needs the log-probabilities that actions were sampled "
                f"with, but states of writer {_without_law(states)!r} have none; use importance = 'none'"
            )
        rewards = supervision.rewards(states)
        return replace(states, rewards=rewards, advantages=self.advantages(rewards, states.prompt_indices))

    def advantages(self, rewards: FloatArray, groups: IntArray) -> FloatArray:
        """A_i of every trajectory, by `advantage`; n = answers to the same prompt that could be scored.

        grpo: (r_i - mean) / (std + 1e-4) · dr_grpo: r_i - mean · rloo: n / (n-1) (r_i - mean), which is r_i less the
        mean of the others · reinforce: r_i, less the mean of the batch for `baseline = "batch"`.

        Args:
            rewards: float32 [batch], nan where a response could not be scored.
            groups: int64 [batch]; equal values form a group.

        Returns:
            Advantages float32 [batch]; 0 for a nan reward and, but for reinforce, for a group of one.

        Source:
            arXiv:2402.03300 (GRPO; sample deviation, as TRL), 2503.20783 (Dr. GRPO), 2402.14740 (RLOO); Williams (1992).
        """
        advantages = np.zeros_like(rewards)
        is_graded = ~np.isnan(rewards)
        if self.advantage == "reinforce":
            baseline = rewards[is_graded].mean() if self.baseline == "batch" and is_graded.any() else 0.0
            advantages[is_graded] = rewards[is_graded] - baseline
            return advantages
        for group in np.unique(groups):
            members = np.flatnonzero((groups == group) & is_graded)
            count = len(members)
            if count < 2:
                continue
            spread = {"grpo": rewards[members].std(ddof=1) + STD_FLOOR, "dr_grpo": 1.0, "rloo": (count - 1) / count}
            advantages[members] = (rewards[members] - rewards[members].mean()) / spread[self.advantage]
        return advantages

    def loss(self, inputs: SignalInputs) -> Tensor:
        """L[s] = -w min(ρ A, clip(ρ, 1-ε, 1+ε) A), ρ = π(a|s) / π_old(a|s), w = min(cap, π_old / μ).

        π_old is the learner when it took up this batch, μ the policy that wrote the state. Clip and importance are thus
        kept apart: a state that another policy wrote is not clipped for that. w: of one action, or over its trajectory.

        Args:
            inputs: `policy_logprobs`, `old_logprobs`, `behavior_logprobs` (with importance), `advantages`, float32
                [states]; `rows` int64 [states].

        Returns:
            Loss per state, any sign; its gradient at ρ = 1 is -w A ∇ log π(a|s). Not masked, not averaged.

        Source:
            arXiv:1707.06347 (PPO), eq. 7; 2110.00641 (decoupled objective); truncation: 1802.01561 (V-trace).
        """
        policy, old = inputs.required("policy_logprobs"), inputs.required("old_logprobs")
        advantages = inputs.required("advantages")
        ratio = (policy - old).exp()
        gain = ratio * advantages
        if self.clip:
            gain = gain.minimum(ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
        return -gain if self.importance == "none" else -gain * self._weights(inputs)

    def _weights(self, inputs: SignalInputs) -> Tensor:
        """W of every state, float32 [states], in (0, importance_cap]."""
        logs = inputs.required("old_logprobs") - inputs.required("behavior_logprobs")
        if self.importance == "sequence":
            rows = inputs.required("rows")
            logs = logs.new_zeros(int(rows.max()) + 1).index_add(0, rows, logs)[rows]
        return logs.exp().clamp(max=self.importance_cap)


def _without_law(states: States) -> str:
    is_unknown = (np.isnan(states.behavior_logprobs) & states.action_mask).any(axis=1)
    return states.writers[int(is_unknown.argmax())]
