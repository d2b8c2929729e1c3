"""Trackio: a local SQLite file per project, or a Space of the hub (its variables `TRACKIO_…` say which).

The project is the study. One run is open at a time there; another one is resumed by its name, which carries the id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from statewise.trackers.tracker import TrackedRun, Tracker


class Trackio(Tracker):
    """Goes on after the last step that Trackio has of a run."""

    requires: ClassVar[tuple[str, ...]] = ("trackio",)

    def __init__(self) -> None:
        self._open: TrackedRun | None = None
        self._run: Any = None

    def start(self, run: TrackedRun) -> int:
        self._turn_to(run)
        return int(self._run._next_step)

    def log(self, run: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        self._turn_to(run)
        self._run.log(dict(metrics), step=step)

    def finish(self, run: TrackedRun, is_done: bool) -> None:
        if self._open == run:
            import trackio

            trackio.finish()
            self._open = None

    def _turn_to(self, run: TrackedRun) -> None:
        if self._open == run:
            return
        import trackio

        self._run = trackio.init(
            run.study, f"{run.name}-{run.id[:8]}", config=run.config, resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self._open = run
        self.place = f"trackio show --project {run.study}"
