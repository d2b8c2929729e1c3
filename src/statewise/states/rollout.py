"""States of a model's own rollouts, s ~ d^π (arXiv:2605.22731, eq. 4): of the learner, the teacher or the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from statewise.states.source import RolloutRequest, SourceContext, Writer
from statewise.types import States, Trajectory, collate


@dataclass(frozen=True)
class ModelRollout:
    """Sampled trajectories on training prompts.

    Fields: `by` who writes; `num_prompts` an update and `samples_per_prompt` (a group); `temperature` > 0 and `top_p`
    of the sampling law, `max_new_tokens` its length; `num_examples` the first documents used (None: all).
    """

    kind: ClassVar[str] = "rollout"

    by: Writer = "learner"
    num_prompts: Annotated[int, Field(ge=1)] = 32
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    num_examples: Annotated[int, Field(ge=1)] | None = None

    @property
    def needs_teacher(self) -> bool:
        return self.by == "teacher"

    @property
    def needs_base(self) -> bool:
        return self.by == "base"

    @property
    def trajectories_per_update(self) -> int:
        return self.num_prompts * self.samples_per_prompt

    def sample(self, context: SourceContext, step: int) -> States:
        """Every sampled token, end-of-text included, is an action; rows of one prompt follow each other."""
        drawn = context.draw_examples(self.num_prompts, step, self.num_examples)
        examples = [example for example in drawn for _ in range(self.samples_per_prompt)]
        rollouts = context.roll_out(
            RolloutRequest(
                writer=self.by,
                prompts=[example.prompt_ids for example in examples],
                keys=[context.row_key(step, row) for row in range(len(examples))],
                temperature=self.temperature,
                top_p=self.top_p,
                max_new_tokens=self.max_new_tokens,
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
            )
            for example, rollout in zip(examples, rollouts, strict=True)
        ]
        return collate(trajectories, self.temperature)
