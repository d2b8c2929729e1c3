"""Tells one tracker what the records of a run say: each point once, in order.

The tracker is asked what it holds when a run begins, so that the command that goes on after an interruption, or with a
folder that is done, sends the rest. A call that fails is made again after a pause, and once more at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from statewise.trackers.tracker import TrackedRun, Tracker

PAUSE_S = 60.0  # between two tries of what failed
TOLD_CHARACTERS = 300  # of an error


@dataclass
class Record:
    """What is to be told of one run. `points`: what is certain so far, the n-th of step n; `is_done`: no more come."""

    run: TrackedRun
    points: list[dict[str, float]] = field(default_factory=list)
    is_done: bool = False

    def look(self) -> None:
        """Read what was written since."""


@dataclass
class _Sent:
    """How far a run is with the tracker. `num_held` None: it was not asked yet. `rests_until`: monotonic clock."""

    record: Record
    num_held: int | None = None
    is_finished: bool = False
    rests_until: float = 0.0

    @property
    def num_missing(self) -> int:
        return max(0, len(self.record.points) - (self.num_held or 0))


class Follower:
    """A tracker of class `kind` and the records that it is told of; `tell` hears its place, and once that it fails."""

    def __init__(self, kind: type[Tracker], records: Sequence[Record], tell: Callable[[str], None]) -> None:
        self._kind, self._tell = kind, tell
        self._tracker: Tracker | None = None
        self._sent = [_Sent(record) for record in records]
        self._place = ""
        self._num_failures = 0

    def sweep(self) -> None:
        """Read what is new, and send it."""
        for sent in self._sent:
            if not sent.is_finished and time.monotonic() >= sent.rests_until:
                self._attend(sent)

    def close(self, last: Sequence[Record] = ()) -> None:
        """Send what is left, with records that come last; close every run; tell what the tracker did not take."""
        self._sent += [_Sent(record) for record in last]
        for sent in self._sent:
            if not sent.is_finished:
                self._attend(sent, is_last=True)
        if not self._num_failures:
            return
        missing = [sent.num_missing for sent in self._sent if sent.num_missing]
        what = f"{sum(missing)} points of {len(missing)} runs were not sent; the same command sends them"
        self._tell(f"{self._num_failures} calls failed; {what if missing else 'every point was sent'}")

    def _attend(self, sent: _Sent, *, is_last: bool = False) -> None:
        try:
            sent.record.look()
            if sent.record.points:
                self._send(sent)
            if sent.num_held is not None and self._tracker and (sent.record.is_done or is_last):
                self._tracker.finish(sent.record.run, sent.record.is_done)
            sent.is_finished = sent.record.is_done
        except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever it is, it is the tracker's)
            sent.rests_until = time.monotonic() + PAUSE_S
            self._num_failures += 1
            if self._num_failures == 1:
                text = " ".join(str(error).split())[:TOLD_CHARACTERS]
                self._tell(f"{type(error).__name__}: {text}; the run goes on, and this is tried again")

    def _send(self, sent: _Sent) -> None:
        run = sent.record.run
        self._tracker = self._tracker or self._kind()
        if sent.num_held is None:
            sent.num_held = self._tracker.start(run)
        if self._tracker.place != self._place:
            self._place = self._tracker.place
            self._tell(f"see {self._place}")
        for step in range(sent.num_held, len(sent.record.points)):
            self._tracker.log(run, step, sent.record.points[step])
            sent.num_held = step + 1
