"""A verified answer's reward as a policy gradient: REINFORCE, RLOO, GRPO, Dr. GRPO, with PPO's clip.

How rewards become advantages, the clip, and the importance weight of states that the learner did not write are fields
of their own, so that every state source can be trained on. Difference from GRPO as published: no KL term in here;
locality is a room of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from statewise.batch import FloatArray, IntArray, States
from statewise.errors import UsageError
from statewise.kind import Refusal
from statewise.signals.advantage import OF_GROUPS, Advantage, Baseline, advantages_of
from statewise.signals.signal import Cells, Signal, Visited, refuse_given
from statewise.types import SignalInputs

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


class Reward(Signal):
    """Policy gradient on verified answers.

    Fields: `advantage`: `grpo` ((r - mean) / std of the answers to one prompt), `dr_grpo` (r - mean), `rloo` (r - mean
    of the others), `reinforce` (r less `baseline`: `none` or the `batch` mean); `clip`: the ratio to the learner that
    took up the batch stays in [1 - clip, 1 + clip] (0: no clip); `importance` weighs states by that learner's law over
    the writer's: `none`, per `token`, or per `sequence`, at most `importance_cap`.
    """

    kind: Literal["reward"] = "reward"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"policy_logprobs", "old_logprobs", "behavior_logprobs", "advantages", "rows"}
    )
    skips_zero_advantages: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = True
    cells: ClassVar[Cells] = {
        "reward": {
            "dataset": "off-policy REINFORCE on gold text (with reward 1: SFT)",
            "teacher": "off-policy policy gradient (LUFFY-like, arXiv:2504.14945)",
            "learner": "GRPO, Dr. GRPO, RLOO, REINFORCE; PPO-clip with num_epochs > 1",
            "base": "off-policy policy gradient on base rollouts",
            "stale": "asynchronous RL (importance: token or sequence)",
            "replay": "RL with a replay buffer",
            "prefix": "RL from given beginnings (reverse curriculum, arXiv:2402.05808)",
            "log": "off-policy RL on another arm's states",
            "mixture": "mixed-policy RL",
        },
    }

    advantage: Advantage = "grpo"
    baseline: Baseline = "none"
    clip: Annotated[float, Field(ge=0)] = 0.2
    importance: Literal["none", "token", "sequence"] = "none"
    importance_cap: Annotated[float, Field(gt=0)] = 2.0

    def refusal(self, visited: Visited) -> Refusal | None:
        if self.advantage in OF_GROUPS and visited.group_size == 1:
            return Refusal(
                f"advantage = {self.advantage!r} compares the answers to one prompt, and this source has one: the "
                "advantage would be 0",
                "signal.advantage = 'reinforce'" + f", or {visited.how_to_group}" * bool(visited.how_to_group),
            )
        if self.importance != "none" and not visited.is_law_known:
            return Refusal(
                f"importance = {self.importance!r} weighs states by the law that wrote them, and that of data is not "
                "known",
                "signal.importance = 'none'",
            )
        if self.importance != "none" and any(law.top_p < 1 for law in visited.laws):
            return Refusal(
                "importance weights compare whole laws, and top_p < 1 samples from a cut one",
                "source.top_p = 1, or signal.importance = 'none'",
            )
        return refuse_given(visited)

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states with rewards and advantages.

        An answer that cannot be scored has reward nan and advantage 0, and leaves its group's mean. Raises UsageError
        where importance weights are asked for and a writer's law is not known or was cut.
        """
        if self.importance != "none" and np.isnan(states.behavior_logprobs[states.action_mask]).any():
            raise UsageError(
                f"signal 'reward': importance = {self.importance!r} needs the log-probabilities that actions were "
                f"sampled with, but states of writer {_without_law(states)!r} have none; use importance = 'none'"
            )
        if self.importance != "none" and states.top_p < 1:
            raise UsageError(
                f"signal 'reward': importance = {self.importance!r} compares whole laws, but these states were sampled "
                f"with top_p = {states.top_p:g}, from a cut one; use importance = 'none'"
            )
        rewards = supervision.rewards(states)
        return replace(states, rewards=rewards, advantages=self.advantages(rewards, states.group_ids))

    def advantages(self, rewards: FloatArray, groups: IntArray) -> FloatArray:
        """The advantage of every trajectory, float32 [batch] (`advantage.advantages_of`)."""
        return advantages_of(rewards, groups, self.advantage, self.baseline)

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
