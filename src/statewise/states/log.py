"""States that another arm recorded, byte for byte: the same states under another loss.

The record is of what its arm's source yielded, before its signal added anything, so that every signal starts from the
same states and the running hash of an arm that replays in the recorded order equals the recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from statewise.batch import States, join_rows
from statewise.errors import UsageError
from statewise.kind import Law
from statewise.seeding import generator
from statewise.states.groups import apart, some_groups
from statewise.states.source import SEVERAL, Lengths, Source, SourceContext, Visit

GUESSED_TRAJECTORIES = 32.0  # an update of a record that another study made, for estimates


class Log(Source):
    """The recorded updates of an arm, one an update; after the last one they come again.

    Fields: `arm` of the same study and seed, or `path` of an arm's folder in another run (`runs/pocket/arms/rl/0`;
    `{seed}` stands for the seed); `order`: as `recorded`, or the updates `shuffled` by the arm's own seed, in a new
    order every epoch; `num_trajectories` an update, None: as many as were recorded; else at least so many in whole
    groups, drawn from the recorded update and, where it has fewer, from others.
    """

    kind: Literal["log"] = "log"
    # What only the record knows is taken from the arm that is replayed (`plan.cells.resolve`).
    is_law_known: ClassVar[bool] = True
    laws: ClassVar[tuple[Law, ...]] = ()
    group_size: ClassVar[int] = 0
    how_to_group: ClassVar[str] = SEVERAL
    pool: ClassVar[int | None] = 0
    arm: str | None = None
    path: str | None = None
    order: Literal["recorded", "shuffled"] = "recorded"
    num_trajectories: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _names_one_record(self) -> Self:
        if (self.arm is None) == (self.path is None):
            raise ValueError("give one of arm and path")
        return self

    @classmethod
    def examples(cls) -> tuple[Source, ...]:
        return (cls(arm="another"),)

    @property
    def record(self) -> str:
        """The name under which the context holds what is replayed."""
        return str(self.arm or self.path)

    @property
    def summary(self) -> str:
        return f"log of {self.record}"

    @property
    def trajectories_per_update(self) -> int:
        return self.num_trajectories or 0

    @property
    def replayed_arms(self) -> tuple[str, ...]:
        return () if self.arm is None else (self.arm,)

    @property
    def replayed_paths(self) -> tuple[str, ...]:
        return () if self.path is None else (self.path,)

    def from_outside(self, folder: Path) -> Source:
        path = folder.parent.parent / self.arm / folder.name if self.arm else self.record.replace("{seed}", folder.name)
        return Log(path=str(path))

    def sized(self, num_trajectories: int) -> Source:
        return self.changed(num_trajectories=num_trajectories)

    def expect(self, lengths: Lengths, replayed: Callable[[str], Visit]) -> Visit:
        visit = Visit(GUESSED_TRAJECTORIES, lengths.gold, {}) if self.arm is None else replayed(self.arm)
        return Visit(self.num_trajectories or visit.trajectories, visit.response, {})

    def is_open(self, replayed: Callable[[str], bool]) -> bool:
        return self.arm is None or self.num_trajectories is not None or replayed(self.arm)

    def sample(self, context: SourceContext, step: int) -> States:
        """The states of one recorded update: tokens, mask, log-probabilities and rewards as they were.

        Writers are named after the record (`rl:learner`), since another learner than this arm's wrote; advantages are
        left out, since they are what a signal makes of rewards.

        Raises:
            UsageError: its prompts are not those of this arm's documents.
        """
        recorded = context.recorded[self.record]
        epoch, place = divmod(step, recorded.num_updates)
        if self.order == "shuffled":
            place = int(generator(context.key, "order", epoch).permutation(recorded.num_updates)[place])
        states = recorded.at(place) if self.num_trajectories is None else self._drawn(place, context, step)
        self._check_prompts(states, context)
        writers = tuple(f"{self.record}:{writer}" for writer in states.writers)
        return replace(states, writers=writers, advantages=np.full_like(states.advantages, np.nan))

    def _drawn(self, place: int, context: SourceContext, step: int) -> States:
        """At least `num_trajectories` rows, in whole groups and in the order in which these are drawn.

        From the update at `place`, and where it has fewer, from others, each once before any comes again.
        """
        recorded, count = context.recorded[self.record], self.num_trajectories or 0
        rng = generator(context.key, "rows", step)
        others = _turns([other for other in range(recorded.num_updates) if other != place] or [place], rng)
        updates = [recorded.at(place)]
        while (missing := count - sum(len(update.lengths) for update in updates)) > 0:
            updates.append(apart(recorded.at(next(others)), context, step, len(updates)))
        return join_rows([*updates[:-1], some_groups(updates[-1], missing + len(updates[-1].lengths), rng)])

    def _check_prompts(self, states: States, context: SourceContext) -> None:
        """Another tokenizer, template or file of documents would give tokens and rewards another meaning."""
        prompts = {example.index: example.prompt_ids for example in context.examples}
        for row, index in enumerate(states.prompt_indices.tolist()):
            if tuple(states.token_ids[row, : states.prompt_lengths[row]].tolist()) != prompts.get(index):
                raise UsageError(
                    f"source 'log': in the record of {self.record!r} training document {index} has another prompt than "
                    "here, so its tokens and rewards mean something else; replay it with the tokenizer, chat template, "
                    "shots and documents it was recorded with"
                )


def _turns(updates: list[int], rng: np.random.Generator) -> Iterator[int]:
    """The updates in random order, again and again in a new one."""
    while True:
        yield from rng.permutation(updates).tolist()
