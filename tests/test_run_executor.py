"""Which job runs when, and what becomes of the others when one fails: with a pool that runs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import is_alive
from study_fixture import small_plan
from toy_jobs import ALL, DONE, kinds

from statewise.console.interruption import ASKING
from statewise.errors import InterruptedTrainingError, UsageError
from statewise.folder.store import Store
from statewise.run import executor, jobs, worker
from statewise.run.executor import Death, JobEvent, Outcome, execute

pytestmark = pytest.mark.usefixtures("heard_signals")


class FakePool:
    """Answers a job by its id, through `answers`; what is not named is done. Notes the order.

    An answer is a message of a worker, several of them, or a function that gives them when the job is submitted.
    `on_wait(how many waits before)` may send signals, and says whether the jobs at work have answered.
    """

    def __init__(self, answers=None, on_wait=lambda waits: True):
        self.answers, self.on_wait = answers or {}, on_wait
        self.submitted, self.sizes = [], []
        self.said = {}
        self.count = 1
        self.num_stops = 0
        self.is_entered = self.is_shut_down = False

    def __enter__(self):
        self.is_entered = True
        return self

    def __exit__(self, *error):
        self.is_shut_down = True

    @property
    def jobs(self):
        return list(self.said)

    @property
    def num_free(self):
        return self.count - len(self.said)

    def submit(self, job):
        self.submitted.append(job.id)
        answer = self.answers.get(job.id, DONE)
        answer = answer(job) if callable(answer) else answer
        self.said[job] = answer if isinstance(answer, list) else [answer]

    def stop(self):
        self.num_stops += 1

    def events(self, timeout_s):
        self.sizes.append(len(self.said))
        assert len(self.sizes) < 1000, "nobody heard the signal"
        if not self.on_wait(len(self.sizes) - 1):
            return []
        said, self.said = self.said, {}
        return [(job, message) for job, messages in said.items() for message in messages]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the small study of one seed with a fake pool; returns (outcome, events, pool)."""

    def run_with(answers=None, costs=None, num_workers=1, overrides=("study.seeds=[0]",), done=(), **also):
        pool = FakePool(answers, also.get("on_wait", lambda waits: True))
        pool.count = num_workers
        plan, store, events = small_plan(tmp_path, *overrides), Store(tmp_path / "run"), []
        for job in plan.jobs:
            if job.id in done:
                store.finish(job, DONE)
        outcome = execute(plan, store, costs or {}, also.get("on_event", events.append), pool)
        return outcome, events, pool

    return run_with


def test_every_job_is_run_once_after_what_it_needs(run):
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


def test_the_job_with_the_longest_chain_behind_it_comes_first(run):
    # Chains: train:sft 1 + train:opd 1 + evaluate:opd 1 = 3; train:rl 1.5 + 1 = 2.5; evaluate:base 1 + 1 = 2.
    _, _, pool = run(costs=dict.fromkeys(ALL, 1.0) | {"train:rl:0": 1.5})
    assert pool.submitted[:2] == ["train:sft:0", "train:rl:0"]
    # Now the chain through RL is 5 + 1 = 6.
    _, _, pool = run(costs=dict.fromkeys(ALL, 1.0) | {"train:rl:0": 5.0})
    assert pool.submitted[0] == "train:rl:0"


def test_no_more_jobs_run_at_once_than_there_are_workers(run):
    _, _, pool = run(num_workers=2)
    assert max(pool.sizes) == 2


def test_what_is_done_is_skipped_and_not_run(run):
    done = ["train:sft:0", "evaluate:base:0"]
    outcome, events, pool = run(done=done)
    assert sorted(kinds(events, "skipped")) == sorted(done)
    assert not set(done) & set(pool.submitted)
    assert sorted(outcome.done) == sorted(ALL)


def test_no_worker_is_started_when_all_is_done(run):
    outcome, events, pool = run(done=ALL)
    assert not pool.is_entered
    assert sorted(outcome.done) == sorted(ALL)
    assert {event.kind for event in events} == {"skipped"}


