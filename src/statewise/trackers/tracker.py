"""What a tracker is: something that shows the numbers of runs, such as a page with their curves.

It is told what the files of a run folder say, after they say it, and changes nothing. It lives in a process of its own
(`process`), alone, so that whatever it does (wait for a network, print, end) does not concern the study.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class TrackedRun:
    """One run of a tracker: an arm and seed of a study, or the study's summary.

    `id`: 16 hex digits, the same whenever the same folder goes on. `name`: of people, as "sft-0". `study`: what runs
    are grouped by. `folder`: the run folder. `config`: the arm's table and what all arms share.
    """

    id: str
    study: str
    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)


class Tracker(ABC):
    """One way to show runs. `requires`: packages that must be importable. `place`: where to look, known after `start`.

    What a method raises is told once; the call is made again later, and what was sent till then stays sent.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    place: str = ""

    @abstractmethod
    def start(self, run: TrackedRun) -> int:
        """Begin a run, or go on with the one of this id. Returns the first step that it does not hold yet.

        0: it holds none, or what it held was removed. Several runs are open side by side.
        """

    @abstractmethod
    def log(self, run: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one step: of an update, from 0; after the last one, of the evaluation."""

    @abstractmethod
    def finish(self, run: TrackedRun, is_done: bool) -> None:
        """Close a run. Not `is_done`: it was interrupted or failed, and may be started again by another process."""
