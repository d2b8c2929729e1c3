"""The contract of a supervision signal, and what it is given.

A signal is a frozen model: its fields are its configuration. `supervise` draws z ~ S(s) for the states of an update
(without gradient), `loss` is ℓ(π(·|s), z), one value per training state. Neither reduces: one function of the loop
does, by global counts (`loop.reduce`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from statewise.batch import FloatArray, IntArray, States
from statewise.kind import Kind, Kinds, Law, Refusal, Weighted
from statewise.types import Rollout, SignalInputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WriteRequest:
    """What a signal asks the teacher to write: one continuation per state, each from the stream of its key."""

    prompts: Sequence[tuple[int, ...]]
    keys: Sequence[int]
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class ActRequest:
    """What a signal asks a policy to do: one action at every training state, drawn with `key`; T = 0: the arg-max."""

    actor: Literal["learner", "teacher"]
    states: States
    temperature: float
    key: int


@dataclass(frozen=True)
class Supervision:
    """What a signal may ask while it supervises update `step`, with its own randomness.

    `write`: the teacher's pen. `act`: actions int64 [batch, time], 0 where there is no state. `grade(prompt_indices,
    rows of token_ids)` are the rewards 0..1 of the tokens after prompts, nan where they cannot be scored.
    `trains_end_of_text`: of the arm; without it states leave the loss by the action that was taken there, which is then
    no draw of a whole law.
    """

    write: Callable[[WriteRequest], list[Rollout]]
    act: Callable[[ActRequest], IntArray]
    grade: Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[float]]
    key: int
    step: int = 0
    trains_end_of_text: bool = True

    def rewards(self, states: States) -> FloatArray:
        """The reward of every trajectory, float32 [batch]: the one that it came with, or the task's grade."""
        rewards = states.rewards.astype(np.float32)  # a copy
        rows = np.flatnonzero(np.isnan(rewards)).tolist()
        if rows:
            indices = [int(states.prompt_indices[row]) for row in rows]
            rewards[rows] = self.grade(indices, [states.response_ids(row) for row in rows])
        return rewards


class Visited(Protocol):
    """What a signal may know of the source of its states (`states.source.Source`), to say whether they suit it."""

    @property
    def is_law_known(self) -> bool: ...

    @property
    def laws(self) -> tuple[Law, ...]: ...

    @property
    def law_of_data(self) -> Law: ...

    @property
    def group_size(self) -> int: ...

    @property
    def how_to_group(self) -> str: ...

    @property
    def how_to_pair(self) -> str: ...


@dataclass(frozen=True)
class Passed:
    """Tokens of a trajectory, beside its prompt: `trained` with a loss, `passed` through the learner, `written`."""

    trained: float
    passed: float
    written: float = 0.0


# By row of the table of methods (a kind, or one of its variants) and by column (`Source.column`): a cell's name.
Cells = Mapping[str, Mapping[str, str]]


class Signal(Kind):
    """A supervision signal. A new one says its loss, and what differs from the answers here: its states as they are."""

    registry: ClassVar[Kinds[Signal]] = Kinds("signal", "statewise.signals")
    # What the literature calls each cell; a cell that is not in it is called by its source and signal.
    cells: ClassVar[Cells] = {}

    @property
    def needs_teacher(self) -> bool:
        """Whether z comes from a teacher: what it writes, or its law in the loss."""
        return self.longest_written > 0 or any(need.startswith("teacher_") for need in self.needs)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs of the loss, by their names in `SignalInputs`.

        Those that end in `_logits` are whole next-token distributions, handed over in chunks.
        """
        return frozenset({"policy_logprobs"})

    @property
    def skips_zero_advantages(self) -> bool:
        """Whether a trajectory of advantage 0 has loss and gradient 0 under any policy, so that it need not pass."""
        return False

    @property
    def needs_reward(self) -> bool:
        """Whether it asks for the reward of every trajectory."""
        return False

    @property
    def longest_written(self) -> int:
        """Tokens that the teacher writes for a trajectory at most."""
        return 0

    def refusal(self, visited: Visited) -> Refusal | None:
        """Why its loss is not defined on these states; None where it is."""
        return None

    def expect(self, response: float) -> Passed:
        """Of a trajectory with so many tokens of response."""
        return Passed(response, response)

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states with z attached (continuations, labels, rewards, advantages); `states` itself is not changed."""
        return states

    @abstractmethod
    def loss(self, inputs: SignalInputs) -> Tensor:
        """Loss per training state, float32 [states], nats; not masked, not averaged."""


class WeightedSignal(Weighted):
    """A signal of an arm and its weight in the arm's loss; several of them are summed."""

    holds: ClassVar[str] = "signal"

    signal: Signal
    weight: Annotated[float, Field(gt=0)] = 1.0

    @property
    def summary(self) -> str:
        """In a few words: "0.1 reverse_kl"."""
        return (f"{self.weight:g} " if self.weight != 1 else "") + self.signal.kind


def refuse_given(visited: Visited) -> Refusal | None:
    """Data count as temperature 1: as a part of a text, too, where it is the text's own actions that are trained on."""
    at = visited.law_of_data.temperature
    if at == 1:
        return None
    return Refusal(
        f"the given part is data, which count as temperature 1, and would be trained on at {at:g}",
        "source.trains_on = 'rest', or source.temperature = 1",
    )
