"""Runs the nodes of a plan side by side in warm local worker processes.

Workers import torch and lm-eval once, not per node. The node with the longest chain behind it starts first. A worker
that dies, or a node that fails, fails its dependents; everything else goes on. Ctrl-C and SIGTERM ask the workers to
stop at an update, a second one ends them at once; what was checkpointed is continued by the same command.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from statewise.errors import InterruptedTrainingError, StatewiseError
from statewise.study.plan import Node, Plan
from statewise.study.request import Workers
from statewise.study.store import Store

if TYPE_CHECKING:
    from statewise.study.nodes import Workplace

POLL_S = 0.2
# How long workers may take to stop at an update, and how long that may take without a word.
STOP_S, SILENT_S = 60.0, 2.0


@dataclass(frozen=True)
class NodeEvent:
    """`kind`: started, progress, warning, done, failed, skipped, interrupted. `done` counts a node's own units."""

    kind: str
    node: Node
    done: int = 0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a run ended: ids of nodes by what became of them."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def execute(
    plan: Plan, store: Store, costs: dict[str, float], on_event: Callable[[NodeEvent], None], workers: Workers
) -> Outcome:
    """Run every node of `plan` that is not done; returns when all are done, failed or interrupted.

    Args:
        plan: what to run.
        store: where; nodes it holds under their fingerprint are skipped.
        costs: estimated seconds of each node, by id; they order the work, nothing else.
        on_event: told of every start, progress and end.
        workers: processes side by side, and their threads.
    """
    schedule = _Schedule(plan, store, costs, on_event)
    if schedule.is_finished:
        return schedule.outcome
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    folder = str(store.folder)
    pool = ProcessPoolExecutor(workers.count, context, _start_worker, (plan, folder, workers.threads, messages, stop))
    running: dict[Future[dict[str, Any]], Node] = {}
    with _Interrupts() as interrupts, _shut_down_at_end(pool, interrupts):
        while (running or not schedule.is_finished) and not interrupts.is_over(list(running.values()), on_event):
            for node in [] if interrupts.count else schedule.take(workers.count - len(running)):
                on_event(NodeEvent("started", node))
                running[_submit(pool, node)] = node
            finished, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            if interrupts.count:
                stop.set()
                schedule.outcome.interrupted = True
            _forward(messages, on_event)
            for future in finished:
                schedule.settle(running.pop(future), future)
    outcome = schedule.outcome
    outcome.interrupted = interrupts.count > 0 and len(outcome.done) + len(outcome.failed) < len(plan.nodes)
    return outcome


class _Interrupts:
    """Counts Ctrl-C and SIGTERM while a run goes on, so that neither ends this process between two of its steps.

    A signal that this process was started to ignore, as a shell does for what it puts into the background, stays so.
    """

    def __init__(self) -> None:
        self.count = 0
        self._since = 0.0
        self._is_told = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        # Python lets only the main thread have handlers; in another one the caller answers for signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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

    def is_over(self, running: list[Node], on_event: Callable[[NodeEvent], None]) -> bool:
        """Whether to wait no longer for the nodes that are `running`; says that it waits, where that takes a while."""
        if not self.count:
            return False
        waited = time.monotonic() - self._since
        if running and waited > SILENT_S and not self._is_told:
            self._is_told = True
            text = "interrupted; the workers stop at their next update, and at once after another Ctrl-C"
            on_event(NodeEvent("warning", running[0], message=text))
        return not running or self.count > 1 or waited > STOP_S


@contextmanager
def _shut_down_at_end(pool: ProcessPoolExecutor, interrupts: _Interrupts) -> Iterator[None]:
    """Let `pool` go; after an interrupt, whoever still works must not write beside the next run, and is ended."""
    try:
        yield
    finally:
        for process in list((pool._processes or {}).values()) if interrupts.count else []:
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started in here never see Ctrl-C: it goes to every process of a terminal, and they are still importing.

    Blocked rather than ignored, so that one which comes now reaches this process a moment later.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _submit(pool: ProcessPoolExecutor, node: Node) -> Future[dict[str, Any]]:
    """Hand `node` to a worker; a pool that is broken by now answers as one that breaks later does."""
    try:
        with _without_ctrl_c():  # the first node starts the workers
            return pool.submit(_work, node)
    except BrokenProcessPool as error:
        future: Future[dict[str, Any]] = Future()
        future.set_exception(error)
        return future


