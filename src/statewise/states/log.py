"""States that another arm recorded, byte for byte: the same states under another loss.

The record is of what its arm's source yielded, before its signal added anything, so that every signal starts from the
same states and the running hash of an arm that replays in the recorded order equals the recorded one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from statewise.seeding import generator
from statewise.states.source import Source, SourceContext
from statewise.types import States


@dataclass(frozen=True)
class Log:
    """The recorded updates of an arm, one an update; after the last one they come again.

    Fields: `arm` of the same study and seed, or `path` of an arm's folder in another run (`runs/pocket/arms/rl/0`;
    `{seed}` stands for the seed); `order`: as `recorded`, or the updates `shuffled` by the arm's own seed, in a new
    order every epoch.
    """

    kind: ClassVar[str] = "log"
    needs_teacher: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    # What only the record knows is taken from the arm that is replayed (study.cells).
    is_law_known: ClassVar[bool] = True
    max_lag: ClassVar[int] = 0
    trajectories_per_update: ClassVar[int] = 0
    samples_per_prompt: ClassVar[int] = 0

    arm: str | None = None
    path: str | None = None
    order: Literal["recorded", "shuffled"] = "recorded"

    def __post_init__(self) -> None:
        if (self.arm is None) == (self.path is None):
            raise ValueError("give one of arm and path")

    @property
    def record(self) -> str:
        """The name under which the context holds what is replayed."""
        return str(self.arm or self.path)

    def sized(self, num_trajectories: int) -> Source:
        """The log as it is: its updates are what was recorded."""
        return self

    def sample(self, context: SourceContext, step: int) -> States:
        """The states of one recorded update: tokens, mask, log-probabilities and rewards as they were.

        Writers are named after the record (`rl:learner`), since another learner than this arm's wrote; advantages are
        left out, since they are what a signal makes of rewards.
        """
        recorded = context.recorded[self.record]
        epoch, place = divmod(step, recorded.num_updates)
        if self.order == "shuffled":
            place = int(generator(context.key, "order", epoch).permutation(recorded.num_updates)[place])
        states = recorded.at(place)
        writers = tuple(f"{self.record}:{writer}" for writer in states.writers)
        return replace(states, writers=writers, advantages=np.full_like(states.advantages, np.nan))
