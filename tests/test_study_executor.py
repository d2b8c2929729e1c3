"""Which node runs when, and what becomes of the others when one fails: with a pool that runs nothing."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest
from study_fixture import small_plan

from statewise.errors import InterruptedTrainingError, UsageError
from statewise.study import executor, nodes
from statewise.study.executor import NodeEvent, Outcome, execute
from statewise.study.request import Workers
from statewise.study.store import Store

DONE = {"status": "trained", "node_s": 0.0}


class FakePool:
    """Answers a node at once, by its id, through `answers`; what is not named is done. Notes the order."""

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.submitted = []
        self.num_workers = None
        self.is_shut_down = False
        self._processes = {}

    def __call__(self, num_workers, context, initializer, initargs):
        self.num_workers, self.stop, self.messages = num_workers, initargs[4], initargs[3]
        return self

    def submit(self, work, node):
        self.submitted.append(node.id)
        answer = self.answers.get(node.id, DONE)
        future = Future()
        if callable(answer):
            answer = answer(self, node)
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    def shutdown(self, wait, cancel_futures):
        self.is_shut_down = True


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the small study of one seed with a fake pool; returns (outcome, events, pool)."""

    def run_with(answers=None, costs=None, num_workers=1, overrides=("study.seeds=[0]",), done=(), on_event=None):
        pool = FakePool(answers)
        context = SimpleNamespace(Queue=queue.Queue, Event=threading.Event)
        monkeypatch.setattr(executor, "ProcessPoolExecutor", pool)
        monkeypatch.setattr(executor.multiprocessing, "get_context", lambda kind: context)
        plan, store, events = small_plan(tmp_path, *overrides), Store(tmp_path / "run"), []
        for node in plan.nodes:
            if node.id in done:
                store.finish(node, DONE)
        outcome = execute(plan, store, costs or {}, on_event or events.append, Workers(num_workers))
        return outcome, events, pool

    return run_with


ALL = [
    "evaluate:base:0",
    "train:sft:0",
    "evaluate:sft:0",
    "train:opd:0",
    "evaluate:opd:0",
    "train:rl:0",
    "evaluate:rl:0",
]


def kinds(events, kind):
    return [event.node.id for event in events if event.kind == kind]


def test_every_node_is_run_once_after_what_it_needs(run):
    outcome, events, pool = run()
    assert sorted(pool.submitted) == sorted(ALL)
    assert sorted(outcome.done) == sorted(ALL)
    assert (outcome.failed, outcome.interrupted, pool.is_shut_down) == ({}, False, True)
    assert (
        pool.submitted.index("train:sft:0")
        < pool.submitted.index("train:opd:0")
        < pool.submitted.index("evaluate:opd:0")
    )
    assert pool.submitted.index("evaluate:base:0") < pool.submitted.index("evaluate:rl:0")
    assert kinds(events, "started") == pool.submitted


def test_the_node_with_the_longest_chain_behind_it_comes_first(run):
    # Chains: train:sft 1 + train:opd 1 + evaluate:opd 1 = 3; train:rl 1.5 + 1 = 2.5; evaluate:base 1 + 1 = 2.
    _, _, pool = run(costs=dict.fromkeys(ALL, 1.0) | {"train:rl:0": 1.5})
    assert pool.submitted[:2] == ["train:sft:0", "train:rl:0"]
    # Now the chain through RL is 5 + 1 = 6.
    _, _, pool = run(costs=dict.fromkeys(ALL, 1.0) | {"train:rl:0": 5.0})
    assert pool.submitted[0] == "train:rl:0"


def test_no_more_nodes_run_at_once_than_there_are_workers(run, monkeypatch):
    sizes = []
    wait = executor.wait
    monkeypatch.setattr(executor, "wait", lambda running, **how: (sizes.append(len(running)), wait(running, **how))[1])
    run(num_workers=2)
    assert max(sizes) == 2


def test_what_is_done_is_skipped_and_not_run(run):
    done = ["train:sft:0", "evaluate:base:0"]
    outcome, events, pool = run(done=done)
    assert sorted(kinds(events, "skipped")) == sorted(done)
    assert not set(done) & set(pool.submitted)
    assert sorted(outcome.done) == sorted(ALL)