def test_a_failed_job_fails_what_needs_it_and_nothing_else(run):
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
    assert all(job.endswith(":0") for job in outcome.failed)
    assert sorted(job for job in outcome.done if job.endswith(":1")) == sorted(id_[:-1] + "1" for id_ in ALL)


def test_diverged_and_skipped_arms_count_as_done(run):
    skipped = {"status": "skipped", "reason": "its teacher sft diverged", "node_s": 0.0}
    outcome, _, _ = run({"train:sft:0": {**DONE, "status": "diverged"}, "train:opd:0": skipped})
    assert sorted(outcome.done) == sorted(ALL)


def sending(number=signal.SIGINT, times=1, answered_at=10**9):
    """An `on_wait` that sends this process `number` in the first `times` waits; jobs answer from `answered_at` on."""

    def on_wait(waits):
        if waits < times:
            signal.raise_signal(number)
        return waits >= answered_at

    return on_wait


@pytest.mark.parametrize("number", ASKING)
def test_ctrl_c_sigterm_and_a_closed_terminal_stop_the_workers_and_are_an_interrupted_outcome(run, monkeypatch, number):
    monkeypatch.setattr(executor, "SILENT_S", 0.0)
    before = signal.getsignal(number)
    outcome, events, pool = run(
        {"train:rl:0": {"status": "interrupted"}}, costs={"train:rl:0": 100.0}, on_wait=sending(number, answered_at=1)
    )
    assert pool.submitted == ["train:rl:0"]
    assert outcome == Outcome([], {}, interrupted=True)
    assert kinds(events, "interrupted") == ["train:rl:0"]
    assert pool.is_shut_down and pool.num_stops
    assert signal.getsignal(number) == before
    assert [event.message for event in events if event.kind == "warning"] == [
        "interrupted; the workers stop at their next update, and at once after another Ctrl-C"
    ]


def test_workers_that_end_after_ctrl_c_are_no_failures_and_are_not_tried_again(run):
    # A worker that is still importing has nothing to keep and is ended.
    death = Death("was ended while it started by SIGKILL", is_early=True)
    outcome, events, pool = run({"train:rl:0": death}, costs={"train:rl:0": 100.0}, on_wait=sending(answered_at=1))
    assert outcome == Outcome([], {}, interrupted=True)
    assert (kinds(events, "interrupted"), kinds(events, "failed")) == (["train:rl:0"], [])
    assert pool.submitted == ["train:rl:0"]


@pytest.mark.parametrize(("times", "stop_s"), [(2, 1e9), (1, 0.0)])
def test_workers_that_do_not_stop_are_ended(run, monkeypatch, times, stop_s):
    # After a second Ctrl-C, or after STOP_S.
    monkeypatch.setattr(executor, "STOP_S", stop_s)
    outcome, _, pool = run(costs={"train:rl:0": 100.0}, on_wait=sending(times=times))
    assert outcome.interrupted and pool.is_shut_down
    assert len(pool.sizes) == times


def test_a_job_that_ended_while_ctrl_c_was_handled_is_kept(run):
    outcome, _, _ = run(costs={"train:rl:0": 100.0}, on_wait=sending(answered_at=0))
    assert outcome == Outcome(["train:rl:0"], {}, interrupted=True)


@pytest.mark.parametrize(("last", "is_interrupted"), [(ALL[0], True), ("none", False)])
def test_ctrl_c_between_two_jobs_is_an_interrupted_outcome_unless_all_is_done(run, last, is_interrupted):
    left = set(ALL)

    def on_event(event):
        if event.kind == "done":
            left.discard(event.job.id)
            if event.job.id == last or not left:
                signal.raise_signal(signal.SIGINT)

    outcome, _, _ = run(on_event=on_event)
    assert outcome.interrupted == is_interrupted
    assert bool(left) == is_interrupted


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_that_is_ignored_stays_ignored(run, number):
    # Ctrl-C in the background of a shell, SIGHUP under nohup.
    signal.signal(number, signal.SIG_IGN)
    outcome, _, _ = run(on_wait=sending(number, answered_at=0))
    assert not outcome.interrupted
    assert sorted(outcome.done) == sorted(ALL)


