"""Frozen data that passes between rooms. Arrays are numpy: what a source yields is what the recorder writes.

Torch enters only where a model does (`policy`, `loop`); sources and signals can thus be listed and checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

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
    `behavior_logprobs` has one value per action (nats), nan or None where the writer's law is not known (data).
    `writer_update` counts the updates that the learner had had when it wrote (-1: somebody else wrote); `num_given`
    the tokens after the prompt that were given to the writer (a prefix). `reward` is nan unless it comes with the text.
    `group`: answers of one group are compared with each other; None: all answers to the same prompt.
    """

    token_ids: tuple[int, ...]
    prompt_length: int
    prompt_index: int
    source: str
    writer: str
    behavior_logprobs: tuple[float, ...] | None = None
    is_finished: bool = True
    first_action: int | None = None
    writer_update: int = -1
    num_given: int = 0
    reward: float = float("nan")
    group: int | None = None


@dataclass(frozen=True)
class States:
    """A batch of training states: trajectories with a mask of the positions whose action is trained on.

    Rows with the same `group_ids` value are answers to one prompt that are compared with each other. Token t of a row
    is an action where `action_mask` is set; its state is `token_ids[:t]`. Position 0 is never an action.

    Shapes: `token_ids` int64 [batch, time], right-padded with 0; `action_mask` bool [batch, time]; `lengths`,
    `prompt_lengths`, `prompt_indices`, `group_ids` int64 [batch]; `is_finished` bool [batch]; `behavior_logprobs`
    float32 [batch, time], nats, nan where unknown; `rewards`, `advantages` float32 [batch], nan where there is none;
    `writer_updates`, `num_given` int64 [batch], as in `Trajectory`; `sources`, `writers` one name a row. `temperature`
    and `top_p` are those of the sampling law (1 for data).

    What a signal may attach: `label_ids` int64 [batch, time], the tokens whose log-probabilities it looks at (None: the
    actions themselves); `pair_ids` int64 [batch], -1 for none, equal for the two rows of a preference. And the loop,
    before it takes a batch more than once: `old_logprobs` float32 [batch, time], nats, of the learner as it was then.
    """

    token_ids: IntArray
    lengths: IntArray
    prompt_lengths: IntArray
    prompt_indices: IntArray
    group_ids: IntArray
    action_mask: BoolArray
    behavior_logprobs: FloatArray
    is_finished: BoolArray
    rewards: FloatArray
    advantages: FloatArray
    writer_updates: IntArray
    num_given: IntArray
    sources: tuple[str, ...]
    writers: tuple[str, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    label_ids: IntArray | None = None
    pair_ids: IntArray | None = None
    old_logprobs: FloatArray | None = None

    @property
    def num_states(self) -> int:
        """Number of training states, i.e. of trained actions."""
        return int(self.action_mask.sum())

    @property
    def labels(self) -> IntArray:
        """The token that the loss looks at in each state, [batch, time]."""
        return self.token_ids if self.label_ids is None else self.label_ids

    def has_states_of(self, other: States) -> bool:
        """Whether tokens (the very array) and mask are those of `other`, so that one forward pass serves both."""
        return self.token_ids is other.token_ids and np.array_equal(self.action_mask, other.action_mask)

    def response_ids(self, row: int) -> tuple[int, ...]:
        """The tokens of `row` that follow its prompt."""
        return tuple(int(t) for t in self.token_ids[row, self.prompt_lengths[row] : self.lengths[row]])


def take_rows(states: States, rows: Sequence[int] | IntArray) -> States:
    """The given rows, in the given order, the time axis cut to the longest of them."""
    index = np.asarray(rows, dtype=np.int64)
    time = int(states.lengths[index].max())
    taken: dict[str, Any] = {}
    for field in fields(states):
        value = getattr(states, field.name)
        if isinstance(value, np.ndarray):
            taken[field.name] = value[index, :time] if value.ndim > 1 else value[index]
        elif isinstance(value, tuple):
            taken[field.name] = tuple(value[row] for row in index)
    return replace(states, **taken)


def join_rows(parts: Sequence[States]) -> States:
    """The rows of all parts, one part after the other, padded to the longest.

    Raises:
        UsageError: the parts were sampled at different temperatures or top-p, which a loss could not follow row by row.
    """
    for name in ("temperature", "top_p"):
        if len(found := sorted({getattr(part, name) for part in parts})) > 1:
            raise UsageError(
                f"states of {name} {' and '.join(f'{value:g}' for value in found)} cannot share an update, since its "
                f"loss is taken at one {name}; give every part the same (data count as 1)"
            )
    if len(parts) == 1:
        return parts[0]
    time = max(part.token_ids.shape[1] for part in parts)
    joined: dict[str, Any] = {}
    for field in fields(States):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            joined[field.name] = np.concatenate([_widened(value, time) for value in values])
        elif isinstance(values[0], tuple):
            joined[field.name] = sum(values, ())
    return replace(parts[0], **joined)


def _widened(value: Any, time: int) -> Any:
    """[batch, any] padded on the right to [batch, time] as `collate` pads; [batch] as it is."""
    if value.ndim == 1:
        return value
    padding = np.nan if value.dtype == np.float32 else 0
    return np.pad(value, ((0, 0), (0, time - value.shape[1])), constant_values=padding)


def collate(trajectories: Sequence[Trajectory], temperature: float = 1.0, top_p: float = 1.0) -> States:
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
        group_ids=np.array([t.prompt_index if t.group is None else t.group for t in trajectories], dtype=np.int64),
        action_mask=action_mask,
        behavior_logprobs=behavior,
        is_finished=np.array([t.is_finished for t in trajectories], dtype=np.bool_),
        rewards=np.array([t.reward for t in trajectories], dtype=np.float32),
        advantages=np.full(batch, np.nan, dtype=np.float32),
        writer_updates=np.array([t.writer_update for t in trajectories], dtype=np.int64),
        num_given=np.array([t.num_given for t in trajectories], dtype=np.int64),
        sources=tuple(t.source for t in trajectories),
        writers=tuple(t.writer for t in trajectories),
        temperature=temperature,
        top_p=top_p,
    )


@dataclass(frozen=True)
class SignalInputs:
    """What a loss may look at, for one flat run of training states.

    `[states]` runs over the trained actions of a micro-batch, row by row, so that padding cannot enter a loss. Losses
    that compare whole laws get logits, in chunks; the others get log-probabilities of the states' labels. What a signal
    does not name in its `needs` is None.

    Shapes: `policy_logits`, `teacher_logits`, `base_logits` float32 [states, vocab], sampling temperature applied;
    `policy_logprobs`, `teacher_logprobs`, `base_logprobs`, `old_logprobs` (the learner when it took up this batch),
    `behavior_logprobs` (nan where unknown), `advantages` float32 [states]; log-probabilities in nats. `rows`, `pairs`
    int64 [states]: row of the micro-batch, and preference pair, counted from 0.
    """

    policy_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    behavior_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    base_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    rows: Tensor | None = None
    pairs: Tensor | None = None
    policy_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
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
