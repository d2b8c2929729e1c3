"""The hashes by which two sets of recorded training states are compared (their rows: `batch.state_rows`)."""

from __future__ import annotations

import hashlib

import numpy as np

from statewise.batch import FloatArray, States

FIRST_HASH = hashlib.sha256(b"statewise/states/2").hexdigest()


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