STARTED = """
import os, signal, subprocess, sys
from statewise.console.children import _asked_later

with _asked_later():
    child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"],
                             stdout=subprocess.PIPE)
child.stdout.readline()
signal.signal(signal.SIGINT, lambda number, frame: print("parent", flush=True))
signal.signal(signal.SIGHUP, lambda number, frame: print("hung up", flush=True))
os.killpg(0, signal.SIGHUP)
os.killpg(0, signal.SIGINT)
try:
    print(child.wait(0.5))
except subprocess.TimeoutExpired:
    print("alive")
child.kill()
print(child.wait(10) == -signal.SIGKILL)
"""


def test_ctrl_c_of_a_terminal_reaches_the_parent_and_no_process_that_it_started():
    done = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert done.stdout.split() == ["hung", "up", "parent", "alive", "True"]
    assert done.stderr == ""


def test_progress_and_warnings_of_workers_are_forwarded(run):
    def talk(job):
        return [JobEvent("progress", job, done=3), JobEvent("warning", job, message="careful"), DONE]

    _, events, _ = run({"train:sft:0": talk})
    assert [(e.kind, e.done, e.message) for e in events if e.kind in ("progress", "warning")] == [
        ("progress", 3, ""),
        ("warning", 0, "careful"),
    ]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Does a job in this process, as a worker does, by the `run_job` of the test; returns what is answered."""

    def work_with(run_job, tell=lambda event: None, should_stop=lambda: False):
        monkeypatch.setattr(jobs, "run_job", run_job)
        place = SimpleNamespace(store=Store(tmp_path / "run"))
        return worker.work(place, small_plan(tmp_path).jobs[1], tell, should_stop)

    return work_with


def raising(error):
    def run_job(place, job, observer):
        raise error

    return run_job


def test_a_worker_answers_what_its_job_answers(work):
    assert work(lambda place, job, observer: DONE) == DONE


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (InterruptedTrainingError("x"), {"status": "interrupted"}),
        (UsageError("no gold text"), {"status": "failed", "reason": "no gold text"}),
        (OSError(28, "No space left on device"), {"status": "failed", "reason": "[Errno 28] No space left on device"}),
    ],
)
def test_a_worker_turns_an_error_into_an_answer(work, error, answer):
    assert work(raising(error)) == answer


def test_a_defect_in_a_job_keeps_its_traceback_and_names_the_file(work, tmp_path):
    answer = work(raising(ZeroDivisionError("division by zero")))
    path = tmp_path / "run" / "arms" / "sft" / "0" / "traceback.txt"
    assert answer == {"status": "failed", "reason": f"ZeroDivisionError: division by zero (see {path})"}
    assert "in run_job" in path.read_text()


def test_a_defect_on_a_full_disk_is_told_without_a_traceback(work, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = work(raising(ZeroDivisionError("division by zero")))
    assert answer["reason"].startswith("ZeroDivisionError: division by zero (and no traceback: [Errno 28] No space")


def test_a_worker_sends_progress_seldom(work):
    def run_job(place, job, observer):
        for done in range(100):
            observer.progress(done)
        observer.warn("careful")
        return DONE

    sent = []
    work(run_job, sent.append)
    assert [event.kind for event in sent][-1] == "warning"
    assert len(sent) < 10


ORPHAN = """
import multiprocessing, os, sys, time
from statewise.console.children import belong_to_parent

def work():
    belong_to_parent()
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
    command = [sys.executable, "-m", "statewise", "run", "pocket", "--seeds", "1", "--workers", "2", "--out", "x"]
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
    output = process.communicate(timeout=60)[0]
    *before, last = output.splitlines()
    assert last == "Interrupted. What is done is kept in x; run the same command to continue."
    assert [line[:22] for line in before] in ([], ["[  0 %] loading model "])
    assert process.returncode == 3
    while members_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert members_of(process.pid) == []
