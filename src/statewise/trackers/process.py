"""The process in which a tracker follows a run, and the parent's end of it.

Neither waits for the other: the process reads files, and hears of its parent only that the run is over. What a tracker
prints is thrown away; its place, and what it fails with, comes through the pipe.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from statewise.console.children import belong_to_parent, start_child
from statewise.errors import DamagedError
from statewise.folder.store import TRACKED
from statewise.plan.dag import BASE, Job, Plan
from statewise.storage import integrity, records
from statewise.trackers.arm_record import ArmRecord, read_summary_record
from statewise.trackers.follow import Follower
from statewise.trackers.tracker import TrackedRun, Tracker

IDENTITY = f"{TRACKED}/id.json"  # what runs of trackers know a run folder by, wherever it is moved
POLL_S = 1.0
# How long a tracker may take to end after the run, and how long that may take without a word.
CLOSE_S, SILENT_S = 300.0, 3.0
# The last words of a tracker's process: its own, or, where there were none, ours.
CLOSED, DIED = "closed", "its process died; the run goes on, the same command sends the rest"
Followed = tuple[TrackedRun, Job | None, Job]


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection
    has_ended: bool = False


class Reporting:
    """Trackers that follow the run of `plan` in `folder`, each in its process; leaving the block ends them.

    They begin with the first event of a job, when the folder is locked and what was damaged in it is set aside.
    `is_complete`: to be set when every job is done, so that the summary is sent too.
    """

    def __init__(
        self, trackers: Mapping[str, type[Tracker]], plan: Plan, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self._trackers, self._plan, self._folder = trackers, plan, folder
        self._tell = tell
        self._children: dict[str, _Child] = {}
        self._has_begun = False
        self.is_complete = False

    def __enter__(self) -> Reporting:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the trackers, until another Ctrl-C."""
        try:
            for child in self._children.values():
                with suppress(OSError):
                    child.pipe.send(self.is_complete)
            self._wait()
        except KeyboardInterrupt:
            if self._working:
                self._tell(f"trackers {', '.join(self._working)} were not waited for; the same command sends the rest")
        finally:
            for child in self._children.values():
                child.process.kill()
                child.process.join()

    def hear(self, kind: str) -> None:
        """Take note of an event of the run, by its kind."""
        if not self._has_begun and kind in ("started", "skipped"):
            self._has_begun = True
            try:
                self._begin()
            except Exception as error:  # noqa: BLE001  (a class that cannot be handed over, too: the run goes on)
                self._tell(f"trackers: cannot be started ({error}); the run goes on without them")
        self._drain()

    def _begin(self) -> None:
        if not self._trackers:
            return
        summary, followed = followed_runs(self._plan, self._folder, _identity(self._folder))
        for name, kind in self._trackers.items():
            process, pipe = start_child(f"statewise tracker {name}", _follow, kind, followed, summary)
            self._children[name] = _Child(process, pipe)

    @property
    def _working(self) -> list[str]:
        return [name for name, child in self._children.items() if not child.has_ended]

    def _drain(self) -> None:
        for name in self._working:
            child = self._children[name]
            while not child.has_ended and child.pipe.poll():
                said = _read(child.pipe)
                child.has_ended = said in (CLOSED, DIED)
                if said != CLOSED:
                    self._tell(f"tracker {name}: {said}")

    def _wait(self) -> None:
        began, is_told = time.monotonic(), False
        while self._working:
            connection.wait([self._children[name].pipe for name in self._working], 0.2)
            self._drain()
            waited = time.monotonic() - began
            if self._working and waited > SILENT_S and not is_told:
                is_told = True
                self._tell(f"waiting for trackers: {', '.join(self._working)} (Ctrl-C: not any longer)")
            if self._working and waited > CLOSE_S:
                raise KeyboardInterrupt
        for child in self._children.values():
            child.process.join(SILENT_S)  # they have said that they are closed


def followed_runs(plan: Plan, folder: Path, identity: str) -> tuple[TrackedRun, list[Followed]]:
    """A run of trackers for the summary, and one for each arm and seed with its jobs."""
    jobs = {(job.action, job.arm, job.seed): job for job in plan.jobs}
    shared = plan.config.shared.model_dump(mode="json", exclude_none=True)
    study = plan.config.study.name
    followed: list[Followed] = []
    for job in (one for one in plan.jobs if one.action == "evaluate"):
        train = jobs.get(("train", job.arm, job.seed))
        id_ = records.digest_json([identity, job.id, train.fingerprint if train else "", job.fingerprint])[:16]
        arm = {} if job.arm == BASE else plan.arms[job.arm].model_dump(mode="json", exclude_none=True)
        config = {"study": study, "arm": job.arm, "seed": job.seed, "settings": arm, "shared": shared}
        followed.append((TrackedRun(id_, study, f"{job.arm}-{job.seed}", folder, config), train, job))
    return TrackedRun(identity, study, "summary", folder, {"study": study, "shared": shared}), followed


def _read(pipe: Connection) -> str:
    """What a tracker's process says next."""
    try:
        return str(pipe.recv())
    except (EOFError, OSError):
        return DIED


def _identity(folder: Path) -> str:
    path = folder / IDENTITY
    try:
        return str(integrity.read_sealed(path)["id"])
    except (DamagedError, KeyError):
        integrity.write_sealed(path, {"id": uuid.uuid4().hex[:16]})
        return str(integrity.read_sealed(path)["id"])


def _follow(pipe: Connection, kind: type[Tracker], followed: Sequence[Followed], summary: TrackedRun) -> None:
    """A tracker's life: what is new once a second, until the run is over, or its process is gone."""
    belong_to_parent()
    os.setsid()  # what a tracker starts does not hear Ctrl-C of the terminal either
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    follower = Follower(kind, [ArmRecord(*one) for one in followed], pipe.send)
    with suppress(EOFError, ConnectionError):
        while not pipe.poll(POLL_S):
            follower.sweep()
        is_complete = pipe.recv()
        follower.close([read_summary_record(summary)] if is_complete else [])
        pipe.send(CLOSED)
