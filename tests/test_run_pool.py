"""Worker processes that die, hang or never start, real ones with toy jobs: who is blamed, and what goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import toy_jobs
from forked import CONTEXT, is_alive, start_server
from study_fixture import small_plan
from toy_jobs import ALL, kinds

from statewise.folder.store import Store
from statewise.run import executor, pool
from statewise.run.executor import Outcome, execute
from statewise.run.pool import Pool

pytestmark = pytest.mark.usefixtures("heard_signals")
SIGKILL = "its worker process was ended by SIGKILL (out of memory, or killed)"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the small study with toy jobs; `script[job id][i]` is what its i-th try does: see `toy_jobs.act`."""
    start_server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: CONTEXT)

    def run_with(script=None, starts=(), *, num_workers=2, on_event=None):
        events = []

        def note(event):
            events.append(event)
            if on_event:
                on_event(event)

        plan = small_plan(tmp_path, "study.seeds=[0]")
        begin = partial(toy_jobs.begin, tmp_path, script or {}, list(starts))
        outcome = execute(plan, Store(tmp_path / "run"), {}, note, Pool(num_workers, begin))
        left = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
        assert [pid for pid in left if is_alive(pid)] == []
        return outcome, events

    return run_with


def warnings(events):
    return [event.message for event in events if event.kind == "warning"]


def tries(folder: Path, name: str) -> int:
    return len(list(folder.glob(f"{name}-[0-9]*")))


def test_workers_are_kept_for_the_next_job(run):
    outcome, events = run(num_workers=1)
    assert sorted(outcome.done) == sorted(ALL)
    assert len({event.result["pid"] for event in events if event.kind == "done"}) == 1


def test_workers_end_by_themselves_when_all_is_done_so_that_nothing_of_theirs_is_left(run, tmp_path):
    run(num_workers=2)
    assert tries(tmp_path, "ended") == tries(tmp_path, "starts") == 2


@pytest.mark.parametrize(
    ("deed", "how"),
    [
        ("die SIGKILL", "was ended by SIGKILL (out of memory, or killed)"),
        ("die SIGSEGV", "was ended by SIGSEGV (a crash in native code)"),
        ("exit 7", "ended with exit code 7"),
    ],
)
def test_the_job_of_a_worker_that_dies_is_tried_once_more_and_all_is_done(run, deed, how):
    outcome, events = run({"train:sft:0": [deed]})
    assert outcome.failed == {} and sorted(outcome.done) == sorted(ALL)
    assert warnings(events) == [
        f"train:sft:0: its worker process {how}; the job is tried once more, from its last checkpoint"
    ]


def test_a_job_whose_worker_dies_twice_fails_with_what_needs_it_and_nothing_else(run, tmp_path):
    outcome, events = run({"train:sft:0": ["die SIGKILL", "die SIGKILL"]})
    assert outcome.failed == {
        "train:sft:0": f"{SIGKILL}, as one before it; run the same command to try again",
        "evaluate:sft:0": "train:sft:0 failed",
        "train:opd:0": "train:sft:0 failed",
        "evaluate:opd:0": "train:opd:0 failed",
    }
    assert sorted(outcome.done) == ["evaluate:base:0", "evaluate:rl:0", "train:rl:0"]
    assert (len(warnings(events)), tries(tmp_path, "train:sft:0")) == (1, 2)
    assert not outcome.interrupted


def test_a_job_beside_a_dying_worker_is_not_disturbed(run, tmp_path):
    # It works on while the other worker dies twice.
    outcome, _ = run({"train:sft:0": ["die SIGKILL"] * 2, "train:rl:0": ["wait 0.5"]})
    assert "train:rl:0" in outcome.done
    assert tries(tmp_path, "train:rl:0") == 1


def test_every_job_has_a_second_try_of_its_own(run, tmp_path):
    outcome, events = run({id_: ["die SIGKILL"] for id_ in ALL})
    assert sorted(outcome.done) == sorted(ALL)
    assert sorted(message.partition(": ")[0] for message in warnings(events)) == sorted(ALL)
    assert [tries(tmp_path, id_) for id_ in ALL] == [2] * len(ALL)


def test_a_worker_that_dies_while_it_starts_does_not_cost_its_job_the_second_try(run):
    outcome, events = run({"train:sft:0": ["die SIGKILL"]}, ["exit 3", "die SIGBUS"], num_workers=1)
    assert sorted(outcome.done) == sorted(ALL)
    assert warnings(events) == [
        "train:sft:0: its worker process ended while it started with exit code 3; another is started",
        "train:sft:0: its worker process was ended while it started by SIGBUS (a crash in native code); another is "
        "started",
        f"train:sft:0: {SIGKILL}; the job is tried once more, from its last checkpoint",
    ]


