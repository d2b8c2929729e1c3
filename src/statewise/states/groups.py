"""Whole groups out of batches of states: answers that are compared with each other stay together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from statewise.batch import States, take_rows
from statewise.states.source import SourceContext


def apart(states: States, context: SourceContext, step: int, turn: int) -> States:
    """`states` with groups that no other batch of update `step` has, though its prompts may be the same.

    `turn` tells the batches of an update apart.
    """
    groups, places = np.unique(states.group_ids, return_inverse=True)
    fresh = np.array([context.row_key(step, turn, f"group {group}") >> 1 for group in groups.tolist()], dtype=np.int64)
    return replace(states, group_ids=fresh[places])


def some_groups(states: States, count: int, rng: np.random.Generator) -> States:
    """At least `count` rows: whole groups in the order in which they are drawn, without replacement."""
    rows: list[int] = []
    for group in rng.permutation(np.unique(states.group_ids)).tolist():
        if len(rows) >= count:
            break
        rows += np.flatnonzero(states.group_ids == group).tolist()
    return take_rows(states, rows)
