"""States of a learner that starts from somebody else's beginning: scheduled sampling and DAgger's β, by trajectory.

The first share of a gold text or of a teacher's rollout is given, the learner writes on. Differences: scheduled
sampling (Bengio et al., arXiv:1506.03099) and DAgger (Ross et al., arXiv:1011.0686) draw a coin for every token or
episode; here a trajectory is handed over once, so that every state of the learner's part was reached by its own tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from statewise.batch import States, Trajectory, collate
from statewise.errors import UsageError
from statewise.kind import Law
from statewise.seeding import generator
from statewise.states.ramp import Ramp, Share, ends_of, value_at
from statewise.states.sampled import Sampled
from statewise.states.source import (
    ROLLOUT_FILL,
    EncodedExample,
    Lengths,
    Source,
    SourceContext,
    Visit,
)
from statewise.types import Rollout


class Prefix(Sampled):
    """The first `share` of a trajectory `of` the dataset or the teacher, then the learner.

    Fields: `share` in 0..1: a number, `uniform` (drawn anew for each trajectory) or a ramp; `trains_on`: `all` states,
    or the `rest` after the prefix (a whole given text keeps its last state); the others as in `Sampled`.
    """

    kind: Literal["prefix"] = "prefix"
    of: Literal["dataset", "teacher"] = "dataset"
    share: Share | Literal["uniform"] | Ramp = 0.5
    trains_on: Literal["all", "rest"] = "all"

    @classmethod
    def examples(cls) -> tuple[Source, ...]:
        return (cls(samples_per_prompt=2),)

    @property
    def summary(self) -> str:
        return f"{self.of} prefix"

    @property
    def needs_teacher(self) -> bool:
        return self.of == "teacher"

    @property
    def needs_gold(self) -> bool:
        return self.of == "dataset"

    @property
    def is_law_known(self) -> bool:
        # A whole given text keeps its last state, whose law data do not tell; below one half none is given as a whole.
        is_part = self.trains_on == "rest" and self.share != "uniform" and max(ends_of(self.share)) < 0.5
        return is_part or self.of == "teacher"

    @property
    def law_of_data(self) -> Law:
        return self.laws[0] if self.of == "dataset" and self.trains_on == "all" else Law()

    def expect(self, lengths: Lengths, replayed: Callable[[str], Visit]) -> Visit:
        count, rollout = float(self.trajectories_per_update), self.max_new_tokens * ROLLOUT_FILL
        whole = lengths.gold if self.of == "dataset" else rollout
        by_teacher = {"teacher": count * whole} if self.of == "teacher" else {}
        return Visit(count, whole / 2 + rollout / 2, {"learner": count * rollout / 2, **by_teacher})

    def sample(self, context: SourceContext, step: int) -> States:
        """Rows of one prompt follow each other, each cut for itself.

        Raises:
            UsageError: a document without gold text, where the dataset begins.
        """
        examples = self.drawn(context, step)
        begun = [self._cut(whole, context, step, row) for row, whole in enumerate(self._whole(examples, context, step))]
        open_rows = {r: one.prompt_ids + one.token_ids for r, one in enumerate(begun) if not one.is_finished}
        rollouts = context.roll_out(self.request("learner", open_rows, context, step)) if open_rows else []
        written = dict(zip(open_rows, rollouts, strict=True))
        trajectories = [
            self._trajectory(example, begun[row], written.get(row), step) for row, example in enumerate(examples)
        ]
        return collate(trajectories, self.temperature, self.top_p)

    def _whole(self, examples: list[EncodedExample], context: SourceContext, step: int) -> list[Rollout]:
        """The trajectories that beginnings are cut out of."""
        if self.of == "teacher":
            prompts = {row: example.prompt_ids for row, example in enumerate(examples)}
            return context.roll_out(self.request("teacher", prompts, context, step, "prefix"))
        if without := [example.index for example in examples if not example.gold_ids]:
            raise UsageError(f"document {without[0]} has no gold text to take a prefix of; use prefix of = 'teacher'")
        return [Rollout(e.prompt_ids, e.gold_ids, (float("nan"),) * len(e.gold_ids), True) for e in examples]

    def _cut(self, whole: Rollout, context: SourceContext, step: int, row: int) -> Rollout:
        """The given part; finished only where the whole is given and was finished."""
        drawn = float(generator(context.key, "share", step, row).random())
        share = drawn if self.share == "uniform" else value_at(self.share, step, context.num_updates)
        # A text that was cut off, at the latest where the context ends, leaves the learner its last token.
        most = len(whole.token_ids) - (not whole.is_finished)
        count = min(most, int(share * len(whole.token_ids) + 0.5))
        is_finished = whole.is_finished and count == len(whole.token_ids)
        return Rollout(whole.prompt_ids, whole.token_ids[:count], whole.logprobs[:count], is_finished)

    def _trajectory(self, example: EncodedExample, begun: Rollout, rest: Rollout | None, step: int) -> Trajectory:
        first = "teacher" if self.of == "teacher" else "data"
        prompt, given = len(begun.prompt_ids), len(begun.token_ids)
        tokens = begun.token_ids + (rest.token_ids if rest else ())
        logprobs = begun.logprobs + (rest.logprobs if rest else ())
        skipped = min(given, len(tokens) - 1) if self.trains_on == "rest" else 0
        writer = first if rest is None else "learner" if given == 0 else f"{first}+learner"
        is_finished = rest.is_finished if rest else begun.is_finished
        return Trajectory(
            begun.prompt_ids + tokens, prompt, example.index, self.kind, writer, logprobs[skipped:], is_finished,
            first_action=prompt + skipped, writer_update=step if rest else -1, num_given=given,
        )  # fmt: skip
