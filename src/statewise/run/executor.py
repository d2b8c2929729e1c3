"""Runs the jobs of a plan side by side, wherever an executor does them.

The job with the longest chain behind it starts first. A job whose worker dies is tried once more, from its last
checkpoint; one that fails, or whose worker dies again, fails its dependents; everything else goes on. Ctrl-C, SIGTERM
and SIGHUP (its terminal is closed) ask the workers to stop at an update, a second one ends them at once; what was
checkpointed is continued by the same command.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from statewise.console.interruption import ASKING
from statewise.folder.store import Store
from statewise.plan.dag import Job, Plan

POLL_S = 0.2
# How long workers may take to stop at an update, and how long that may take without a word.
STOP_S, SILENT_S = 60.0, 2.0


@dataclass(frozen=True)
class JobEvent:
    """`kind`: started, progress, warning, done, failed, skipped, interrupted. `done` counts a job's own units."""

    kind: str
    job: Job
    done: int = 0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a run ended: ids of jobs by what became of them."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


Answer = dict[str, Any]  # what a job left; its `status` may be "failed" or "interrupted"


@dataclass(frozen=True)
class Death:
    """How a worker ended that had a job. `is_early`: while it started, which is not the job's doing."""

    how: str
    is_early: bool


class Executor(AbstractContextManager[Any], Protocol):
    """Does jobs in workers of its own. Leaving its block ends them all, those at work at once."""

    @property
    def jobs(self) -> Sequence[Job]:
        """The jobs at work."""

    @property
    def num_free(self) -> int:
        """How many jobs can be submitted now; 0 with none at work: no worker can be started any more."""

    def submit(self, job: Job) -> None:
        """Hand `job` to a worker."""

    def events(self, timeout_s: float) -> Sequence[tuple[Job, JobEvent | Answer | Death]]:
        """What workers say of their jobs, after `timeout_s` at most: events, and in the end an answer or a death."""

    def stop(self) -> None:
        """Ask the workers to stop at an update."""


def execute(
    plan: Plan, store: Store, costs: dict[str, float], on_event: Callable[[JobEvent], None], executor: Executor
) -> Outcome:
    """Run every job of `plan` that is not done; returns when all are done, failed or interrupted.

    Args:
        plan: what to run.
        store: where; jobs it holds under their fingerprint are skipped.
        costs: estimated seconds of each job, by id; they order the work, nothing else.
        on_event: told of every start, progress and end.
        executor: does the jobs; it is entered here, if there is anything to do.
    """
    schedule = _Schedule(plan, store, costs, on_event)
    if schedule.is_finished:
        return schedule.outcome
    with _Interrupts() as interrupts, executor:
        while (executor.jobs or not schedule.is_finished) and not interrupts.is_over(executor.jobs, on_event):
            if interrupts.count:
                executor.stop()
                schedule.outcome.interrupted = True
            for job in [] if interrupts.count else schedule.take(executor.num_free):
                on_event(JobEvent("started", job))
                executor.submit(job)
            for job, message in executor.events(POLL_S):
                schedule.hear(job, message)
            if not interrupts.count and not executor.jobs and executor.num_free == 0:
                schedule.give_up()
    outcome = schedule.outcome
    outcome.interrupted = interrupts.count > 0 and len(outcome.done) + len(outcome.failed) < len(plan.jobs)
    return outcome


class _Interrupts:
    """Counts what asks a run to stop while it goes on, so that none of it ends this process between two of its steps.

    A signal that this process was started to ignore stays so: Ctrl-C in a shell's background, SIGHUP under nohup.
    """

    def __init__(self) -> None:
        self.count = 0
        self._since = 0.0
        self._is_told = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        # Python lets only the main thread have handlers; in another one the caller answers for signals.
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._since = self._since or time.monotonic()
        self.count += 1

    def is_over(self, running: Sequence[Job], on_event: Callable[[JobEvent], None]) -> bool:
        """Whether to wait no longer for the jobs that are `running`; says that it waits, where that takes a while."""
        if not self.count:
            return False
        waited = time.monotonic() - self._since
        if running and waited > SILENT_S and not self._is_told:
            self._is_told = True
            text = "interrupted; the workers stop at their next update, and at once after another Ctrl-C"
            on_event(JobEvent("warning", running[0], message=text))
        return not running or self.count > 1 or waited > STOP_S


class _Schedule:
    """Which jobs can run, which comes first, and what became of the rest."""

    def __init__(self, plan: Plan, store: Store, costs: dict[str, float], on_event: Callable[[JobEvent], None]) -> None:
        self.outcome = Outcome()
        self._on_event = on_event
        self._died: set[str] = set()  # jobs that a worker died of
        self._last_death = ""
        self._waiting = {job.id: job for job in plan.jobs}
        for job in plan.jobs:
            result = store.result(job)
            if result is not None:
                self._finish(job, JobEvent("skipped", job, result=result))
        # Seconds of the longest chain that starts with a job: later jobs first, so that followers are known.
        self._chain: dict[str, float] = {}
        for job in reversed(plan.jobs):
            behind = [self._chain[other.id] for other in plan.jobs if job.id in other.needs]
            self._chain[job.id] = costs.get(job.id, 1.0) + max(behind, default=0.0)

    @property
    def is_finished(self) -> bool:
        return not self._waiting

    def take(self, count: int) -> list[Job]:
        """Up to `count` jobs whose needs are done, longest chain first; jobs behind a failure are given up."""
        for job in list(self._waiting.values()):
            if broken := [need for need in job.needs if need in self.outcome.failed]:
                self._fail(job, f"{broken[0]} failed")
        ready = [job for job in self._waiting.values() if all(need in self.outcome.done for need in job.needs)]
        chosen = sorted(ready, key=lambda job: -self._chain[job.id])[:count]
        for job in chosen:
            del self._waiting[job.id]
        return chosen

    def hear(self, job: Job, message: JobEvent | Answer | Death) -> None:
        """Take what a worker said of its job, or how it left it."""
        if isinstance(message, JobEvent):
            self._on_event(message)
        elif isinstance(message, Death):
            self._mourn(job, message)
        elif message["status"] == "failed":
            self._fail(job, message["reason"])
        elif message["status"] == "interrupted":
            self._on_event(JobEvent("interrupted", job))
        else:
            self._finish(job, JobEvent("done", job, result=message))

    def give_up(self) -> None:
        """Fail what waits: no worker is left, and none can be started."""
        for job in list(self._waiting.values()):
            self._fail(job, f"no worker process can be started; the last one {self._last_death}")

    def _mourn(self, job: Job, death: Death) -> None:
        """Try `job` once more; a worker that died while it started leaves it its second try."""
        self._last_death = death.how
        if self.outcome.interrupted:  # one that had not begun, or that did not wait to be asked
            self._on_event(JobEvent("interrupted", job))
        elif job.id in self._died and not death.is_early:
            reason = f"its worker process {death.how}, as one before it; run the same command to try again"
            self._fail(job, reason)
        else:
            self._waiting[job.id] = job
            then = "another is started"
            if not death.is_early:
                self._died.add(job.id)
                then = "the job is tried once more, from its last checkpoint"
            text = f"{job.id}: its worker process {death.how}; {then}"
            self._on_event(JobEvent("warning", job, message=text))

    def _finish(self, job: Job, event: JobEvent) -> None:
        self._waiting.pop(job.id, None)
        self.outcome.done.append(job.id)
        self._on_event(event)

    def _fail(self, job: Job, reason: str) -> None:
        self._waiting.pop(job.id, None)
        self.outcome.failed[job.id] = reason
        self._on_event(JobEvent("failed", job, message=reason))
