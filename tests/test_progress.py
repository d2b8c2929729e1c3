"""How a run is shown: plain lines off a terminal, shares of the work done, the plan's table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from study_fixture import STUDY, job_named, small_plan

from statewise import progress
from statewise.plan.estimate import PlanEstimate, estimate_plan
from statewise.progress import ProgressDisplay, plan_table, telling
from statewise.run.executor import JobEvent

DONE = {"status": "trained", "node_s": 5.0}


class Clock:
    """Stands in for the clock of `progress`."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def shown(tmp_path, clock):
    """A display of the small study of one seed, whose 7 jobs cost 10 s each, and what it has printed."""
    plan = small_plan(tmp_path, "study.seeds=[0]")
    stream = io.StringIO()
    estimate = PlanEstimate({}, {job.id: 10.0 for job in plan.jobs}, 70.0)
    display = ProgressDisplay(Console(file=stream, width=80), plan, estimate)

    def show(kind, id_, **fields):
        display.show(JobEvent(kind, job_named(plan, id_), **fields))
        return stream.getvalue()

    show.display = display
    return show


def test_off_a_terminal_every_ended_job_is_a_line(shown, clock):
    shown("started", "train:sft:0")
    clock.now = 20.0
    printed = shown("done", "train:sft:0", result=DONE)
    # It took 5 s instead of 10: all jobs (5 + 30) / (10 + 30) = .875 of their estimates, trainings (5 + .875 30) /
    # (10 + 30) = .78125. Left are two of them and four evaluations: 20 .78125 + 40 .875 = 50.625 s of work. 5 s of it
    # took 20 s, and the plan's pace of 1 counts as 30: 50.625 (20 + 30) / (5 + 30) = 72.3.
    assert printed.splitlines()[-1] == "[ 14 %] train:sft:0 trained in 5 s  about 72 s left"
    assert "\x1b" not in printed


def test_a_quiet_stretch_gets_a_line_now_and_then(shown, clock):
    begun = shown("started", "train:sft:0")
    assert shown("progress", "train:sft:0", done=1) == begun
    clock.now = 16.0
    # 2 of 4 updates of 10 estimated seconds: 5 of 70.
    assert shown("progress", "train:sft:0", done=2).splitlines()[1].startswith("[  7 %] train:sft:0")
    clock.now = 17.0
    assert len(shown("progress", "train:sft:0", done=3).splitlines()) == 2


def test_a_job_loads_its_model_until_it_says_that_it_works(shown, clock):
    assert shown.display.running() == "starting"
    assert shown("started", "train:sft:0") == "[  0 %] loading model 0 s: train:sft:0  about 70 s left\n"
    clock.now = 4.0
    shown("started", "evaluate:base:0")
    clock.now = 7.0
    assert shown.display.running() == "loading model 7 s: train:sft:0, evaluate:base:0"
    shown("progress", "train:sft:0", done=0)
    assert shown.display.running() == "loading model 3 s: evaluate:base:0; train:sft:0"
    shown("failed", "evaluate:base:0", message="no memory")
    assert shown.display.running() == "train:sft:0"
    for job in shown.display._units:
        shown("done", job, result=DONE)
    assert shown.display.running() == "finishing"


def test_a_job_that_is_tried_once_more_loads_once_more(shown, clock):
    shown("started", "train:sft:0")
    shown("progress", "train:sft:0", done=2)
    clock.now = 9.0
    shown("started", "train:sft:0")
    assert shown.display.running() == "loading model 0 s: train:sft:0"


def test_what_is_told_off_a_terminal_is_a_line_each_and_on_one_has_its_time():
    for is_terminal in (False, True):
        stream = io.StringIO()
        with telling(Console(file=stream, force_terminal=is_terminal, width=60)) as tell:
            for line in ("pocket: loading model", "warning: " + 30 * "long "):
                tell(line)
        text = " ".join(stream.getvalue().split())
        assert "pocket: loading model" in text
        if is_terminal:
            assert text.count("0:00:00") >= 2
        else:
            assert stream.getvalue() == "pocket: loading model\nwarning: " + 30 * "long " + "\n"


def test_skipped_jobs_are_done_but_do_not_make_the_rest_look_fast(shown, clock):
    for id_ in ("train:sft:0", "evaluate:base:0", "train:rl:0"):
        shown("skipped", id_)
    clock.now = 10.0
    line = shown("done", "train:opd:0", result=DONE).splitlines()[-1]
    # 4 of 7; three evaluations are left. The one job that ran took 5 s instead of 10, so 30 .875 = 26.25 s of work;
    # within 10 s: 26.25 (10 + 30) / (5 + 30) = 30.
    assert line == "[ 57 %] train:opd:0 trained in 5 s  about 30 s left"


def test_what_jobs_took_corrects_those_of_their_kind_and_by_less_the_others(shown, clock):
    for id_, seconds in (("train:sft:0", 100.0), ("evaluate:base:0", 10.0)):
        clock.now += seconds
        printed = shown("done", id_, result=DONE | {"node_s": seconds})
    # All: (110 + 30) / (20 + 30) = 2.8; trainings (100 + 84) / 40 = 4.6, evaluations (10 + 84) / 40 = 2.35. Two and
    # three of them are left: 92 + 70.5 = 162.5 s of work, at a pace of (110 + 30) / (110 + 30) = 1.
    assert printed.splitlines()[-1].endswith("about 3 min left")
    assert shown.display._eta() == "about 3 min left"
    assert shown.display._corrections() == pytest.approx({"train": 4.6, "evaluate": 2.35})