def test_no_worker_is_started_when_all_is_done(run):
    outcome, events, pool = run(done=ALL)
    assert pool.num_workers is None
    assert sorted(outcome.done) == sorted(ALL)
    assert {event.kind for event in events} == {"skipped"}


def test_a_failed_node_fails_what_needs_it_and_nothing_else(run):
    outcome, events, pool = run({"train:sft:0": {"status": "failed", "reason": "disk full"}})
    assert outcome.failed == {
        "train:sft:0": "disk full",
        "evaluate:sft:0": "train:sft:0 failed",
        "train:opd:0": "train:sft:0 failed",
        "evaluate:opd:0": "train:opd:0 failed",
    }
    assert sorted(outcome.done) == ["evaluate:base:0", "evaluate:rl:0", "train:rl:0"]
    assert not {"train:opd:0", "evaluate:sft:0"} & set(pool.submitted)
    assert sorted(kinds(events, "failed")) == sorted(outcome.failed)


def test_a_failed_base_fails_all_evaluations_but_no_training(run):
    outcome, _, _ = run({"evaluate:base:0": {"status": "failed", "reason": "x"}})
    assert sorted(outcome.done) == ["train:opd:0", "train:rl:0", "train:sft:0"]


def test_one_seed_does_not_fail_another(run):
    outcome, _, _ = run({"train:sft:0": {"status": "failed", "reason": "x"}}, overrides=())
    assert all(node.endswith(":0") for node in outcome.failed)
    assert sorted(node for node in outcome.done if node.endswith(":1")) == sorted(id_[:-1] + "1" for id_ in ALL)


def test_diverged_and_skipped_arms_count_as_done(run):
    skipped = {"status": "skipped", "reason": "its teacher sft diverged", "node_s": 0.0}
    outcome, _, _ = run({"train:sft:0": {**DONE, "status": "diverged"}, "train:opd:0": skipped})
    assert sorted(outcome.done) == sorted(ALL)


def test_a_dead_worker_fails_what_was_left_and_says_how_to_go_on(run):
    outcome, _, _ = run({"train:sft:0": BrokenProcessPool()}, costs={"evaluate:base:0": 100.0})
    assert outcome.done == ["evaluate:base:0"]
    assert "its worker process died (out of memory, or killed); run the same command" in outcome.failed["train:sft:0"]
    assert outcome.failed["train:rl:0"] == "the worker processes are gone"
    assert sorted([*outcome.done, *outcome.failed]) == sorted(ALL)


def test_a_pool_that_breaks_between_two_nodes_is_a_dead_worker_too(run):
    def broken(pool, node):
        raise BrokenProcessPool

    outcome, _, pool = run({"train:rl:0": broken})
    assert "its worker process died" in outcome.failed["train:rl:0"]
    assert sorted([*outcome.done, *outcome.failed]) == sorted(ALL)
    assert pool.is_shut_down


