"""The contract of a supervision signal, and what it is given.

A signal is a frozen dataclass: its fields are its configuration. `supervise` draws z ~ S(s) for the states of an update
(without gradient), `loss` is ℓ(π(·|s), z), one value per training state. Neither reduces: one function of the loop
does, by global counts (`loop.reduce`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from statewise.types import Rollout, SignalInputs, States

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
class Supervision:
    """What a signal may ask while it supervises: the teacher's pen, the task's grader, and its own randomness.

    `grade(prompt_index, token_ids)` is the reward 0..1 of the tokens after a prompt, nan if they cannot be scored.
    """

    write: Callable[[WriteRequest], list[Rollout]]
    grade: Callable[[int, Sequence[int]], float]
    key: int


class Signal(Protocol):
    """A supervision signal.

    `needs_teacher`: z comes from a teacher. `compares_laws`: the loss looks at whole next-token laws (logits, in
    chunks) rather than at the log-probabilities of the actions.
    """

    kind: ClassVar[str]
    needs_teacher: ClassVar[bool]
    compares_laws: ClassVar[bool]

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The states with z attached (continuations, rewards, advantages); `states` itself is not changed."""
        ...

    def loss(self, inputs: SignalInputs) -> Tensor:
        """Loss per training state, float32 [states], nats; not masked, not averaged."""
        ...
