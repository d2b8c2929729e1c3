"""Fixed states: the trajectories of the training split, s ~ d_data (arXiv:2605.22731, eq. 5), or of given pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from statewise.batch import States, Trajectory, collate
from statewise.errors import UsageError
from statewise.kind import Law
from statewise.states.source import EncodedExample, Lengths, Source, SourceContext, Visit


class Dataset(Source):
    """Gold trajectories, in epochs of a new order each.

    Fields: `num_trajectories` an update; `num_examples` the first documents of the split that are used (None: all);
    `pairs` a JSONL file of given preferences, one `{"index", "chosen", "rejected"}` a line (index of a training
    document; texts with their leading delimiter): its trajectories come in pairs then, the chosen one first.
    """

    kind: Literal["dataset"] = "dataset"
    laws: ClassVar[tuple[Law, ...]] = (Law(),)
    how_to_pair: ClassVar[str] = "source.pairs = '<file>'"
    num_trajectories: Annotated[int, Field(ge=1)] = 32
    num_examples: Annotated[int, Field(ge=1)] | None = None
    pairs: str | None = None

    @property
    def needs_gold(self) -> bool:
        return self.pairs is None

    @property
    def pool(self) -> int | None:
        return self.num_examples

    @property
    def trajectories_per_update(self) -> int:
        return self.num_trajectories

    @property
    def group_size(self) -> int:
        return 1 if self.pairs is None else 2

    @property
    def pair_files(self) -> tuple[str, ...]:
        return () if self.pairs is None else (self.pairs,)

    def sized(self, num_trajectories: int) -> Source:
        return self.changed(num_trajectories=num_trajectories)

    def expect(self, lengths: Lengths, replayed: Callable[[str], Visit]) -> Visit:
        return Visit(float(self.num_trajectories), lengths.gold, {})

    def sample(self, context: SourceContext, step: int) -> States:
        """Every token of the gold text (or of a chosen or rejected one), end-of-text included, is an action.

        Raises:
            UsageError: a document without gold text.
        """
        if self.pairs is not None:
            drawn = context.draw_examples(-(-self.num_trajectories // 2), step, 2, self.num_examples, self.pairs)
            # A prompt may have several pairs, and a pair may come twice in an update: each is compared within itself.
            groups = [context.row_key(step, place, "pair") >> 1 for place in range(len(drawn))]
            return collate([one for pair in zip(drawn, groups, strict=True) for one in self._pair(*pair)])
        examples = context.draw_examples(self.num_trajectories, step, 1, self.num_examples)
        return collate([self._trajectory(example, example.gold_ids) for example in examples])

    def _pair(self, example: EncodedExample, group: int) -> tuple[Trajectory, Trajectory]:
        chosen, rejected = (self._trajectory(example, ids) for ids in (example.gold_ids, example.rejected_ids))
        return replace(chosen, reward=1.0, group=group), replace(rejected, reward=0.0, group=group)

    def _trajectory(self, example: EncodedExample, text_ids: tuple[int, ...]) -> Trajectory:
        if not text_ids:
            raise UsageError(
                f"document {example.index} of the training split has no gold text, so source 'dataset' has no "
                "states for it; use a rollout source or another task"
            )
        prompt = example.prompt_ids
        return Trajectory(prompt + text_ids, len(prompt), example.index, self.kind, "data")
