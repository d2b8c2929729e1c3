"""States of several sources at once, mixed by trajectory or by state: hybrid loops between fixed and on-policy states.

Departs from GKD (arXiv:2306.13649), whose λ is one coin for a whole batch: here every trajectory, or every single
state, is drawn with the weights, so that each update holds the mixture. Every row keeps the name of its own source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, InstanceOf

from statewise.seeding import generator
from statewise.states.ramp import Ramp, Share, value_at
from statewise.states.source import Source, SourceContext
from statewise.states.thin import thin
from statewise.types import IntArray, States, join_rows, take_rows


@dataclass(frozen=True)
class Part:
    """One source and its weight in the mixture: a number, or a ramp over the updates; weights are made to sum to 1."""

    source: Source
    weight: Share | Ramp


@dataclass(frozen=True)
class Mixture:
    """Trajectories or states drawn from several sources.

    Fields: `parts`, each a source with a `weight`, how much it gives; `per`: what is drawn, a `trajectory` or a `state`
    (each part then yields `num_trajectories`, and states are drawn until one has none left); `num_trajectories`.
    """

    kind: ClassVar[str] = "mixture"
    num_examples: ClassVar[None] = None

    parts: tuple[InstanceOf[Part], ...] = ()  # two or more, read by `states.read_source`
    per: Literal["trajectory", "state"] = "trajectory"
    num_trajectories: Annotated[int, Field(ge=1)] = 32

    @property
    def needs_teacher(self) -> bool:
        return any(part.source.needs_teacher for part in self.parts)

    @property
    def needs_base(self) -> bool:
        return any(part.source.needs_base for part in self.parts)

    @property
    def needs_gold(self) -> bool:
        return any(part.source.needs_gold for part in self.parts)

    @property
    def is_law_known(self) -> bool:
        return all(part.source.is_law_known for part in self.parts)

    @property
    def max_lag(self) -> int:
        return max(part.source.max_lag for part in self.parts)

    @property
    def trajectories_per_update(self) -> int:
        return self.num_trajectories

    @property
    def samples_per_prompt(self) -> int:
        return min((known for part in self.parts if (known := part.source.samples_per_prompt)), default=0)

    def sized(self, num_trajectories: int) -> Source:
        return replace(self, num_trajectories=num_trajectories)

    def weights_at(self, step: int, num_updates: int) -> list[float]:
        """The weights in update `step`, summing to 1; not all of them are 0 (`states.read_source`)."""
        weights = [value_at(part.weight, step, num_updates) for part in self.parts]
        return [weight / sum(weights) for weight in weights]

    def sample(self, context: SourceContext, step: int) -> States:
        """Rows of the parts in turn; a part of weight 0 is not asked, and a row without a state is left out."""
        asked = self._asked(context, step)
        parts = [self._part(context, step, index, asked[:, index]) for index in range(len(self.parts))]
        if self.per == "trajectory":
            return join_rows([part for part in parts if part is not None])
        return thin(parts, self.weights_at(step, context.num_updates), generator(context.key, "mixture", step))

    def _asked(self, context: SourceContext, step: int) -> IntArray:
        """Trajectories asked of every part in the updates up to `step`, int64 [step + 1, parts]: where each stands.

        They are drawn from one stream, so that more updates do not change the first ones.
        """
        before = np.full(step, self.num_trajectories) if context.asked is None else context.asked
        totals = np.append(before, self.num_trajectories)
        weights = np.array([self.weights_at(update, context.num_updates) for update in range(step + 1)])
        if self.per == "state":
            return np.where(weights > 0, totals[:, None], 0)
        return np.asarray(generator(context.key, "mixture").multinomial(totals, weights), dtype=np.int64)

    def _part(self, context: SourceContext, step: int, index: int, asked: IntArray) -> States | None:
        """The trajectories of one part, `asked` for in this update and those before it; None for none."""
        if not (count := int(asked[-1])):
            return None
        states = self.parts[index].source.sized(count).sample(context.part(index, asked[:-1]), step)
        return take_rows(states, range(min(count, len(states.lengths))))
