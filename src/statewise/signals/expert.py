"""The teacher's action at every state, whatever the trajectory did there: DAgger on the learner's states."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from statewise.batch import States
from statewise.kind import Refusal
from statewise.signals.signal import ActRequest, Cells, Signal, Visited
from statewise.types import SignalInputs

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


class Expert(Signal):
    """Cross-entropy of one action of the teacher at each state.

    Field: `temperature` of the teacher: 0 takes its arg-max, that of the source draws from its law (then the expected
    gradient is that of `forward_kl`). The loss is taken at the source's temperature, so another one is refused.
    """

    kind: Literal["expert"] = "expert"
    needs_teacher: ClassVar[bool] = True
    cells: ClassVar[Cells] = {
        "expert": {
            "dataset": "hard-label KD (teacher's arg-max)",
            "teacher": "behavior cloning of the teacher",
            "learner": "DAgger (arXiv:1011.0686), β = 0, without aggregation",
            "base": "DAgger on the base model's states",
            "stale": "DAgger with a stale actor",
            "replay": "DAgger with aggregation over the last trajectories",
            "prefix": "DAgger with β (arXiv:1011.0686)",
            "log": "DAgger labels on another arm's states",
            "mixture": "DAgger with β by trajectory or by state",
        },
    }

    temperature: Annotated[float, Field(ge=0)] = 0.0

    def refusal(self, visited: Visited) -> Refusal | None:
        """An action drawn at one temperature and learned at another makes the policy no copy of the teacher."""
        at = sorted({law.temperature for law in visited.laws} - {self.temperature})
        if not at or not self.temperature:
            return None
        return Refusal(
            f"the teacher's action is drawn at temperature {self.temperature:g}, and the loss on these states is taken "
            f"at {at[0]:g} (data count as 1)",
            f"signal.temperature = {at[0]:g}, or 0 for its arg-max",
        )

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states with the teacher's actions as labels."""
        return replace(
            states, label_ids=supervision.act(ActRequest("teacher", states, self.temperature, supervision.key))
        )

    def loss(self, inputs: SignalInputs) -> Tensor:
        """-log π(a*|s) of the teacher's action a*.

        Args:
            inputs: `policy_logprobs` of the labels, float32 [states], nats.

        Returns:
            Loss per state in nats, >= 0; not masked, not averaged (see `loop.reduce`).

        Source:
            Ross et al., arXiv:1011.0686 (DAgger). Difference: no data set is aggregated, each update has its states.
        """
        return -inputs.required("policy_logprobs")
