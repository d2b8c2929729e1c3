"""KL(policy ‖ base) at the training states, added to the signal's loss with a fixed or an adaptive coefficient.

The penalty of RLHF and GRPO, usable with any source × signal. Differences: it is a loss with a gradient of its own and
never part of the reward; by default it is exact over the vocabulary and not an estimate from the action taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from statewise.locality.locality import Constraint, Locality, LocalityContext, Metrics
from statewise.types import SignalInputs

if TYPE_CHECKING:
    from torch import Tensor

MAX_ERROR = 0.2  # Ziegler et al., arXiv:1909.08593, section 2.2: the clip of the controller's relative error


class KLToBase(Locality):
    """The policy pays `coefficient` per nat by which it leaves base.

    With a `target`, nats per state, the coefficient follows the measured KL, by at most 0.2 / `horizon` an update.
    """

    kind: Literal["kl_to_base"] = "kl_to_base"
    needs_base: ClassVar[bool] = True

    coefficient: Annotated[float, Field(gt=0)] = 0.1
    estimator: Literal["exact", "k3"] = "exact"
    target: Annotated[float, Field(gt=0)] | None = None
    horizon: Annotated[int, Field(ge=1)] = 10

    def copies(self, num_memories: int) -> int:
        return 0

    @property
    def needs(self) -> frozenset[str]:
        """The inputs of `loss`, by their names in `SignalInputs`."""
        kind = "logits" if self.estimator == "exact" else "logprobs"
        return frozenset({f"policy_{kind}", f"base_{kind}"})

    def loss(self, inputs: SignalInputs) -> Tensor:
        """KL(policy ‖ base) of the next-token law at every state; the coefficient is not applied.

        exact: L[s] = Σ_v p(v|s) (log p(v|s) - log q(v|s)), p = policy, q = base.
        k3:    L[s] = r - 1 - log r, r = q(a|s) / p(a|s), a the action of the state; E over a ~ p is the exact value.

        The gradient of k3 is not that of its expectation, since the actions are held fixed: E over a ~ p of
        ∇L = (1 - r) ∇log p(a|s) is -Σ_v q(v|s) ∇log p(v|s) = ∇ KL(base ‖ policy), the forward KL. On actions
        that the policy did not write (data, a teacher, stale rollouts) k3 estimates neither of them.

        Args:
            inputs: exact: `policy_logits`, `base_logits`, float32 [states, vocab], sampling temperature applied;
                k3: `policy_logprobs`, `base_logprobs`, float32 [states], nats.

        Returns:
            Loss per state in nats, >= 0; not masked, not averaged (see `loop.reduce`).

        Source:
            k3: Schulman, "Approximating KL divergence" (2020); Shao et al., arXiv:2402.03300 (GRPO), eq. 4.
        """
        if self.estimator == "k3":
            log_ratio = inputs.required("base_logprobs") - inputs.required("policy_logprobs")
            return log_ratio.expm1() - log_ratio
        policy = inputs.required("policy_logits").log_softmax(-1)
        base = inputs.required("base_logits").log_softmax(-1)
        return (policy.exp() * (policy - base)).sum(-1)

    def next_coefficient(self, coefficient: float, measured: float) -> float:
        """The coefficient of the next update: higher where the policy is farther than `target`, lower where nearer.

        β' = β (1 + e / horizon), e = clip(measured / target - 1, -0.2, 0.2); β where there is no target.

        Args:
            coefficient: that of this update, > 0.
            measured: mean KL(policy ‖ base) over the states of this update, nats per state.

        Returns:
            The coefficient, > 0, at most 0.2 / horizon away from the last in relative terms.

        Source:
            Ziegler et al., arXiv:1909.08593, section 2.2. Differences: their K_β = 0.1 is 1 / horizon (the same at the
            default of 10); their KL is that of a whole response, here it is the mean per state.
        """
        if self.target is None:
            return coefficient
        error = max(-MAX_ERROR, min(MAX_ERROR, measured / self.target - 1))
        return coefficient * (1 + error / self.horizon)

    def start(self, context: LocalityContext) -> Constraint:
        return _Penalty(self)


class _Penalty(Constraint):
    """Its coefficient, which may follow a target, is the number that a checkpoint keeps."""

    def __init__(self, kl: KLToBase) -> None:
        super().__init__()
        self._kl = kl
        self.numbers = {"coefficient": kl.coefficient}

    @property
    def penalty(self) -> tuple[KLToBase, float]:
        return self._kl, self.numbers["coefficient"]

    def on_update(self, mean_penalty: float | None) -> Metrics:
        used = self.numbers["coefficient"]
        if mean_penalty is None:
            return {"locality/kl_coefficient": used}
        self.numbers["coefficient"] = self._kl.next_coefficient(used, mean_penalty)
        return {"locality/kl_to_base_nats": mean_penalty, "locality/kl_coefficient": used}
