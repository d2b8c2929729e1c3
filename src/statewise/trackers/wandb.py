"""Weights & Biases, which its own variables set up (`WANDB_PROJECT`, `WANDB_MODE=offline`); the group is the study.

Online a run goes on where the service is. Offline every command writes the whole run anew, into a folder of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from statewise.trackers.tracker import TrackedRun, Tracker


class Wandb(Tracker):
    """One W&B run of the same id for each."""

    requires: ClassVar[tuple[str, ...]] = ("wandb",)

    def __init__(self) -> None:
        self._runs: dict[str, Any] = {}

    def start(self, run: TrackedRun) -> int:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "statewise")
        opened = wandb.init(
            project=project, group=run.study, name=run.name, id=run.id, config=run.config, resume="allow",
            reinit="create_new",
        )  # fmt: skip
        self._runs[run.id] = opened
        self.place = opened.get_project_url() if not opened.offline else f"wandb sync {opened.settings.wandb_dir}"
        return int(opened.step)

    def log(self, run: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        self._runs[run.id].log(dict(metrics), step=step)

    def finish(self, run: TrackedRun, is_done: bool) -> None:
        self._runs[run.id].finish(exit_code=0 if is_done else 1)
