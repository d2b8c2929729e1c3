"""A batch of training states, whose table of fields says how rows are padded, joined, taken, recorded and read.

The table is `States` itself: a field's `Column` has its name in a row and its type in a record. A new field is one line
there, one in `Trajectory` where a source gives it, and one in `SignalInputs`, by the same name, where losses look at
it. What the hashes cover is listed apart (`state_records`), since a change of it makes old records unlike new ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from statewise.errors import UsageError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
# Of a batch, by the type in a record.
DTYPES = {"int32": np.int64, "int64": np.int64, "float32": np.float32, "bool": np.bool_}


@dataclass(frozen=True)
class Column:
    """How a field of `States` is made of rows and told in a record.

    `name`: in a record and, where sources give it, in `Trajectory`; `kind`: type of one value in a record; `per`: a row
    has one value, or one a token, or all rows share one. `is_read`: states that are read back have it again.
    """

    name: str
    kind: str
    per: Literal["row", "token", "batch"] = "row"
    is_read: bool = True

    def of_rows(self, values: Sequence[Any], lengths: Sequence[int]) -> Any:
        """The field of a batch whose rows have these values; None where a number is not known.

        Values of fewer tokens than a row has are those of its last ones, since a row ends with its actions.
        """
        if self.per == "batch":
            return values[0]
        if self.kind == "string":
            return tuple(values)
        dtype = np.dtype(DTYPES[self.kind])
        if self.per == "row":
            return np.array(values, dtype=dtype)  # numpy makes nan of None, and refuses it among integers
        padded = np.full((len(values), max(lengths)), _padding(dtype), dtype=dtype)
        for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
            if value is not None:
                padded[row, length - len(value) : length] = value
        return padded

    def to_rows(self, values: Any, lengths: Sequence[int]) -> Sequence[Any]:
        """What a record holds of each row, without padding, from the field of a batch; None where there is nothing."""
        if self.per == "batch" or values is None:
            return [values] * len(lengths)
        if self.per == "token":
            return [row[:length] for row, length in zip(values, lengths, strict=True)]
        if self.kind == "string":
            return list(values)
        return [None if isinstance(value, float) and math.isnan(value) else value for value in values.tolist()]


def _padding(dtype: np.dtype[Any]) -> float:
    return math.nan if dtype == np.float32 else 0


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
    reward: float = math.nan
    group: int | None = None


@dataclass(frozen=True, kw_only=True)
class States:
    """A batch of training states: trajectories with a mask of the positions whose action is trained on.

    Token t of a row is an action where `action_mask` is set; its state is `token_ids[:t]`. Position 0 is never an
    action. Rows with the same `group_ids` value are answers to one prompt that are compared with each other;
    `temperature` and `top_p` are those of the sampling law (1 for data); the rest is as in `Trajectory`.

    Shapes: [batch, time] with one value a token, right-padded with 0 or nan, else [batch], in the order of a record's
    columns; int64, float32 or bool. Log-probabilities are in nats; nan stands where a number is unknown or not given.

    What a signal may attach: `label_ids`, the tokens whose log-probabilities it looks at (None: the actions
    themselves); `pair_ids` [batch], -1 for none, equal for the two rows of a preference. And the loop, before it takes
    a batch more than once: `old_logprobs` [batch, time] of the learner as it was then.
    """

    sources: Annotated[tuple[str, ...], Column("source", "string")]
    writers: Annotated[tuple[str, ...], Column("writer", "string")]
    writer_updates: Annotated[IntArray, Column("writer_update", "int32")]
    prompt_indices: Annotated[IntArray, Column("prompt_index", "int32")]
    group_ids: Annotated[IntArray, Column("group_id", "int64")]
    prompt_lengths: Annotated[IntArray, Column("prompt_length", "int32")]
    num_given: Annotated[IntArray, Column("num_given", "int32")]
    token_ids: Annotated[IntArray, Column("token_ids", "int32", "token")]
    action_mask: Annotated[BoolArray, Column("action_mask", "bool", "token")]
    label_ids: Annotated[IntArray | None, Column("label_ids", "int32", "token", is_read=False)] = None
    behavior_logprobs: Annotated[FloatArray, Column("behavior_logprobs", "float32", "token")]
    temperature: Annotated[float, Column("temperature", "float64", "batch")] = 1.0
    top_p: Annotated[float, Column("top_p", "float64", "batch")] = 1.0
    is_finished: Annotated[BoolArray, Column("is_finished", "bool")]
    rewards: Annotated[FloatArray, Column("reward", "float32")]
    advantages: Annotated[FloatArray, Column("advantage", "float32")]
    # Not recorded: what the tokens tell, and what is made anew.
    lengths: IntArray
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


def columns_of(batch: type[States]) -> dict[str, Column]:
    """The columns of a record of states, in order, by the field of the batch."""
    hints = get_type_hints(batch, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


COLUMNS = columns_of(States)


def collate(trajectories: Sequence[Trajectory], temperature: float = 1.0, top_p: float = 1.0) -> States:
    """Pad trajectories to one batch.

    Raises:
        UsageError: no trajectories at all, an empty prompt, a trajectory without an action, or log-probabilities that
            are not one per action.
    """
    if not trajectories:
        raise UsageError("no trajectories to train on: the source yielded none; check its data and filters")
    return states_of_rows([{**_row_of(t), "temperature": temperature, "top_p": top_p} for t in trajectories])


def _row_of(trajectory: Trajectory) -> dict[str, Any]:
    length, logprobs = len(trajectory.token_ids), trajectory.behavior_logprobs
    start = trajectory.prompt_length if trajectory.first_action is None else trajectory.first_action
    document = f"document {trajectory.prompt_index} of source {trajectory.source!r}"
    if not 0 < start < length:
        raise UsageError(
            f"{document} has {start} given tokens of {length}: a trajectory needs at least one prompt token and one "
            "action"
        )
    if logprobs is not None and len(logprobs) != length - start:
        raise UsageError(
            f"{document} has {len(logprobs)} log-probabilities for {length - start} actions: every action needs one"
        )
    group = trajectory.prompt_index if trajectory.group is None else trajectory.group
    return {**vars(trajectory), "group_id": group, "action_mask": [True] * (length - start), "advantage": None}


def take_rows(states: States, rows: Sequence[int] | IntArray) -> States:
    """The given rows, in the given order, the time axis cut to the longest of them."""
    index = np.asarray(rows, dtype=np.int64)
    time = int(states.lengths[index].max())
    taken: dict[str, Any] = {}
    for name, value in vars(states).items():
        if isinstance(value, np.ndarray):
            taken[name] = value[index, :time] if value.ndim > 1 else value[index]
        elif isinstance(value, tuple):
            taken[name] = tuple(value[row] for row in index)
    return replace(states, **taken)


def join_rows(parts: Sequence[States]) -> States:
    """The rows of all parts, one part after the other, padded to the longest.

    Raises:
        UsageError: the parts were sampled at different temperatures or top-p, which a loss could not follow row by row.
    """
    for name in (name for name, column in COLUMNS.items() if column.per == "batch"):
        if len(found := sorted({getattr(part, name) for part in parts})) > 1:
            raise UsageError(
                f"states of {name} {' and '.join(f'{value:g}' for value in found)} cannot share an update, since its "
                f"loss is taken at one {name}; give every part the same (data count as 1)"
            )
    if len(parts) == 1:
        return parts[0]
    time = max(part.token_ids.shape[1] for part in parts)
    joined: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        if isinstance(first, np.ndarray):
            joined[name] = np.concatenate([_widened(value, time) for value in values])
        elif isinstance(first, tuple):
            joined[name] = sum(values, ())
    return replace(parts[0], **joined)


def _widened(value: Any, time: int) -> Any:
    """[batch, any] padded on the right to [batch, time] as `collate` pads; [batch] as it is."""
    if value.ndim == 1:
        return value
    return np.pad(value, ((0, 0), (0, time - value.shape[1])), constant_values=_padding(value.dtype))


def state_rows(step: int, states: States) -> list[dict[str, Any]]:
    """The rows of `records.STATE_SCHEMA` for one update, without padding."""
    lengths = states.lengths.tolist()
    columns = {column.name: column.to_rows(getattr(states, name), lengths) for name, column in COLUMNS.items()}
    return [
        {"step": step, "row": row, **dict(zip(columns, values, strict=True))}
        for row, values in enumerate(zip(*columns.values(), strict=True))
    ]


def states_of_rows(rows: Sequence[Mapping[str, Any]]) -> States:
    """The states that `state_rows` wrote, in the order of `rows`; labels are left out, a signal draws its own.

    Args:
        rows: one or more, sampled at one temperature and top-p.
    """
    lengths = [len(row["token_ids"]) for row in rows]
    read = {name: column for name, column in COLUMNS.items() if column.is_read}
    values = {name: column.of_rows([row[column.name] for row in rows], lengths) for name, column in read.items()}
    return States(lengths=np.array(lengths, dtype=np.int64), **values)
