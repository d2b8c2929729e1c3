"""The contract of a supervision signal, and what it is given.

A signal is a frozen dataclass: its fields are its configuration. `supervise` draws z ~ S(s) for the states of an update
(without gradient), `loss` is ℓ(π(·|s), z), one value per training state. Neither reduces: one function of the loop
does, by global counts (`loop.reduce`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from statewise.types import FloatArray, IntArray, Rollout, SignalInputs, States

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

    `write`: the teacher's pen. `act`: actions int64 [batch, time], 0 where there is no state. `grade(prompt_index,
    token_ids)` is the reward 0..1 of the tokens after a prompt, nan if they cannot be scored. `trains_end_of_text`: of
    the arm; without it states leave the loss by the action that was taken there, which is then no draw of a whole law.
    """

    write: Callable[[WriteRequest], list[Rollout]]
    act: Callable[[ActRequest], IntArray]
    grade: Callable[[int, Sequence[int]], float]
    key: int
    step: int = 0
    trains_end_of_text: bool = True

    def rewards(self, states: States) -> FloatArray:
        """The reward of every trajectory, float32 [batch]: the one that it came with, or the task's grade."""
        return np.array(
            [
                self.grade(int(states.prompt_indices[row]), states.response_ids(row)) if np.isnan(given) else given
                for row, given in enumerate(states.rewards)
            ],
            dtype=np.float32,
        )


class Signal(Protocol):
    """A supervision signal.

    `needs_teacher`: z comes from a teacher. `needs`: the inputs of the loss, by their names in `SignalInputs`; those
    that end in `_logits` are whole next-token laws, handed over in chunks. `skips_zero_advantages`: a trajectory of
    advantage 0 has loss and gradient 0 under any policy, so that it need not pass the model.
    """

    kind: ClassVar[str]
    skips_zero_advantages: ClassVar[bool]

    @property
    def needs_teacher(self) -> bool: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states with z attached (continuations, labels, rewards, advantages); `states` itself is not changed."""
        ...

    def loss(self, inputs: SignalInputs) -> Tensor:
        """Loss per training state, float32 [states], nats; not masked, not averaged."""
        ...


@dataclass(frozen=True)
class WeightedSignal:
    """A signal of an arm and its weight in the arm's loss; several of them are summed."""

    signal: Signal
    weight: float = 1.0
