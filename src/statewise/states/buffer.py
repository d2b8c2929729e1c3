"""A replay buffer: the latest trajectories of a source, from which an update draws instead of taking fresh ones alone.

It is mutable, and so a part of every checkpoint. Trajectories are kept in groups of one prompt, since an advantage is
relative to the others of its group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from statewise.batch import States, join_rows, take_rows


@dataclass
class ReplayBuffer:
    """`groups`: (update in which it was written, its trajectories), oldest first."""

    groups: list[tuple[int, States]] = field(default_factory=list)

    def add(self, states: States, update: int, samples_per_prompt: int) -> None:
        """Take in the trajectories of one update, `samples_per_prompt` successive rows a group."""
        starts = range(0, len(states.lengths), samples_per_prompt)
        self.groups += [(update, take_rows(states, range(start, start + samples_per_prompt))) for start in starts]

    def expire(self, size: int, max_age: int | None, update: int) -> None:
        """Drop groups written more than `max_age` updates ago, then the oldest until `size` trajectories are left."""
        kept = [(written, group) for written, group in self.groups if max_age is None or update - written <= max_age]
        while sum(len(group.lengths) for _, group in kept) > size:
            kept.pop(0)
        self.groups = kept

    def draw(self, num_groups: int, rng: np.random.Generator) -> States:
        """`num_groups` groups without replacement, each equally likely; all of them where there are no more."""
        chosen = rng.permutation(len(self.groups))[:num_groups]
        return join_rows([self.groups[index][1] for index in sorted(chosen.tolist())])
