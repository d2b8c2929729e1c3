"""Rollouts as rows of `records.ROLLOUT_SCHEMA` and back, so that drift can be measured again from a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from statewise.types import Rollout


def rollouts_to_rows(rollouts: Sequence[Rollout], prompt_indices: Sequence[int]) -> list[dict[str, Any]]:
    """One row a rollout, in order; `prompt_indices` has one entry a rollout."""
    return [
        {
            "prompt_index": prompt_index,
            "prompt_ids": list(rollout.prompt_ids),
            "token_ids": list(rollout.token_ids),
            "logprobs": list(rollout.logprobs),
            "is_finished": rollout.is_finished,
        }
        for prompt_index, rollout in zip(prompt_indices, rollouts, strict=True)
    ]


def rows_to_rollouts(rows: Sequence[dict[str, Any]]) -> list[Rollout]:
    """The rollouts of a table, in its order; log-probabilities come back as float32 holds them."""
    return [
        Rollout(tuple(row["prompt_ids"]), tuple(row["token_ids"]), tuple(row["logprobs"]), row["is_finished"])
        for row in rows
    ]
