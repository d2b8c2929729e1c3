"""Warm worker processes with a pipe each, so that the death of one concerns its own job and nobody else.

`concurrent.futures` ends the whole pool when one process dies, and does not say whose job it had; so does loky, which
builds on it. Their processes also share queues and locks, and one that is killed while it holds a lock never gives it
back. Here nothing is shared: a worker reads jobs from its pipe and writes to it what it has to say, and its stop
signal is that the pipe has something to read while it works.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from statewise.console.children import belong_to_parent, start_child
from statewise.console.printing import clean_streams
from statewise.console.streams import outlive_readers
from statewise.plan.dag import Job
from statewise.run.executor import Death
from statewise.run.worker import Work

MAX_FAILED_STARTS = 3  # in a row; then it is the machine, or the installation
END_S = 3.0  # between closing its pipe and ending, a process that has torch imported needs tenths of a second
CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")
CAUSES = {"SIGKILL": " (out of memory, or killed)", **dict.fromkeys(CRASHES, " (a crash in native code)")}


@dataclass(frozen=True)
class _Started:
    """What a worker says first; `error`: why it cannot work."""

    error: str = ""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    started: _Started | None = None

    @property
    def is_ready(self) -> bool:
        return self.started is not None and not self.started.error

    @property
    def end(self) -> str:
        """How its process, which has ended, did so."""
        if self.started and self.started.error:
            return f"could not start ({self.started.error})"
        code, when = self.process.exitcode or 0, "" if self.is_ready else " while it started"
        if code >= 0:
            return f"ended{when} with exit code {code}"
        name = signal.Signals(-code).name
        return f"was ended{when} by {name}{CAUSES.get(name, '')}"


class Pool:
    """An `Executor` on this machine: up to `count` processes, each started when a job needs it, kept for the next."""

    def __init__(self, count: int, begin: Callable[[], Work]) -> None:
        """`begin` is called in every new process: it imports what is slow, and returns what does a job."""
        self._count, self._begin = count, begin
        self._workers: list[_Worker] = []
        self._num_failed_starts = 0
        self._is_stopping = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        """End all: one at work is killed, so that it does not write beside the next run.

        An idle one ends by itself, as its pipe does, and takes the semaphores of its libraries along: left behind, they
        are a warning below the results.
        """
        for worker in self._workers:
            if worker.job is not None:
                worker.process.kill()
            worker.pipe.close()
        deadline = time.monotonic() + END_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join(END_S)

    @property
    def jobs(self) -> list[Job]:
        return [worker.job for worker in self._workers if worker.job is not None]

    @property
    def num_free(self) -> int:
        """How many jobs can be submitted now; where workers do not start any more, those that live go on."""
        is_sound = self._num_failed_starts < MAX_FAILED_STARTS
        return (self._count if is_sound else len(self._workers)) - len(self.jobs)

    def submit(self, job: Job) -> None:
        # An idle worker says nothing: if there is something to read, it is that it has ended.
        idle = (worker for worker in self._workers if worker.job is None and not worker.pipe.poll())
        worker = next(idle, None) or self._start()
        worker.job = job
        with suppress(OSError):  # it has just died, as `events` finds
            worker.pipe.send(job)

    def events(self, timeout_s: float) -> list[tuple[Job, Any]]:
        handles = [handle for worker in self._workers for handle in (worker.pipe, worker.process.sentinel)]
        connection.wait(handles, timeout_s)
        return [said for worker in [*self._workers] for said in self._hear(worker)]

    def stop(self) -> None:
        """Ask the workers; one that still imports has nothing to keep, and is ended."""
        for worker in self._workers if not self._is_stopping else []:
            if worker.is_ready:
                with suppress(OSError):
                    worker.pipe.send(None)
            else:
                worker.process.kill()
        self._is_stopping = True

    def _start(self) -> _Worker:
        process, here = start_child("statewise worker", _serve, self._begin)
        self._workers.append(_Worker(process, here))
        return self._workers[-1]

    def _hear(self, worker: _Worker) -> Iterator[tuple[Job, Any]]:
        is_dead = not worker.process.is_alive()  # asked first, so that its last words are read
        try:
            while worker.pipe.poll():
                yield from self._take(worker, worker.pipe.recv())
        except (EOFError, OSError):
            is_dead = True
        if is_dead:
            yield from self._bury(worker)

    def _take(self, worker: _Worker, message: Any) -> Iterator[tuple[Job, Any]]:
        if isinstance(message, _Started):
            worker.started = message
            self._num_failed_starts *= not worker.is_ready
            return
        assert worker.job is not None
        yield worker.job, message
        if isinstance(message, dict):
            worker.job = None

    def _bury(self, worker: _Worker) -> Iterator[tuple[Job, Death]]:
        worker.process.join(END_S)
        worker.process.kill()
        worker.process.join(END_S)
        self._workers.remove(worker)
        # One that worked leaves its memory to the next, which may start now.
        self._num_failed_starts = 0 if worker.is_ready else self._num_failed_starts + 1
        if worker.job is not None:
            yield worker.job, Death(worker.end, is_early=not worker.is_ready)
        worker.pipe.close()


def _serve(pipe: Connection, begin: Callable[[], Work]) -> None:
    """A worker's life: begin once, then a job at a time, until there is none, or the parent is gone."""
    belong_to_parent()
    outlive_readers()
    clean_streams()
    try:
        work = begin()
    except Exception as error:  # noqa: BLE001  (the parent tells it, in one line)
        pipe.send(_Started(f"{type(error).__name__}: {error}"))
        return
    with suppress(EOFError, ConnectionError):
        pipe.send(_Started())
        while (job := pipe.recv()) is not None:
            pipe.send(work(job, pipe.send, pipe.poll))
