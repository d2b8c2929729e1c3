"""The contract of a state source, and what it is given.

A source is a frozen dataclass: its fields are its configuration. It draws from the context it is handed, so it knows no
model, tokenizer or task; the loop builds the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from statewise.seeding import derive_key, generator
from statewise.types import Rollout, States

Writer = Literal["learner", "teacher", "base"]


@dataclass(frozen=True)
class EncodedExample:
    """A training document in tokens. `gold_ids` ends with end-of-text; it is empty where the task has no gold text."""

    index: int
    prompt_ids: tuple[int, ...]
    gold_ids: tuple[int, ...]


@dataclass(frozen=True)
class RolloutRequest:
    """What a source asks of the rollout engine: one continuation per prompt, each from the stream of its key."""

    writer: Writer
    prompts: Sequence[tuple[int, ...]]
    keys: Sequence[int]
    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class SourceContext:
    """What a source may use: documents, a rollout engine, and the key that all its randomness derives from."""

    examples: tuple[EncodedExample, ...]
    roll_out: Callable[[RolloutRequest], list[Rollout]]
    key: int

    def draw_examples(self, count: int, step: int, pool: int | None = None) -> list[EncodedExample]:
        """The `count` documents of update `step`: epochs in a new order each, without a gap between them.

        Args:
            count: number of documents, >= 1.
            step: update, from 0.
            pool: use only the first `pool` documents; None: all.
        """
        size = min(pool or len(self.examples), len(self.examples))
        drawn: list[EncodedExample] = []
        position = step * count
        while len(drawn) < count:
            epoch, offset = divmod(position, size)
            order = generator(self.key, "order", epoch).permutation(size)
            taken = order[offset : offset + count - len(drawn)]
            drawn.extend(self.examples[i] for i in np.asarray(taken).tolist())
            position += len(taken)
        return drawn

    def row_key(self, step: int, row: int) -> int:
        """The key of the random stream of one row of one update."""
        return derive_key(self.key, "row", step, row)


class Source(Protocol):
    """A state source: yields the training states of one update."""

    kind: ClassVar[str]

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher writes these states."""
        ...

    @property
    def needs_base(self) -> bool:
        """Whether the untrained base model writes these states."""
        ...

    @property
    def trajectories_per_update(self) -> int: ...

    @property
    def samples_per_prompt(self) -> int:
        """Rows that share a prompt in one update: the size of a group."""
        ...

    def sample(self, context: SourceContext, step: int) -> States:
        """Draw the states of update `step` (from 0); the same context and step give the same states."""
        ...
