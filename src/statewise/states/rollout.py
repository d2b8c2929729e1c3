"""States of a model's own rollouts, s ~ d^π (arXiv:2605.22731, eq. 4): of the learner, the teacher or the base.

The learner may be `lag` updates old, as the actor of an asynchronous run is; and what it wrote may be kept in a replay
buffer and trained on again. Each row records how old its writer was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from statewise.seeding import generator
from statewise.states.source import RolloutRequest, Source, SourceContext, Writer
from statewise.types import States, Trajectory, collate


@dataclass(frozen=True)
class ModelRollout:
    """Sampled trajectories on training prompts.

    Fields: `by` who writes; `num_prompts` an update and `samples_per_prompt` (a group); `temperature` > 0 and `top_p`
    of the sampling law, `max_new_tokens` its length; `num_examples` the first documents used (None: all); `lag` the
    learner of so many updates ago writes; `buffer_size` trajectories are kept, those of the last `max_age` updates
    (None: any age), and every update draws its groups from them, the fresh ones included (0: no buffer).
    """

    kind: ClassVar[str] = "rollout"
    is_law_known: ClassVar[bool] = True
    needs_gold: ClassVar[bool] = False

    by: Writer = "learner"
    num_prompts: Annotated[int, Field(ge=1)] = 32
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    num_examples: Annotated[int, Field(ge=1)] | None = None
    lag: Annotated[int, Field(ge=0)] = 0
    buffer_size: Annotated[int, Field(ge=0)] = 0
    max_age: Annotated[int, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        if self.lag and self.by != "learner":
            raise ValueError(f"lag is of a learner that moves on; {self.by!r} does not change, so leave it out")
        if self.max_age is not None and not self.buffer_size:
            raise ValueError("max_age is of a replay buffer; set buffer_size")

    @property
    def needs_teacher(self) -> bool:
        return self.by == "teacher"

    @property
    def needs_base(self) -> bool:
        return self.by == "base"

    @property
    def max_lag(self) -> int:
        return self.lag

    @property
    def trajectories_per_update(self) -> int:
        return self.num_prompts * self.samples_per_prompt

    def sized(self, num_trajectories: int) -> Source:
        num_prompts = -(-num_trajectories // self.samples_per_prompt)
        size = max(self.buffer_size, num_prompts * self.samples_per_prompt) if self.buffer_size else 0
        return replace(self, num_prompts=num_prompts, buffer_size=size)

    def sample(self, context: SourceContext, step: int) -> States:
        """Every sampled token, end-of-text included, is an action; rows of one prompt follow each other."""
        fresh = self._write(context, step)
        if not self.buffer_size:
            return fresh
        buffer = context.buffer
        buffer.add(fresh, step, self.samples_per_prompt)
        buffer.expire(self.buffer_size, self.max_age, step)
        return buffer.draw(self.num_prompts, generator(context.key, "replay", step))

    def _write(self, context: SourceContext, step: int) -> States:
        drawn = context.draw_examples(self.num_prompts, step, self.samples_per_prompt, self.num_examples)
        examples = [example for example in drawn for _ in range(self.samples_per_prompt)]
        written_by = max(0, step - self.lag) if self.by == "learner" else -1
        rollouts = context.roll_out(
            RolloutRequest(
                writer=self.by,
                prompts=[example.prompt_ids for example in examples],
                keys=[context.row_key(step, row) for row in range(len(examples))],
                temperature=self.temperature,
                top_p=self.top_p,
                max_new_tokens=self.max_new_tokens,
                update=written_by if self.lag else None,
            )
        )
        trajectories = [
            Trajectory(
                token_ids=rollout.prompt_ids + rollout.token_ids,
                prompt_length=len(rollout.prompt_ids),
                prompt_index=example.index,
                source=self.kind,
                writer=self.by,
                behavior_logprobs=rollout.logprobs,
                is_finished=rollout.is_finished,
                writer_update=written_by,
            )
            for example, rollout in zip(examples, rollouts, strict=True)
        ]
        return collate(trajectories, self.temperature, self.top_p)
