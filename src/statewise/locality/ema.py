"""An exponential moving average of the trained weights: what is evaluated and saved; training itself does not see it.

Differences from a mean teacher: the average supervises nothing. It starts at the first weights instead of at zero, so
that no correction for a missing past is needed and early averages lie near base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from statewise.locality.locality import Constraint, Locality, LocalityContext

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


class EMA(Locality):
    """`decay` is the share of the old average kept at every update: it spans about 1 / (1 - decay) updates."""

    kind: Literal["ema"] = "ema"

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99

    def copies(self, num_memories: int) -> int:
        return 1

    def start(self, context: LocalityContext) -> Constraint:
        return _Average(context, self.decay)


class _Average(Constraint):
    def __init__(self, context: LocalityContext, decay: float) -> None:
        super().__init__()
        self._context, self._decay = context, decay
        self.tensors = context.copy()

    def after_step(self) -> None:
        update_average(self.tensors, self._context.trainable, self._decay)

    def at_end(self) -> None:
        """The average is what is saved and evaluated."""
        for name, value in self.tensors.items():
            self._context.trainable[name].data.copy_(value)


def update_average(average: Mapping[str, Tensor], parameters: Mapping[str, Parameter], decay: float) -> None:
    """Take the new weights into the average, in place, after an update: a ← d a + (1 - d) θ.

    Args:
        average: a, float32, by name; its own memory, at first a copy of the parameters.
        parameters: θ, same names and shapes.
        decay: d, in (0, 1).

    Source:
        Tarvainen & Valpola, arXiv:1703.01780, section 2. Polyak & Juditsky (SIAM J. Control Optim. 30, 1992) average
        all weights equally; here old ones fade.
    """
    for name, parameter in parameters.items():
        average[name].lerp_(parameter.detach(), 1 - decay)
