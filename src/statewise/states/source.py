"""The contract of a state source, and what it is given.

A source is a frozen model: its fields are its configuration. It draws from the context it is handed, so it knows no
model, tokenizer or task; the loop builds the context.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from statewise.batch import IntArray, States
from statewise.kind import Kind, Kinds, Law, Refusal
from statewise.seeding import derive_key, generator
from statewise.states.buffer import ReplayBuffer
from statewise.types import Rollout

Writer = Literal["learner", "teacher", "base"]
# Of the allowed new tokens, the share that a rollout of the base model uses before it ends by itself; for estimates.
ROLLOUT_FILL = 0.5
SEVERAL = "samples_per_prompt >= 2 in the source"


@dataclass(frozen=True)
class EncodedExample:
    """A training document in tokens. `gold_ids` ends with end-of-text; it is empty where the task has no gold text.

    `rejected_ids`: of a given pair, the text that is not preferred; the gold text is then the chosen one.
    """

    index: int
    prompt_ids: tuple[int, ...]
    gold_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class RolloutRequest:
    """What a source asks of the rollout engine: one continuation per prompt, each from the stream of its key.

    `update`: the learner as it was after so many updates writes, where that is asked of it; None: as it is.
    """

    writer: Writer
    prompts: Sequence[tuple[int, ...]]
    keys: Sequence[int]
    temperature: float
    top_p: float
    max_new_tokens: int
    update: int | None = None


@dataclass(frozen=True)
class RecordedStates:
    """The states of another arm's updates, read on demand: `at(update)` for update in 0..num_updates - 1."""

    num_updates: int
    at: Callable[[int], States]


