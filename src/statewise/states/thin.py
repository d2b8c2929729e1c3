"""Single states drawn from the batches of several sources, for a mixture by state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from statewise.batch import States, join_rows, take_rows


def thin(parts: list[States | None], weights: list[float], rng: np.random.Generator) -> States:
    """States drawn one by one, each from part k with probability w_k, until the part that is drawn has none left."""
    available = [0 if part is None else part.num_states for part in parts]
    draws = rng.choice(len(parts), size=sum(available), p=weights)
    taken = np.cumsum(draws[:, None] == np.arange(len(parts)), axis=0)
    is_over = (taken > np.array(available)).any(axis=1)
    counts = np.bincount(draws[: is_over.argmax() if is_over.any() else None], minlength=len(parts)).tolist()
    return join_rows([_keep(part, n, rng) for part, n in zip(parts, counts, strict=True) if part is not None and n])


def _keep(states: States, count: int, rng: np.random.Generator) -> States:
    """`count` of the states, each equally likely; rows that are left without one are dropped."""
    rows, columns = np.nonzero(states.action_mask)
    chosen = rng.permutation(len(rows))[:count]
    mask = np.zeros_like(states.action_mask)
    mask[rows[chosen], columns[chosen]] = True
    behavior = np.where(mask, states.behavior_logprobs, np.float32(np.nan))
    return take_rows(replace(states, action_mask=mask, behavior_logprobs=behavior), np.flatnonzero(mask.any(axis=1)))
