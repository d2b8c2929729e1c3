"""Event files in `trackers/tensorboard/<run>` of the run folder, to be looked at with `tensorboard --logdir`.

They are written anew by every command, from the first point on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from statewise.folder.store import TRACKED
from statewise.storage.output_folder import remove_folder
from statewise.trackers.tracker import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Scalars. TensorBoard stores them as float32."""

    requires: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def __init__(self) -> None:
        self._writers: dict[str, Any] = {}

    def start(self, run: TrackedRun) -> int:
        from tensorboard.summary import Writer

        place = run.folder / TRACKED / "tensorboard"
        folder = place / run.name
        remove_folder(folder)
        self._writers[run.id] = Writer(str(folder))
        self.place = f"tensorboard --logdir {place}"
        return 0

    def log(self, run: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._writers[run.id].add_scalar(key, value, step)
        self._writers[run.id].flush()

    def finish(self, run: TrackedRun, is_done: bool) -> None:
        self._writers[run.id].close()
