"""Fixed states: the trajectories of the training split, s ~ d_data (arXiv:2605.22731, eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from statewise.errors import UsageError
from statewise.states.source import SourceContext
from statewise.types import States, Trajectory, collate


@dataclass(frozen=True)
class Dataset:
    """Gold trajectories, in epochs of a new order each.

    Fields: `num_trajectories` an update; `num_examples` the first documents of the split that are used (None: all).
    """

    kind: ClassVar[str] = "dataset"

    num_trajectories: Annotated[int, Field(ge=1)] = 32
    num_examples: Annotated[int, Field(ge=1)] | None = None

    @property
    def needs_teacher(self) -> bool:
        return False

    @property
    def needs_base(self) -> bool:
        return False

    @property
    def trajectories_per_update(self) -> int:
        return self.num_trajectories

    @property
    def samples_per_prompt(self) -> int:
        return 1

    def sample(self, context: SourceContext, step: int) -> States:
        """Every token of the gold text, end-of-text included, is an action.

        Raises:
            UsageError: a document without gold text.
        """
        trajectories = []
        for example in context.draw_examples(self.num_trajectories, step, self.num_examples):
            if not example.gold_ids:
                raise UsageError(
                    f"document {example.index} of the training split has no gold text, so source 'dataset' has no "
                    "states for it; use a rollout source or another task"
                )
            ids = example.prompt_ids + example.gold_ids
            trajectories.append(Trajectory(ids, len(example.prompt_ids), example.index, self.kind, "data"))
        return collate(trajectories)
