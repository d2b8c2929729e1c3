"""Runs the nodes of a plan side by side in warm local worker processes.

Workers import torch and lm-eval once, not per node. The node with the longest chain behind it starts first. A node
whose worker dies is tried once more, from its last checkpoint; one that fails, or whose worker dies again, fails its
dependents; everything else goes on. Ctrl-C, SIGTERM and SIGHUP (its terminal is closed) ask the workers to stop at an
update, a second one ends them at once; what was checkpointed is continued by the same command.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from statewise.console.interruption import ASKING
from statewise.errors import InterruptedTrainingError, StatewiseError
from statewise.folder.store import Store
from statewise.plan.dag import Node, Plan
from statewise.plan.request import Workers
from statewise.run.pool import Answer, Death, Pool, Work
from statewise.storage import records

if TYPE_CHECKING:
    from statewise.run.nodes import Workplace

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
    plan: Plan,
    store: Store,
    costs: dict[str, float],
    on_event: Callable[[NodeEvent], None],
    workers: Workers,
    begin: Callable[[], Work] | None = None,
) -> Outcome:
    """Run every node of `plan` that is not done; returns when all are done, failed or interrupted.

    Args:
        plan: what to run.
        store: where; nodes it holds under their fingerprint are skipped.
        costs: estimated seconds of each node, by id; they order the work, nothing else.
        on_event: told of every start, progress and end.
        workers: processes side by side, and their threads.
        begin: what a worker calls once, and what then does its nodes; None: the plan's nodes, in `store`.
    """
    schedule = _Schedule(plan, store, costs, on_event)
    if schedule.is_finished:
        return schedule.outcome
    with _Interrupts() as interrupts, Pool(workers.count, begin or partial(_begin, plan, store, workers)) as pool:
        while (pool.nodes or not schedule.is_finished) and not interrupts.is_over(pool.nodes, on_event):
            if interrupts.count:
                pool.stop()
                schedule.outcome.interrupted = True
            for node in [] if interrupts.count else schedule.take(pool.num_free):
                on_event(NodeEvent("started", node))
                pool.submit(node)
            for node, message in pool.wait(POLL_S):
                schedule.hear(node, message)
            if not interrupts.count and not pool.nodes and pool.num_free == 0:
                schedule.give_up()
    outcome = schedule.outcome
    outcome.interrupted = interrupts.count > 0 and len(outcome.done) + len(outcome.failed) < len(plan.nodes)
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


class _Schedule:
    """Which nodes can run, which comes first, and what became of the rest."""

    def __init__(
        self, plan: Plan, store: Store, costs: dict[str, float], on_event: Callable[[NodeEvent], None]
    ) -> None:
        self.outcome = Outcome()
        self._on_event = on_event
        self._died: set[str] = set()  # nodes that a worker died of
        self._last_death = ""
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

    def hear(self, node: Node, message: NodeEvent | Answer | Death) -> None:
        """Take what a worker said of its node, or how it left it."""
        if isinstance(message, NodeEvent):
            self._on_event(message)
        elif isinstance(message, Death):
            self._mourn(node, message)
        elif message["status"] == "failed":
            self._fail(node, message["reason"])
        elif message["status"] == "interrupted":
            self._on_event(NodeEvent("interrupted", node))
        else:
            self._finish(node, NodeEvent("done", node, result=message))

    def give_up(self) -> None:
        """Fail what waits: no worker is left, and none can be started."""
        for node in list(self._waiting.values()):
            self._fail(node, f"no worker process can be started; the last one {self._last_death}")

    def _mourn(self, node: Node, death: Death) -> None:
        """Try `node` once more; a worker that died while it started leaves it its second try."""
        self._last_death = death.how
        if self.outcome.interrupted:  # one that had not begun, or that did not wait to be asked
            self._on_event(NodeEvent("interrupted", node))
        elif node.id in self._died and not death.is_early:
            reason = f"its worker process {death.how}, as one before it; run the same command to try again"
            self._fail(node, reason)
        else:
            self._waiting[node.id] = node
            then = "another is started"
            if not death.is_early:
                self._died.add(node.id)
                then = "the node is tried once more, from its last checkpoint"
            text = f"{node.id}: its worker process {death.how}; {then}"
            self._on_event(NodeEvent("warning", node, message=text))

    def _finish(self, node: Node, event: NodeEvent) -> None:
        self._waiting.pop(node.id, None)
        self.outcome.done.append(node.id)
        self._on_event(event)

    def _fail(self, node: Node, reason: str) -> None:
        self._waiting.pop(node.id, None)
        self.outcome.failed[node.id] = reason
        self._on_event(NodeEvent("failed", node, message=reason))


def _begin(plan: Plan, store: Store, workers: Workers) -> Work:
    """Once per process: fix the thread count, import what is slow."""
    os.environ["OMP_NUM_THREADS"] = str(workers.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers.utils import logging as transformers_logging

    from statewise.run.nodes import Workplace

    torch.set_num_threads(workers.threads)
    transformers_logging.disable_progress_bar()
    return partial(_work, Workplace(plan, store))


def _work(place: Workplace, node: Node, tell: Callable[[NodeEvent], None], should_stop: Callable[[], bool]) -> Answer:
    """Do one node in this process; every failure becomes an answer, so that the study can go on."""
    from statewise.loop.train import Observer
    from statewise.run.nodes import run_node

    last_sent = 0.0

    def progress(done: int) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > POLL_S:
            last_sent = time.monotonic()
            tell(NodeEvent("progress", node, done=done))

    observer = Observer(progress, should_stop, lambda message: tell(NodeEvent("warning", node, message=message)))
    try:
        return run_node(place, node, observer)
    except InterruptedTrainingError:
        return {"status": "interrupted"}
    except (StatewiseError, OSError) as error:
        return {"status": "failed", "reason": str(error)}
    except Exception:  # noqa: BLE001  (a defect in one node must not end the others; its traceback is kept)
        path = place.store.arm_folder(node.arm, node.seed) / "traceback.txt"
        reason = traceback.format_exc(limit=0).splitlines()[-1]
        try:
            records.write_bytes(path, traceback.format_exc().encode())
        except OSError as error:
            return {"status": "failed", "reason": f"{reason} (and no traceback: {error})"}
        return {"status": "failed", "reason": f"{reason} (see {path})"}