@pytest.fixture(autouse=True)
def heard_signals():
    """Whoever runs the tests in the background, or in parallel, may ignore Ctrl-C, and so would they."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted_at(monkeypatch, number=signal.SIGINT, answers=lambda waits: False, times=1):
    """Send this process `number` in the first `times` waits; `answers(how many waits so far)`: the nodes have ended."""
    waits = []

    def wait(running, **how):
        waits.append(1)
        assert len(waits) < 1000, "nobody heard the signal"
        if len(waits) <= times:
            signal.raise_signal(number)
        return (set(running), set()) if answers(len(waits)) else (set(), set(running))

    monkeypatch.setattr(executor, "wait", wait)
    monkeypatch.setattr(executor, "SILENT_S", 0.0)
    return waits


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_the_workers_and_are_an_interrupted_outcome(run, monkeypatch, number):
    before = signal.getsignal(number)
    interrupted_at(monkeypatch, number, lambda waits: waits > 1)
    outcome, events, pool = run({"train:rl:0": {"status": "interrupted"}}, costs={"train:rl:0": 100.0})
    assert pool.submitted == ["train:rl:0"]
    assert outcome == Outcome([], {}, interrupted=True)
    assert kinds(events, "interrupted") == ["train:rl:0"]
    assert pool.is_shut_down and pool.stop.is_set()
    assert signal.getsignal(number) == before
    assert [event.message for event in events if event.kind == "warning"] == [
        "interrupted; the workers stop at their next update, and at once after another Ctrl-C"
    ]


def test_workers_that_end_after_ctrl_c_are_no_failures(run, monkeypatch):
    # A worker that is still importing has nothing to keep and ends at once; that breaks the pool.
    interrupted_at(monkeypatch, answers=lambda waits: True)
    outcome, events, _ = run({"train:rl:0": BrokenProcessPool()}, costs={"train:rl:0": 100.0})
    assert outcome == Outcome([], {}, interrupted=True)
    assert kinds(events, "interrupted") == ["train:rl:0"]
    assert kinds(events, "failed") == []


@pytest.mark.parametrize(("times", "stop_s"), [(2, 1e9), (1, 0.0)])
def test_workers_that_do_not_stop_are_ended_before_the_folder_is_free(run, monkeypatch, times, stop_s):
    # After a second Ctrl-C, or after STOP_S.
    ended = []

    def stuck(pool, node):
        pool._processes[1] = SimpleNamespace(terminate=lambda: ended.append(pool.is_shut_down))
        return DONE

    waits = interrupted_at(monkeypatch, times=times)
    monkeypatch.setattr(executor, "STOP_S", stop_s)
    outcome, _, _ = run({"train:rl:0": stuck}, costs={"train:rl:0": 100.0})
    assert outcome.interrupted
    assert ended == [False]
    assert len(waits) == times


def test_a_node_that_ended_while_ctrl_c_was_handled_is_kept(run, monkeypatch):
    interrupted_at(monkeypatch, answers=lambda waits: True)
    outcome, _, _ = run(costs={"train:rl:0": 100.0})
    assert outcome == Outcome(["train:rl:0"], {}, interrupted=True)


@pytest.mark.parametrize(("last", "is_interrupted"), [(ALL[0], True), ("none", False)])
def test_ctrl_c_between_two_nodes_is_an_interrupted_outcome_unless_all_is_done(run, last, is_interrupted):
    left = set(ALL)

    def on_event(event):
        if event.kind == "done":
            left.discard(event.node.id)
            if event.node.id == last or not left:
                signal.raise_signal(signal.SIGINT)

    outcome, _, _ = run(on_event=on_event)
    assert outcome.interrupted == is_interrupted
    assert bool(left) == is_interrupted


def test_a_signal_that_is_ignored_stays_ignored(run, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupted_at(monkeypatch, answers=lambda waits: True)
        outcome, _, _ = run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not outcome.interrupted
    assert sorted(outcome.done) == sorted(ALL)


STARTED = """
import os, signal, subprocess, sys
from statewise.study.executor import _without_ctrl_c

with _without_ctrl_c():
    child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"],
                             stdout=subprocess.PIPE)
child.stdout.readline()
signal.signal(signal.SIGINT, lambda number, frame: print("parent", flush=True))
os.killpg(0, signal.SIGINT)
try:
    print(child.wait(0.5))
except subprocess.TimeoutExpired:
    print("alive")
child.terminate()
print(child.wait(10) == -signal.SIGTERM)
"""


def test_ctrl_c_of_a_terminal_reaches_the_parent_and_no_process_that_it_started(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert done.stdout.split() == ["parent", "alive", "True"]
    assert done.stderr == ""


IMPORTING = """
import sys, time
from types import SimpleNamespace
from statewise.study import executor

begun = time.monotonic()
executor._end_if_stopped(SimpleNamespace(is_set=lambda: time.monotonic() > begun + 0.3))
if sys.argv[1] == "ready":
    executor._worker.append(None)
