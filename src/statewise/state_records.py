"""Training states as rows of a record and back again, and the hashes by which two sets of them are compared.

A row holds all that is needed to train on its states again: tokens, mask, who wrote them under which law, rewards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statewise.types import FloatArray, States

FIRST_HASH = hashlib.sha256(b"statewise/states/2").hexdigest()


def state_rows(step: int, states: States) -> list[dict[str, Any]]:
    """The rows of `records.STATE_SCHEMA` for one update, without padding."""
    rows = []
    for row, length in enumerate(states.lengths.tolist()):
        label_ids = None if states.label_ids is None else states.label_ids[row, :length]
        rows.append(
            {
                "step": step,
                "row": row,
                "source": states.sources[row],
                "writer": states.writers[row],
                "writer_update": int(states.writer_updates[row]),
                "prompt_index": int(states.prompt_indices[row]),
                "group_id": int(states.group_ids[row]),
                "prompt_length": int(states.prompt_lengths[row]),
                "num_given": int(states.num_given[row]),
                "token_ids": states.token_ids[row, :length],
                "action_mask": states.action_mask[row, :length],
                "label_ids": label_ids,
                "behavior_logprobs": states.behavior_logprobs[row, :length],
                "temperature": states.temperature,
                "top_p": states.top_p,
                "is_finished": bool(states.is_finished[row]),
                "reward": _none_if_nan(states.rewards[row]),
                "advantage": _none_if_nan(states.advantages[row]),
            }
        )
    return rows


def states_of_rows(rows: Sequence[Mapping[str, Any]]) -> States:
    """The states that `state_rows` wrote, in the order of `rows`; labels are left out, a signal draws its own.

    Args:
        rows: one or more, sampled at one temperature and top-p.
    """
    lengths = np.array([len(row["token_ids"]) for row in rows], dtype=np.int64)
    shape = len(rows), int(lengths.max())
    token_ids, action_mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    behavior = np.full(shape, np.nan, dtype=np.float32)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        token_ids[index, :length] = row["token_ids"]
        action_mask[index, :length] = row["action_mask"]
        behavior[index, :length] = row["behavior_logprobs"]
    return States(
        token_ids=token_ids,
        lengths=lengths,
        prompt_lengths=np.array([row["prompt_length"] for row in rows], dtype=np.int64),
        prompt_indices=np.array([row["prompt_index"] for row in rows], dtype=np.int64),
        group_ids=np.array([row["group_id"] for row in rows], dtype=np.int64),
        action_mask=action_mask,
        behavior_logprobs=behavior,
        is_finished=np.array([row["is_finished"] for row in rows], dtype=np.bool_),
        rewards=_floats(rows, "reward"),
        advantages=_floats(rows, "advantage"),
        writer_updates=np.array([row["writer_update"] for row in rows], dtype=np.int64),
        num_given=np.array([row["num_given"] for row in rows], dtype=np.int64),
        sources=tuple(str(row["source"]) for row in rows),
        writers=tuple(str(row["writer"]) for row in rows),
        temperature=float(rows[0]["temperature"]),
        top_p=float(rows[0]["top_p"]),
    )


def _floats(rows: Sequence[Mapping[str, Any]], name: str) -> FloatArray:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float32)


def _none_if_nan(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


def chain_hash(previous: str, states: States) -> str:
    """SHA-256 over `previous` and every row's states: equal hashes mean identical training states.

    Tokens, mask and log-probabilities, and whose answer to which prompt a row is; not the writer's name, which a replay
    changes, and not rewards, which are the signal's (`chain_rewards`).
    """
    digest = hashlib.sha256(previous.encode())
    digest.update(np.array([states.temperature, states.top_p], dtype=np.float64).tobytes())
    columns = (
        states.lengths, states.prompt_lengths, states.prompt_indices, states.group_ids, states.num_given,
        states.writer_updates, states.is_finished,
    )  # fmt: skip
    for column in columns:
        digest.update(np.ascontiguousarray(column, dtype=np.int64).tobytes())
    for row, length in enumerate(states.lengths.tolist()):
        digest.update(np.ascontiguousarray(states.token_ids[row, :length]).tobytes())
        digest.update(np.ascontiguousarray(states.action_mask[row, :length]).tobytes())
        digest.update(_bytes_of(states.behavior_logprobs[row, :length]))
    return digest.hexdigest()


def chain_rewards(previous: str, states: States) -> str:
    """SHA-256 over `previous` and the rewards of an update as they are recorded."""
    return hashlib.sha256(previous.encode() + _bytes_of(states.rewards)).hexdigest()


def _bytes_of(values: FloatArray) -> bytes:
    """The bytes of float32 numbers; one NaN is as good as another."""
    return np.where(np.isnan(values), np.float32(np.nan), values).astype(np.float32).tobytes()