class _Schedule:
    """Which nodes can run, which comes first, and what became of the rest."""

    def __init__(
        self, plan: Plan, store: Store, costs: dict[str, float], on_event: Callable[[NodeEvent], None]
    ) -> None:
        self.outcome = Outcome()
        self._on_event = on_event
        self._waiting = {node.id: node for node in plan.nodes}
        for node in plan.nodes:
            result = store.result(node)
            if result is not None:
                self._finish(node, NodeEvent("skipped", node, result=result))
        # Seconds of the longest chain that starts with a node: later nodes first, so that followers are known.
        self._chain: dict[str, float] = {}
        for node in reversed(plan.nodes):
            behind = [self._chain[other.id] for other in plan.nodes if node.id in other.needs]
            self._chain[node.id] = costs.get(node.id, 1.0) + max(behind, default=0.0)

    @property
    def is_finished(self) -> bool:
        return not self._waiting

    def take(self, count: int) -> list[Node]:
        """Up to `count` nodes whose needs are done, longest chain first; nodes behind a failure are given up."""
        for node in list(self._waiting.values()):
            if broken := [need for need in node.needs if need in self.outcome.failed]:
                self._fail(node, f"{broken[0]} failed")
        ready = [node for node in self._waiting.values() if all(need in self.outcome.done for need in node.needs)]
        chosen = sorted(ready, key=lambda node: -self._chain[node.id])[:count]
        for node in chosen:
            del self._waiting[node.id]
        return chosen

    def settle(self, node: Node, future: Future[dict[str, Any]]) -> None:
        """Record how a node ended."""
        try:
            answer = future.result()
        except BrokenProcessPool:
            if self.outcome.interrupted:  # a worker that had not begun ends at once
                self._on_event(NodeEvent("interrupted", node))
                return
            self._fail(node, "its worker process died (out of memory, or killed); run the same command to continue")
            for other in list(self._waiting.values()):
                self._fail(other, "the worker processes are gone")
            return
        if answer["status"] == "failed":
            self._fail(node, answer["reason"])
        elif answer["status"] == "interrupted":
            self.outcome.interrupted = True
            self._on_event(NodeEvent("interrupted", node))
        else:
            self._finish(node, NodeEvent("done", node, result=answer))

    def _finish(self, node: Node, event: NodeEvent) -> None:
        self._waiting.pop(node.id, None)
        self.outcome.done.append(node.id)
        self._on_event(event)

    def _fail(self, node: Node, reason: str) -> None:
        self._waiting.pop(node.id, None)
        self.outcome.failed[node.id] = reason
        self._on_event(NodeEvent("failed", node, message=reason))


def _forward(messages: Any, on_event: Callable[[NodeEvent], None]) -> None:
    while True:
        try:
            on_event(messages.get_nowait())
        except queue.Empty:
            return


@dataclass
class _Worker:
    """What a worker process keeps warm between nodes."""

    place: Workplace
    messages: Any
    stop: Event


_worker: list[_Worker] = []


def end_with_parent() -> None:
    """End this process as soon as its parent is gone.

    The folder's lock goes with the parent; a worker that went on would write beside those of the next run.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_if_stopped(stop: Event) -> None:
    """End this process if it is told to stop while it still imports: it has nothing to keep."""

    def watch() -> None:
        while not _worker and not stop.is_set():
            time.sleep(POLL_S)
        if not _worker:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_worker(plan: Plan, folder: str, threads: int, messages: Any, stop: Event) -> None:
    """Once per process: leave Ctrl-C to the parent and end with it, fix the thread count, import what is slow."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever started the run may have had it ignored
    end_with_parent()
    _end_if_stopped(stop)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers.utils import logging as transformers_logging

    from statewise.study.nodes import Workplace

    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    _worker.append(_Worker(Workplace(plan, Store(Path(folder)), {}), messages, stop))


def _work(node: Node) -> dict[str, Any]:
    """Do one node in this process; every failure becomes an answer, so that the study can go on."""
    from statewise.loop.train import Observer
    from statewise.study.nodes import run_node

    worker = _worker[0]
    if worker.stop.is_set():
        return {"status": "interrupted"}
    last_sent = 0.0

    def progress(done: int) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > POLL_S:
            last_sent = time.monotonic()
            worker.messages.put(NodeEvent("progress", node, done=done))

    observer = Observer(
        progress, worker.stop.is_set, lambda message: worker.messages.put(NodeEvent("warning", node, message=message))
    )
    try:
        return run_node(worker.place, node, observer)
    except InterruptedTrainingError:
        return {"status": "interrupted"}
    except (StatewiseError, OSError) as error:
        return {"status": "failed", "reason": str(error)}
    except Exception:  # noqa: BLE001  (a defect in one node must not end the others; its traceback is kept)
        path = worker.place.store.arm_folder(node.arm, node.seed) / "traceback.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
        return {"status": "failed", "reason": f"{traceback.format_exc(limit=0).splitlines()[-1]} (see {path})"}
