"""Frozen data that passes between rooms. Arrays are numpy: what a source yields is what the recorder writes.

Torch enters only where a model does (`policy`, `loop`); sources and signals can thus be listed and checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from statewise.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """One document of a task, as training and sampling see it.

    `index` is the document's place in its split; `gold` carries its leading delimiter and is "" where the task has
    none.
    """

    index: int
    prompt: str
    gold: str


@dataclass(frozen=True)
class Rollout:
    """One sampled continuation of one prompt.

    `token_ids` holds the new tokens, the end-of-text token included if it was drawn; `logprobs` their log-probabilities
    in nats under the law they were drawn from (temperature applied). `is_finished`: it stopped by itself.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_finished: bool


@dataclass(frozen=True)
class Trajectory:
    """One row of training states before it is padded into a batch.

    Every token from `first_action` on (None: from `prompt_length` on) is an action; its state is everything before it.
    `behavior_logprobs` has one value per action (nats), or is None where the writer's law is not known (data).
    """

    token_ids: tuple[int, ...]
    prompt_length: int
    prompt_index: int
    source: str
    writer: str
    behavior_logprobs: tuple[float, ...] | None = None
    is_finished: bool = True
    first_action: int | None = None


@dataclass(frozen=True)
class States:
    """A batch of training states: trajectories with a mask of the positions whose action is trained on.

    Rows with the same `prompt_indices` value form a group. Token t of a row is an action where `action_mask` is set;
    its state is `token_ids[:t]`. Position 0 is never an action.

    Shapes: `token_ids` int64 [batch, time], right-padded with 0; `action_mask` bool [batch, time]; `lengths`,
    `prompt_lengths`, `prompt_indices` int64 [batch]; `is_finished` bool [batch]; `behavior_logprobs` float32
    [batch, time], nats, nan where unknown; `rewards`, `advantages` float32 [batch], nan where there is none;
    `sources`, `writers` one name a row. `temperature` is the sampling temperature (1 for data).
    """

    token_ids: IntArray
    lengths: IntArray
    prompt_lengths: IntArray
    prompt_indices: IntArray
    action_mask: BoolArray
    behavior_logprobs: FloatArray
    is_finished: BoolArray
    rewards: FloatArray
    advantages: FloatArray
    sources: tuple[str, ...]
    writers: tuple[str, ...]
    temperature: float = 1.0

    @property
    def num_states(self) -> int:
        """Number of training states, i.e. of trained actions."""
        return int(self.action_mask.sum())

    def response_ids(self, row: int) -> tuple[int, ...]:
        """The tokens of `row` that follow its prompt."""
        return tuple(int(t) for t in self.token_ids[row, self.prompt_lengths[row] : self.lengths[row]])


def collate(trajectories: Sequence[Trajectory], temperature: float = 1.0) -> States:
    """Pad trajectories to one batch.

    Raises:
        UsageError: no trajectories at all, an empty prompt, a trajectory without an action, or log-probabilities that
            are not one per action.
    """
    if not trajectories:
        raise UsageError("no trajectories to train on: the source yielded none; check its data and filters")
    batch, time = len(trajectories), max(len(t.token_ids) for t in trajectories)
    token_ids = np.zeros((batch, time), dtype=np.int64)
    action_mask = np.zeros((batch, time), dtype=np.bool_)
    behavior = np.full((batch, time), np.nan, dtype=np.float32)
    for row, trajectory in enumerate(trajectories):
        length = len(trajectory.token_ids)
        start = trajectory.prompt_length if trajectory.first_action is None else trajectory.first_action
        if not 0 < start < length:
            raise UsageError(
                f"document {trajectory.prompt_index} of source {trajectory.source!r} has {start} given tokens of "
                f"{length}: a trajectory needs at least one prompt token and one action"
            )
        token_ids[row, :length] = trajectory.token_ids
        action_mask[row, start:length] = True
        if trajectory.behavior_logprobs is not None:
            # numpy would spread a single value over all actions.
            if len(trajectory.behavior_logprobs) != length - start:
                raise UsageError(
                    f"document {trajectory.prompt_index} of source {trajectory.source!r} has "
                    f"{len(trajectory.behavior_logprobs)} log-probabilities for {length - start} actions: "
                    "every action needs one"
                )
            behavior[row, start:length] = trajectory.behavior_logprobs
    return States(
        token_ids=token_ids,
        lengths=np.array([len(t.token_ids) for t in trajectories], dtype=np.int64),
        prompt_lengths=np.array([t.prompt_length for t in trajectories], dtype=np.int64),
        prompt_indices=np.array([t.prompt_index for t in trajectories], dtype=np.int64),
        action_mask=action_mask,
        behavior_logprobs=behavior,
        is_finished=np.array([t.is_finished for t in trajectories], dtype=np.bool_),
        rewards=np.full(batch, np.nan, dtype=np.float32),
        advantages=np.full(batch, np.nan, dtype=np.float32),
        sources=tuple(t.source for t in trajectories),
        writers=tuple(t.writer for t in trajectories),
        temperature=temperature,
    )


@dataclass(frozen=True)
class SignalInputs:
    """What a signal's loss may look at, for one flat run of training states.

    `[states]` runs over the trained actions of a micro-batch, row by row, so that padding cannot enter a loss. Signals
    that compare whole laws get logits, in chunks; the others get log-probabilities of the actions. What a signal did
    not ask for in `needs` is None.

    Shapes: `policy_logits`, `teacher_logits`, `base_logits` float32 [states, vocab], sampling temperature applied;
    `policy_logprobs`, `behavior_logprobs`, `base_logprobs`, `advantages` float32 [states]; log-probabilities in nats.
    """

    policy_logprobs: Tensor | None = None
    behavior_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    policy_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    base_logprobs: Tensor | None = None
    base_logits: Tensor | None = None

    def required(self, name: str) -> Tensor:
        """The input `name`; a missing one is the loop's mistake, not the user's.

        Raises:
            LookupError: the loop did not provide `name`.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise LookupError(f"signal input {name!r} was not provided by the loop")
        return value
