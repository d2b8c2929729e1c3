"""States of several sources at once, mixed by trajectory or by state: hybrid loops between fixed and on-policy states.

Departs from GKD (arXiv:2306.13649), whose λ is one coin for a whole batch: here every trajectory, or every single
state, is drawn with the weights, so that each update holds the mixture. Every row keeps the name of its own source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from statewise.batch import IntArray, States, join_rows, take_rows
from statewise.kind import Law, Refusal, Weighted
from statewise.seeding import generator
from statewise.states.ramp import Ramp, Share, ends_of, value_at
from statewise.states.source import Lengths, Source, SourceContext, Visit
from statewise.states.thin import thin


class Part(Weighted):
    """One source and its weight in the mixture: a number, or a ramp over the updates; weights are made to sum to 1."""

    holds: ClassVar[str] = "source"
    unused: ClassVar[tuple[str, ...]] = ("num_trajectories", "num_prompts")  # what says how much a source yields

    source: Source
    weight: Share | Ramp

    @model_validator(mode="before")
    @classmethod
    def _gives_by_weight(cls, table: Any) -> Any:
        for key in cls.unused if isinstance(table, dict) else ():
            if key in table:
                raise ValueError(
                    f"{key} of a part of a mixture is not used, since its weight says how much it gives; leave it "
                    "out, and set num_trajectories of the mixture"
                )
        return table


class Mixture(Source):
    """Trajectories or states drawn from several sources.

    Fields: `parts`, each a source with a `weight`, how much it gives; `per`: what is drawn, a `trajectory` or a `state`
    (each part then yields `num_trajectories`, and states are drawn until one has none left); `num_trajectories`.
    """

    kind: Literal["mixture"] = "mixture"
    how_to_group: ClassVar[str] = "samples_per_prompt >= 2 in every part of the source"

    # Not strict: TOML has lists only.
    parts: Annotated[tuple[Part, ...], Field(strict=False, min_length=2)]
    per: Literal["trajectory", "state"] = "trajectory"
    num_trajectories: Annotated[int, Field(ge=1)] = 32

    @model_validator(mode="after")
    def _something_has_weight(self) -> Self:
        for when, weights in zip(
            ("first", "last"), zip(*(ends_of(p.weight) for p in self.parts), strict=True), strict=True
        ):
            if not any(weights):
                raise ValueError(
                    f"the weights of a mixture are all 0 in the {when} update; give one part a weight above 0"
                )
        return self

    @classmethod
    def examples(cls) -> tuple[Source, ...]:
        parts = ({"kind": "dataset"}, {"kind": "rollout", "samples_per_prompt": 2})
        return (cls.model_validate({"parts": [{**part, "weight": 0.5} for part in parts]}),)

    @property
    def summary(self) -> str:
        return "mixture of " + ", ".join(leaf.summary for leaf in self.leaves)

    @property
    def leaves(self) -> tuple[Source, ...]:
        return tuple(leaf for part in self.parts for leaf in part.source.leaves)

    def with_leaves(self, change: Callable[[Source], Source]) -> Source:
        return self.changed(parts=tuple(part.changed(source=part.source.with_leaves(change)) for part in self.parts))

    @property
    def needs_teacher(self) -> bool:
        return any(leaf.needs_teacher for leaf in self.leaves)

    @property
    def needs_base(self) -> bool:
        return any(leaf.needs_base for leaf in self.leaves)

    @property
    def needs_gold(self) -> bool:
        return any(leaf.needs_gold for leaf in self.leaves)

    @property
    def is_law_known(self) -> bool:
        return all(leaf.is_law_known for leaf in self.leaves)

    @property
    def laws(self) -> tuple[Law, ...]:
        return tuple(law for leaf in self.leaves for law in leaf.laws)

    @property
    def law_of_data(self) -> Law:
        return next((leaf.law_of_data for leaf in self.leaves if leaf.law_of_data != Law()), Law())

    @property
    def max_lag(self) -> int:
        return max(leaf.max_lag for leaf in self.leaves)

    @property
    def longest_rollout(self) -> int:
        return max(leaf.longest_rollout for leaf in self.leaves)

    @property
    def trajectories_per_update(self) -> int:
        return self.num_trajectories

    @property
    def group_size(self) -> int:
        return min((size for leaf in self.leaves if (size := leaf.group_size)), default=0)

    @property
    def pair_files(self) -> tuple[str, ...]:
        return tuple(file for leaf in self.leaves for file in leaf.pair_files)

    @property
    def replayed_arms(self) -> tuple[str, ...]:
        return tuple(arm for leaf in self.leaves for arm in leaf.replayed_arms)

    @property
    def replayed_paths(self) -> tuple[str, ...]:
        return tuple(path for leaf in self.leaves for path in leaf.replayed_paths)

    def sized(self, num_trajectories: int) -> Source:
        return self.changed(num_trajectories=num_trajectories)

    def refusal(self, most: int = 0) -> Refusal | None:
        found = (part.source.refusal(self.num_trajectories) for part in self.parts)
        return next((one for one in found if one), None)

    def expect(self, lengths: Lengths, replayed: Callable[[str], Visit]) -> Visit:
        """The mean of the parts by their mean weights; drawn by state, every part writes as many trajectories."""
        parts = [part.source.sized(self.num_trajectories).expect(lengths, replayed) for part in self.parts]
        halves = (self.weights_at(0, 2), self.weights_at(1, 2))
        weights = [(first + last) / 2 for first, last in zip(*halves, strict=True)]
        written: dict[str, float] = {}
        for part, weight in zip(parts, weights, strict=True):
            for writer, tokens in part.written.items():
                written[writer] = written.get(writer, 0.0) + tokens * (1.0 if self.per == "state" else weight)
        response = sum(weight * part.response for part, weight in zip(parts, weights, strict=True))
        return Visit(self.num_trajectories, response, written)

    def is_open(self, replayed: Callable[[str], bool]) -> bool:
        return self.per == "state"  # it ends where a part has no state left

    def weights_at(self, step: int, num_updates: int) -> list[float]:
        """The weights in update `step`, summing to 1; not all of them are 0."""
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
