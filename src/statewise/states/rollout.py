"""States of a model's own rollouts, s ~ d^π (arXiv:2605.22731, eq. 4): of the learner, the teacher or the base.

The learner may be `lag` updates old, as the actor of an asynchronous run is; and what it wrote may be kept in a replay
buffer and trained on again. Each row records how old its writer was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from statewise.batch import States, Trajectory, collate
from statewise.kind import Refusal
from statewise.seeding import generator
from statewise.states.sampled import Sampled
from statewise.states.source import (
    ROLLOUT_FILL,
    Lengths,
    Source,
    SourceContext,
    Visit,
    Writer,
)


class ModelRollout(Sampled):
    """Sampled trajectories on training prompts.

    Fields: those of `Sampled`; `by` who writes; `lag` the learner of so many updates ago writes; `buffer_size`
    trajectories are kept, those of the last `max_age` updates (None: any age), and every update draws its groups from
    them, the fresh ones included (0: no buffer).
    """

    kind: Literal["rollout"] = "rollout"
    is_law_known: ClassVar[bool] = True
    by: Writer = "learner"
    lag: Annotated[int, Field(ge=0)] = 0
    buffer_size: Annotated[int, Field(ge=0)] = 0
    max_age: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.lag and self.by != "learner":
            raise ValueError(f"lag is of a learner that moves on; {self.by!r} does not change, so leave it out")
        if self.max_age is not None and not self.buffer_size:
            raise ValueError("max_age is of a replay buffer; set buffer_size")
        return self

    @classmethod
    def examples(cls) -> tuple[Source, ...]:
        each: list[dict[str, Any]] = [{"by": by} for by in ("teacher", "learner", "base")]
        return tuple(cls(samples_per_prompt=2, **one) for one in [*each, {"lag": 1}, {"buffer_size": 64}])

    @property
    def summary(self) -> str:
        stale = f" {self.lag} updates old" if self.lag else ""
        return f"{self.by} rollout{stale}" + (" with replay" if self.buffer_size else "")

    @property
    def column(self) -> str:
        return "stale" if self.lag else "replay" if self.buffer_size else self.by

    @property
    def needs_teacher(self) -> bool:
        return self.by == "teacher"

    @property
    def needs_base(self) -> bool:
        return self.by == "base"

    @property
    def max_lag(self) -> int:
        return self.lag

    def sized(self, num_trajectories: int) -> Source:
        sized = super().sized(num_trajectories)
        size = max(self.buffer_size, sized.trajectories_per_update) if self.buffer_size else 0
        return sized.changed(buffer_size=size)

    def refusal(self, most: int = 0) -> Refusal | None:
        most = most or self.trajectories_per_update
        if not 0 < self.buffer_size < most:
            return None
        reason = f"buffer_size {self.buffer_size} is below the {most} trajectories of an update"
        return Refusal(reason, f"buffer_size >= {most}")

    def expect(self, lengths: Lengths, replayed: Callable[[str], Visit]) -> Visit:
        count, response = float(self.trajectories_per_update), self.max_new_tokens * ROLLOUT_FILL
        return Visit(count, response, {self.by: count * response})

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
        examples = self.drawn(context, step)
        written_by = max(0, step - self.lag) if self.by == "learner" else -1
        prompts = {row: example.prompt_ids for row, example in enumerate(examples)}
        update = written_by if self.lag else None
        rollouts = context.roll_out(self.request(self.by, prompts, context, step, update=update))
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
