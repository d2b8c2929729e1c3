"""The teacher writes on from a state: the on-policy distillation that worked in arXiv:2605.22731 (DAgger-like).

A state is cut out of each trajectory, the teacher writes a few tokens from it, and the policy takes cross-entropy on
them. The paper says neither how the cut is chosen nor how long the continuation is: both are fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from statewise.batch import States, Trajectory, collate
from statewise.seeding import derive_key, generator
from statewise.signals.signal import Cells, Passed, Signal, WriteRequest
from statewise.types import SignalInputs

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


class Continuation(Signal):
    """Cross-entropy on what the teacher writes from a state of the trajectory.

    Fields: `num_tokens` the teacher writes at most (it may end the text earlier); `cut` which state it writes from:
    `uniform` over the trajectory's training states, or its `first` (the prompt alone); `temperature` of the teacher,
    0 for its arg-max. The loss is taken at that temperature (arg-max: 1), whatever that of the source.
    """

    kind: Literal["continuation"] = "continuation"
    cells: ClassVar[Cells] = {
        "continuation": {
            "dataset": "teacher continuations of gold prefixes",
            "teacher": "sequence-level KD on a window of each text",
            "learner": "OPD of arXiv:2605.22731, eq. 7; DAgger-like",
            "base": "distillation on the base model's states",
            "stale": "OPD with a stale actor",
            "replay": "OPD with a replay buffer",
            "prefix": "OPD from mixed beginnings (AggreVaTe-like roll-in)",
            "log": "OPD on another arm's states",
            "mixture": "hybrid OPD",
        },
    }

    num_tokens: Annotated[int, Field(ge=1)] = 32
    cut: Literal["uniform", "first"] = "uniform"
    temperature: Annotated[float, Field(ge=0)] = 1.0

    @property
    def longest_written(self) -> int:
        return self.num_tokens

    def expect(self, response: float) -> Passed:
        written = min(self.num_tokens, response)
        return Passed(written, response / 2 + written, written)

    def supervise(self, states: States, supervision: Supervision) -> States:
        """New states: the trajectory up to the cut, then the teacher's tokens, which alone are actions."""
        cuts = [self._cut(states, row, supervision.key) for row in range(len(states.lengths))]
        prefixes = [tuple(states.token_ids[row, :cut].tolist()) for row, cut in enumerate(cuts)]
        keys = [derive_key(supervision.key, "continuation", row) for row in range(len(cuts))]
        written = supervision.write(WriteRequest(prefixes, keys, self.temperature, self.num_tokens))
        return collate(
            [
                Trajectory(
                    token_ids=prefix + rollout.token_ids,
                    prompt_length=int(states.prompt_lengths[row]),
                    prompt_index=int(states.prompt_indices[row]),
                    source=states.sources[row],
                    writer="teacher",
                    behavior_logprobs=rollout.logprobs,
                    is_finished=rollout.is_finished,
                    first_action=cuts[row],
                    num_given=cuts[row] - int(states.prompt_lengths[row]),
                )
                for row, (prefix, rollout) in enumerate(zip(prefixes, written, strict=True))
            ],
            self.temperature or 1.0,
        )

    def _cut(self, states: States, row: int, key: int) -> int:
        positions = np.flatnonzero(states.action_mask[row])
        if self.cut == "first":
            return int(positions[0])
        return int(generator(key, "cut", row).choice(positions))

    def loss(self, inputs: SignalInputs) -> Tensor:
        """-log π(a|s) of every token that the teacher wrote, π at the temperature that it wrote at.

        Args:
            inputs: `policy_logprobs`, float32 [states], nats.

        Returns:
            Loss per state in nats, >= 0; not masked, not averaged (see `loop.reduce`).

        Source:
            arXiv:2605.22731, section on continuation OPD; Ross et al., arXiv:1011.0686 (DAgger).
        """
        return -inputs.required("policy_logprobs")
