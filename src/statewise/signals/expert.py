"""The teacher's action at every state, whatever the trajectory did there: DAgger on the learner's states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from statewise.signals.signal import ActRequest
from statewise.types import SignalInputs, States

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


@dataclass(frozen=True)
class Expert:
    """Cross-entropy of one action of the teacher at each state.

    Field: `temperature` of the teacher: 0 takes its arg-max, that of the source draws from its law (then the expected
    gradient is that of `forward_kl`). The loss is taken at the source's temperature, so another one is refused.
    """

    kind: ClassVar[str] = "expert"
    needs_teacher: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs"})
    skips_zero_advantages: ClassVar[bool] = False

    temperature: Annotated[float, Field(ge=0)] = 0.0

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