time.sleep(1)
sys.exit(7)
"""


@pytest.mark.parametrize(("what", "code"), [("importing", 1), ("ready", 7)])
def test_a_worker_that_is_told_to_stop_while_it_imports_ends_at_once(what, code):
    done = subprocess.run([sys.executable, "-c", IMPORTING, what], check=False, timeout=60)
    assert done.returncode == code


def test_progress_and_warnings_of_workers_are_forwarded(run):
    def talking(pool, node):
        pool.messages.put(NodeEvent("progress", node, done=3))
        pool.messages.put(NodeEvent("warning", node, message="careful"))
        return DONE

    _, events, _ = run({"train:sft:0": talking})
    assert [(e.kind, e.done, e.message) for e in events if e.kind in ("progress", "warning")] == [
        ("progress", 3, ""),
        ("warning", 0, "careful"),
    ]


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker in this process, whose `run_node` is the function that the test gives."""

    def work_with(run_node, *, is_stopped=False):
        plan = small_plan(tmp_path)
        place = SimpleNamespace(store=Store(tmp_path / "run"))
        state = executor._Worker(place, queue.Queue(), threading.Event())
        monkeypatch.setattr(executor, "_worker", [state])
        if is_stopped:
            state.stop.set()
        monkeypatch.setattr(nodes, "run_node", run_node)
        return executor._work(plan.nodes[1]), state

    return work_with


def raising(error):
    def run_node(place, node, observer):
        raise error

    return run_node


def test_a_worker_answers_what_its_node_answers(worker):
    assert worker(lambda place, node, observer: DONE)[0] == DONE


def test_a_worker_that_is_told_to_stop_begins_nothing(worker):
    assert worker(raising(AssertionError), is_stopped=True)[0] == {"status": "interrupted"}


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (InterruptedTrainingError("x"), {"status": "interrupted"}),
        (UsageError("no gold text"), {"status": "failed", "reason": "no gold text"}),
        (OSError(28, "No space left on device"), {"status": "failed", "reason": "[Errno 28] No space left on device"}),
    ],
)
def test_a_worker_turns_an_error_into_an_answer(worker, error, answer):
    assert worker(raising(error))[0] == answer


def test_a_defect_in_a_node_keeps_its_traceback_and_names_the_file(worker, tmp_path):
    answer, _ = worker(raising(ZeroDivisionError("division by zero")))
    path = tmp_path / "run" / "arms" / "sft" / "0" / "traceback.txt"
    assert answer == {"status": "failed", "reason": f"ZeroDivisionError: division by zero (see {path})"}
    assert "in run_node" in path.read_text()


def test_a_worker_sends_progress_seldom(worker):
    def run_node(place, node, observer):
        for done in range(100):
            observer.progress(done)
        observer.warn("careful")
        return DONE

    _, state = worker(run_node)
    sent = [state.messages.get_nowait() for _ in range(state.messages.qsize())]
    assert [event.kind for event in sent][-1] == "warning"
    assert len(sent) < 10


ORPHAN = """
import multiprocessing, os, sys, time
from statewise.study.executor import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(60)
"""


def test_a_worker_ends_with_its_parent_so_that_nobody_writes_beside_the_next_run(tmp_path):
    path = tmp_path / "orphan.py"
    path.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # a zombie waits for init, and writes nothing


def members_of(group):
    """Processes of a process group: what Ctrl-C on a terminal reaches."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats.append(path.read_text().rpartition(")")[2].split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [stat for stat in stats if stat[0] not in "ZX" and int(stat[2]) == group]


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_the_workers_import_is_one_line_and_leaves_no_process(tmp_path, presses):
    command = [sys.executable, "-m", "statewise.cli", "run", "pocket", "--seeds", "1", "--workers", "2", "--out", "x"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, start_new_session=True,
        # A test run that was itself started in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(members_of(process.pid)) < 4 and time.monotonic() < deadline:  # itself, a tracker of semaphores, workers
        time.sleep(0.01)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    output = process.communicate(timeout=60)[0]
    assert output == "Interrupted. What is done is kept in x; run the same command to continue.\n"
    assert process.returncode == 3
    while members_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert members_of(process.pid) == []