def test_at_the_end_nothing_is_left_and_never_less(tmp_path, clock):
    plan = small_plan(tmp_path, "study.seeds=[0]")
    costs = {job.id: 0.1 * (1 + place) for place, job in enumerate(plan.jobs)}  # whose sums are not exact
    display = ProgressDisplay(Console(file=io.StringIO()), plan, PlanEstimate({}, costs, 2.8))
    for job in plan.jobs:
        clock.now += 1.0
        display.show(JobEvent("started", job))
        display.show(JobEvent("progress", job, done=400))
        assert not display._eta().startswith("about -")
        display._running[job.id] = costs[job.id] * (1 + 1e-15)  # as a sum that is not exact
        assert not display._eta().startswith("about -")
        display.show(JobEvent("done", job, result=DONE))
    assert display._eta() == "about 0 s left"


def test_more_progress_than_promised_is_not_more_than_all(shown, clock):
    clock.now = 16.0
    assert shown("progress", "train:sft:0", done=400).startswith("[ 14 %] train:sft:0")


def test_a_failure_and_a_warning_are_shown_in_full(shown):
    printed = shown("failed", "train:sft:0", message="disk full [/tmp]")
    assert "train:sft:0 failed: disk full [/tmp]" in printed
    printed = shown("warning", "train:rl:0", message="checkpoint 000002 is damaged and was passed over")
    assert "warning: checkpoint 000002 is damaged and was passed over" in printed


def test_a_warning_does_not_end_its_job(shown):
    shown("started", "train:sft:0")
    shown("warning", "train:sft:0", message="x")
    assert shown("done", "train:sft:0", result=DONE).splitlines()[-1].startswith("[ 14 %]")


def test_on_a_terminal_there_is_one_bar_for_the_study(tmp_path, clock):
    plan = small_plan(tmp_path, "study.seeds=[0]")
    stream = io.StringIO()
    estimate = PlanEstimate({}, {job.id: 10.0 for job in plan.jobs}, 70.0)
    console = Console(file=stream, force_terminal=True, width=120)
    with ProgressDisplay(console, plan, estimate) as display:
        display.show(JobEvent("started", job_named(plan, "train:sft:0")))
        display.show(JobEvent("done", job_named(plan, "evaluate:base:0"), result=DONE))
    assert "train:sft:0" in stream.getvalue()
    assert "14 %" in stream.getvalue()
    assert "trained in" not in stream.getvalue()


def test_the_plan_is_a_table_of_what_every_arm_costs(tmp_path):
    plan = small_plan(tmp_path)
    stream = io.StringIO()
    Console(file=stream, width=80).print(plan_table(plan, estimate_plan(plan, 2), 2))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    rows = {line.split()[0]: line.split() for line in text.splitlines()[2:] if line[:1].isalpha()}
    assert list(rows)[:4] == ["base", "sft", "opd", "rl"]
    # 4 updates of 8 trajectories of 100 tokens: no documents lie beside the fake model, so 100 is the guess.
    assert rows["sft"][1:7] == ["dataset", "4", "0.0003", "3.2k", "6.4k", "0"]
    assert "  needs sft" in text
    assert "14 jobs, seeds 0, 1; about" in text
    assert "on 2 processes" in text


def test_the_plan_counts_every_rollout_of_drift(tmp_path):
    seconds, texts = {}, {}
    for count in (1, 2):
        settings = ("shared.drift.num_prompts=100", f"shared.drift.rollouts_per_prompt={count}")
        plan, stream = small_plan(tmp_path, *settings), io.StringIO()
        seconds[count] = estimate_plan(plan, 2).seconds
        Console(file=stream, width=80).print(plan_table(plan, estimate_plan(plan, 2), 2))
        texts[count] = " ".join(stream.getvalue().split())
    more = {job: seconds[2][job] - seconds[1][job] for job in ("train:sft:0", "evaluate:sft:0", "evaluate:base:0")}
    # 100 rollouts of 100 tokens at 7,000 tokens a second; the base model draws two samples.
    assert more == pytest.approx({"train:sft:0": 0, "evaluate:sft:0": 1e4 / 7e3, "evaluate:base:0": 2e4 / 7e3})
    assert "every model writes 200 rollouts more, the base model twice as many." in texts[2]


def test_long_names_of_arms_never_cost_the_table_a_number(tmp_path):
    name = "states-of-another-arm.reverse-kl.3e-4"
    text = STUDY.replace("[arms.sft]", f'[arms."{name}"]').replace('teacher = "sft"', f'teacher = "{name}"')
    plan, stream = small_plan(tmp_path, text=text), io.StringIO()
    Console(file=stream, width=80).print(plan_table(plan, estimate_plan(plan, 2), 2))
    assert "…" not in stream.getvalue()
    assert stream.getvalue().count(" 0.0003 ") == 2