@pytest.mark.parametrize(
    ("deed", "how"),
    [
        ("die SIGKILL", "was ended while it started by SIGKILL (out of memory, or killed)"),
        ("raise no module named torch", "could not start (ImportError: no module named torch)"),
    ],
)
def test_workers_that_never_start_are_given_up_and_the_reason_is_said(run, tmp_path, deed, how):
    outcome, events = run({}, [deed] * 100, num_workers=2)
    assert outcome.done == []
    reasons = {outcome.failed[id_] for id_ in ("train:sft:0", "train:rl:0", "evaluate:base:0")}
    assert reasons == {f"no worker process can be started; the last one {how}"}
    assert sorted(outcome.failed) == sorted(ALL) == sorted(kinds(events, "failed"))
    assert pool.MAX_FAILED_STARTS <= tries(tmp_path, "starts") <= pool.MAX_FAILED_STARTS + 1


def test_a_worker_that_lives_goes_on_where_no_other_can_be_started(run, tmp_path):
    # The first one starts; all others die while they do.
    outcome, _ = run({"train:sft:0": ["wait 0.5"], "train:rl:0": ["wait 0.5"]}, ["", *["exit 1"] * 100])
    assert sorted(outcome.done) == sorted(ALL)
    assert tries(tmp_path, "starts") <= 2 + pool.MAX_FAILED_STARTS


def has_open_files(pid):
    """Whether a thread of the process lives: each holds its pipe open, and the first may be a zombie before others."""
    try:
        return is_alive(pid) or len(os.listdir(f"/proc/{pid}/task")) > 1
    except FileNotFoundError:
        return False


def test_an_idle_worker_that_dies_is_replaced_without_a_word(run, tmp_path):
    def on_event(event):
        if event.kind == "done" and event.job.id == "train:sft:0":
            os.kill(event.result["pid"], signal.SIGKILL)
            while has_open_files(event.result["pid"]):
                time.sleep(0.01)

    outcome, events = run(on_event=on_event, num_workers=1)
    assert sorted(outcome.done) == sorted(ALL)
    assert warnings(events) == []
    assert tries(tmp_path, "starts") == 2


def pressing(*events):
    """An `on_event` that is Ctrl-C at the first event of each of these kinds."""
    left = list(events)

    def on_event(event):
        if event.kind in left:
            left.remove(event.kind)
            signal.raise_signal(signal.SIGINT)

    return on_event


def test_a_worker_stops_when_it_is_asked_and_its_job_is_no_failure(run):
    outcome, events = run({"train:sft:0": ["wait 60"]}, num_workers=1, on_event=pressing("progress"))
    assert outcome == Outcome([], {}, interrupted=True)
    assert (kinds(events, "interrupted"), kinds(events, "failed")) == (["train:sft:0"], [])


def test_a_worker_that_hangs_is_ended_by_a_second_ctrl_c(run, monkeypatch):
    monkeypatch.setattr(executor, "SILENT_S", 0.0)
    outcome, events = run({"train:sft:0": ["hang"]}, num_workers=1, on_event=pressing("progress", "warning"))
    assert outcome == Outcome([], {}, interrupted=True)
    assert "at once after another Ctrl-C" in warnings(events)[0]


def test_a_worker_that_hangs_while_it_starts_is_ended_by_the_first_ctrl_c(run):
    outcome, events = run({}, ["hang"], num_workers=1, on_event=pressing("started"))
    assert outcome == Outcome([], {}, interrupted=True)
    assert (kinds(events, "interrupted"), warnings(events)) == (["train:sft:0"], [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_asks_every_process_of_a_run_to_stop_ends_no_worker(run, number):
    # A cluster, or a terminal that is closed, tells each process; the parent asks them to stop at an update.
    def on_event(event):
        if event.kind == "done" and event.job.id == "train:sft:0":
            os.kill(event.result["pid"], number)

    outcome, events = run(on_event=on_event, num_workers=1)
    assert (sorted(outcome.done), warnings(events)) == (sorted(ALL), [])


# A worker that imported it would start a worker of its own.
UNGUARDED = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy_jobs
from statewise.plan.dag import Job
from statewise.run.pool import Pool
print("a script")
with Pool(1, partial(toy_jobs.begin, Path(), {{}}, [])) as pool:
    pool.submit(Job("train", "a", 0, (), ""))
    while not any(isinstance(said, dict) and print(said["status"]) is None for _, said in pool.events(1)): pass
"""


def test_a_script_without_a_guard_is_not_run_by_its_workers(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED.format(tests=str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "a script\ntrained\n"
