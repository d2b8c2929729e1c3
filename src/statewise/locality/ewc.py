"""Elastic weight consolidation: each weight is held where it started, as firmly as base's own answers depend on it.

The Fisher information is the true one, over answers that base itself writes on prompts of the retention tasks; many
implementations square gradients of gold labels instead, which is another matrix (Kunstner et al., arXiv:1905.12558).
Only trained weights are held: under a low-rank adapter, whose product starts at zero, that is the factor B alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from statewise.locality.locality import Constraint, LocalityContext, Metrics, Remembering

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


FISHER = "fisher.safetensors"


class EWC(Remembering):
    """A quadratic penalty of weight `strength` (λ) around the weights before the first update.

    Base writes `max_new_tokens` on each of `num_prompts` prompts of every retention task.
    """

    kind: Literal["ewc"] = "ewc"

    strength: Annotated[float, Field(gt=0)] = 100.0

    def copies(self, num_memories: int) -> int:
        return 2  # the anchor and the Fisher information

    def start(self, context: LocalityContext) -> Constraint:
        return _Spring(context, self)


class _Spring(Constraint):
    def __init__(self, context: LocalityContext, ewc: EWC) -> None:
        super().__init__()
        self._context, self._strength = context, ewc.strength
        self._anchor = context.copy()
        memories = context.remember(ewc.kind, ewc.memory)
        self.fisher = diagonal_fisher(gradient for states in memories for gradient in context.sample_gradients(states))
        context.keep(FISHER, self.fisher)

    def on_gradient(self) -> Metrics:
        penalty = add_penalty(self._context.trainable, self._anchor, self.fisher, self._strength)
        return {"locality/ewc_penalty_nats": penalty}


def diagonal_fisher(gradients: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """F_i = E over y ~ π(·|x) of (∂ log π(y|x) / ∂θ_i)², the diagonal of the Fisher information.

    Args:
        gradients: for each sample the gradient of log π(y|x), summed over the tokens of y, by name of the parameter;
            y drawn from π at temperature 1, one sample at a time (the square of a mean is not the mean of squares).
            They are read one by one and not kept.

    Returns:
        By name, in the shape and dtype of the parameter: the mean of the squares, nats² per squared unit of the weight.

    Raises:
        ValueError: no samples.

    Source:
        Kirkpatrick et al., arXiv:1612.00796; Kunstner et al., arXiv:1905.12558, section 1. Difference from the second's
        "empirical Fisher": y is the model's, not the data's.
    """
    fisher: dict[str, Tensor] = {}
    num_samples = 0
    for sample in gradients:
        num_samples += 1
        for name, gradient in sample.items():
            square = gradient.detach().square()
            fisher[name] = fisher[name].add_(square) if name in fisher else square
    if not num_samples:
        raise ValueError("the Fisher information needs the gradient of at least one sample, got none")
    return {name: total.div_(num_samples) for name, total in fisher.items()}


def add_penalty(
    parameters: Mapping[str, Parameter], anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor], strength: float
) -> float:
    """½ λ Σ_i F_i (θ_i - θ*_i)²; its gradient λ F (θ - θ*) is added to the parameters' `.grad`.

    Call it once an update, after the backward passes and before the gradient is clipped.

    Args:
        parameters: what is trained, θ; a missing `.grad` counts as 0.
        anchor: θ*, the weights before the first update, same names and shapes.
        fisher: `diagonal_fisher`, same names and shapes, >= 0.
        strength: λ.

    Returns:
        The penalty, >= 0, nats; not averaged over states, as the loss it is added to is one of the whole update.

    Source:
        Kirkpatrick et al., arXiv:1612.00796, eq. 3.
    """
    penalty = 0.0
    for name, parameter in parameters.items():
        away = parameter.detach() - anchor[name]
        penalty_gradient = away.mul(fisher[name]).mul_(strength)
        penalty += 0.5 * penalty_gradient.flatten().dot(away.flatten()).item()
        if parameter.grad is None:
            parameter.grad = penalty_gradient
        else:
            parameter.grad.add_(penalty_gradient)
    return penalty
