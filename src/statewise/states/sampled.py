"""What sources have in common whose texts are sampled: prompts, answers to each, and the law they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from statewise.kind import Law
from statewise.states.source import SEVERAL, EncodedExample, RolloutRequest, Source, SourceContext, Writer


class Sampled(Source):
    """A source of sampled texts: several answers to each of some training prompts, under one law.

    Fields: `num_prompts` an update and `samples_per_prompt` (a group); `temperature` > 0 and `top_p` of the sampling
    law, `max_new_tokens` its length; `num_examples` the first documents used (None: all).
    """

    how_to_group: ClassVar[str] = SEVERAL

    num_prompts: Annotated[int, Field(ge=1)] = 32
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    num_examples: Annotated[int, Field(ge=1)] | None = None

    @property
    def laws(self) -> tuple[Law, ...]:
        return (Law(self.temperature, self.top_p),)

    @property
    def longest_rollout(self) -> int:
        return self.max_new_tokens

    @property
    def pool(self) -> int | None:
        return self.num_examples

    @property
    def trajectories_per_update(self) -> int:
        return self.num_prompts * self.samples_per_prompt

    @property
    def group_size(self) -> int:
        return self.samples_per_prompt

    def sized(self, num_trajectories: int) -> Source:
        return self.changed(num_prompts=-(-num_trajectories // self.samples_per_prompt))

    def drawn(self, context: SourceContext, step: int) -> list[EncodedExample]:
        """The document of every row of update `step`; those of one prompt follow each other."""
        drawn = context.draw_examples(self.num_prompts, step, self.samples_per_prompt, self.num_examples)
        return [example for example in drawn for _ in range(self.samples_per_prompt)]

    def request(
        self,
        writer: Writer,
        rows: Mapping[int, tuple[int, ...]],
        context: SourceContext,
        step: int,
        purpose: str = "row",
        update: int | None = None,
    ) -> RolloutRequest:
        """One continuation of each prompt, by row; `purpose` of its randomness, `update` as in a request."""
        keys = [context.row_key(step, row, purpose) for row in rows]
        return RolloutRequest(writer, [*rows.values()], keys, self.temperature, self.top_p, self.max_new_tokens, update)