@dataclass(frozen=True)
class SourceContext:
    """What a source may use: documents, a rollout engine, and the key that all its randomness derives from.

    `num_updates`: of the whole arm, for schedules. `asked`: of a part of a mixture, the trajectories that were asked of
    it in each update before this one, int64 [step] (None: as many as in this one). `recorded`: the states that a source
    `log` replays, by its `record`; `pairs`: given preferences, by file.
    `buffers` are the replay buffers, by the part of the source that owns them (`name`): the only thing that a source
    changes, and so a part of every checkpoint.
    """

    examples: tuple[EncodedExample, ...]
    roll_out: Callable[[RolloutRequest], list[Rollout]]
    key: int
    num_updates: int = 1
    asked: IntArray | None = None
    recorded: Mapping[str, RecordedStates] = field(default_factory=dict)
    pairs: Mapping[str, tuple[EncodedExample, ...]] = field(default_factory=dict)
    buffers: dict[str, ReplayBuffer] = field(default_factory=dict)
    name: str = ""

    def draw_examples(
        self, count: int, step: int, rows_each: int, pool: int | None = None, pairs: str | None = None
    ) -> list[EncodedExample]:
        """The `count` documents of update `step`: epochs in a new order each, without a gap between them.

        Args:
            count: number of documents, >= 1.
            step: update, from 0.
            rows_each: trajectories that a document gives.
            pool: use only the first `pool` documents; None: all.
            pairs: take them from this file of preferences; None: from the training split.
        """
        examples = self.examples if pairs is None else self.pairs[pairs]
        size = min(pool or len(examples), len(examples))
        drawn: list[EncodedExample] = []
        position = step * count if self.asked is None else int((-(-self.asked // rows_each)).sum())
        while len(drawn) < count:
            epoch, offset = divmod(position, size)
            order = generator(self.key, "order", epoch).permutation(size)
            taken = order[offset : offset + count - len(drawn)]
            drawn.extend(examples[i] for i in np.asarray(taken).tolist())
            position += len(taken)
        return drawn

    def row_key(self, step: int, row: int, purpose: str = "row") -> int:
        """The key of the random stream of one row of one update."""
        return derive_key(self.key, purpose, step, row)

    @property
    def buffer(self) -> ReplayBuffer:
        """The replay buffer of this source or part of one."""
        return self.buffers.setdefault(self.name, ReplayBuffer())

    def part(self, index: int, asked: IntArray) -> SourceContext:
        """The context of one part of a mixture: epochs, randomness and buffer of its own; `asked` as in the fields."""
        return replace(
            self, key=derive_key(self.key, "part", index), asked=asked, name=f"{self.name}/{index}".lstrip("/")
        )


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of a gold text of the target's training split; measured, or a guess."""

    prompt: float
    gold: float
    is_measured: bool = False


@dataclass(frozen=True)
class Visit:
    """What a source is expected to yield in one update: trajectories, tokens of a response, tokens by their writer."""

    trajectories: float
    response: float
    written: Mapping[str, float]


class Source(Kind):
    """A state source: yields the training states of one update, and answers what a plan must know of them.

    A new one says what has no answer here, and what differs from the answers here.
    """

    registry: ClassVar[Kinds[Source]] = Kinds("source", "statewise.sources")

    @property
    def summary(self) -> str:
        """In a few words: "learner rollout", "log of rl"."""
        return self.kind

    @property
    def column(self) -> str:
        """Whose cell of the table of methods this is."""
        return self.kind

    @classmethod
    def examples(cls) -> tuple[Source, ...]:
        """One of each column of the table of methods, with two answers to a prompt where it can give several."""
        return () if (one := cls.example()) is None else (one,)

    @property
    def leaves(self) -> tuple[Source, ...]:
        """The sources that it draws from: itself, or the parts of a mixture."""
        return (self,)

    def with_leaves(self, change: Callable[[Source], Source]) -> Source:
        """The same with `change` made to each of `leaves`."""
        return change(self)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher writes these states."""
        return False

    @property
    def needs_base(self) -> bool:
        """Whether the untrained base model writes these states."""
        return False

    @property
    def needs_gold(self) -> bool:
        """Whether gold texts of training documents are among these states."""
        return False

    @property
    def is_law_known(self) -> bool:
        """Whether every state comes with the log-probabilities that its action was sampled with."""
        return False

    @property
    @abstractmethod
    def laws(self) -> tuple[Law, ...]:
        """How the actions are drawn that a loss is taken on, as far as it is known before a record is read.

        `(Law(),)` of data; what `sample` then returns has one of them.
        """

    @property
    def law_of_data(self) -> Law:
        """At which law actions of data are trained on, where it need not be that of data."""
        return Law()

    @property
    def max_lag(self) -> int:
        """How many updates old the learner may be that writes."""
        return 0

    @property
    def longest_rollout(self) -> int:
        """New tokens that a model writes of one trajectory at most."""
        return 0

    @property
    def pool(self) -> int | None:
        """The first documents of the training split (or given pairs) that are used; None: all."""
        return None

    @property
    @abstractmethod
    def trajectories_per_update(self) -> int:
        """0 where only the record that is read knows."""

    @property
    def group_size(self) -> int:
        """Rows that share a prompt in one update; 0 where only the record that is read knows."""
        return 1

    @property
    def how_to_group(self) -> str:
        """The setting that gives several answers to a prompt; "" where there is none."""
        return ""

    @property
    def how_to_pair(self) -> str:
        """The setting that gives a better and a worse answer to a prompt."""
        return self.how_to_group

    @property
    def pair_files(self) -> tuple[str, ...]:
        """Files of given preferences that it reads."""
        return ()

    @property
    def replayed_arms(self) -> tuple[str, ...]:
        """Arms of the same study whose states it replays."""
        return ()

    @property
    def replayed_paths(self) -> tuple[str, ...]:
        """Folders of arms of other runs whose states it replays, as they are written (`{seed}` stands for the seed)."""
        return ()

    def from_outside(self, folder: Path) -> Source:
        """One of `leaves` as it is for another study that replays the arm whose folder (of one seed) this is."""
        return self

    @abstractmethod
    def sized(self, num_trajectories: int) -> Source:
        """The same source with at least so many trajectories an update, and no more than fill its last group."""

    def refusal(self, most: int = 0) -> Refusal | None:
        """Why it cannot yield `most` trajectories an update (0: as many as it says itself), whatever the signal."""
        return None

    @abstractmethod
    def expect(self, lengths: Lengths, replayed: Callable[[str], Visit]) -> Visit:
        """The mean over an arm's updates of what one yields; `replayed`: of an arm of the study."""

    def is_open(self, replayed: Callable[[str], bool]) -> bool:
        """Whether only a run tells how many trajectories it yields; `replayed`: of an arm of the study."""
        return False

    @abstractmethod
    def sample(self, context: SourceContext, step: int) -> States:
        """Draw the states of update `step` (from 0); the same context and step give the same states."""
