"""How a plan and a run are shown: a table before; one study-wide bar with ETA on a terminal, or plain lines, during."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from statewise.plan.dag import BASE, Job, Plan
from statewise.plan.estimate import PlanEstimate, estimate_plan
from statewise.plan.memory import CARDS, SPARE, estimate_card_seconds, estimate_memory
from statewise.plan.request import choose_workers
from statewise.report.numbers import duration
from statewise.run.executor import JobEvent, Outcome
from statewise.storage.records import StudySummary
from statewise.trackers import Tracker
from statewise.trackers.process import Reporting

PLAIN_INTERVAL_S = 15.0
PLAN_WEIGHT_S = 30.0  # the plan's pace, and its costs, count as much as this many seconds of work


def run_to_report(
    plan: Plan,
    folder: Path,
    workers: int | None,
    console: Console | None,
    trackers: Mapping[str, type[Tracker]] = MappingProxyType({}),
) -> tuple[Outcome, StudySummary | None]:
    """`run_study`, shown on `console` where there is one and by `trackers`, and the page of what it summarised."""
    from statewise.run.run import run_study

    num_workers = choose_workers(plan, workers).count

    def tell(text: str) -> None:
        if console is not None:
            console.print(Text(text), soft_wrap=True)

    hearers: list[Callable[[JobEvent], None]] = []

    def on_event(event: JobEvent) -> None:
        for hear in hearers:
            hear(event)

    with Reporting(trackers, plan, folder, tell) as reporting:
        with ExitStack() as shown:
            if console is not None:
                hearers.append(
                    shown.enter_context(ProgressDisplay(console, plan, estimate_plan(plan, num_workers))).show
                )
            hearers.append(lambda event: reporting.hear(event.kind))
            outcome, summary = run_study(plan, folder, on_event, num_workers)
        reporting.is_complete = len(outcome.done) == len(plan.jobs)
        if summary is not None:
            # Only now: matplotlib would hold up the error of a task that cannot be used.
            from statewise.report.page import write_report

            write_report(summary, folder)
    return outcome, summary


class ProgressDisplay:
    """Follows the events of a run. Work is counted in estimated seconds; the ETA corrects and scales them.

    Corrected, by what jobs that are done took: those of the same action, and as far as they are few, all.

        c = (m + W) / (e + W),  c_a = (m_a + c W) / (e_a + W),  m, e = measured and estimated seconds, a = an action

    Scaled by the pace, seconds of the clock for one of work: the plan's at first, and more and more that of the work
    done, workers' start included. W = `PLAN_WEIGHT_S` in all of them.
    """

    def __init__(self, console: Console, plan: Plan, estimate: PlanEstimate) -> None:
        self._console = console
        self._estimate = estimate
        self._units = {job.id: _units_of(plan, job) for job in plan.jobs}
        self._finished: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._loading: dict[str, float] = {}  # since when jobs import and load, of which they say nothing
        self._measured: dict[str, float] = {}
        self._actions = {job.id: job.action for job in plan.jobs}
        self._total_s = sum(estimate.seconds.values())
        self._began = time.monotonic()
        self._last_line = -math.inf  # the first event is told at once
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._bar = Progress(
                _Running(self),
                BarColumn(bar_width=16),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=self._total_s, eta="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: JobEvent) -> None:
        """Take one event of the run."""
        job, cost = event.job, self._estimate.seconds[event.job.id]
        if event.kind == "started":
            self._running[job.id], self._loading[job.id] = 0.0, time.monotonic()
        elif event.kind == "progress":
            self._loading.pop(job.id, None)
            self._running[job.id] = cost * min(1.0, event.done / self._units[job.id])
        else:
            self._end(event, cost)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done_s, eta=self._eta())
        elif time.monotonic() - self._last_line > PLAIN_INTERVAL_S:
            self._line(self.running())

    def running(self) -> str:
        """The jobs at work; of those that load their models since when."""
        running, since = [*self._running], {**self._loading}  # copies: rich asks from a thread of its own
        working, loading = ", ".join(id_ for id_ in running if id_ not in since), ""
        if since:
            waited = time.monotonic() - min(since.values())
            loading = f"loading model {waited:.0f} s: {', '.join(since)}"
        idle = "finishing" if len(self._finished) == len(self._units) else "starting"
        return "; ".join(filter(None, (loading, working))) or idle

    def _end(self, event: JobEvent, cost: float) -> None:
        if event.kind == "warning":
            self._note(f"warning: {event.message}")
            return
        self._running.pop(event.job.id, None)
        self._loading.pop(event.job.id, None)
        self._finished[event.job.id] = cost
        if event.kind == "failed":
            self._note(f"{event.job.id} failed: {event.message}")
        elif event.kind == "done":
            self._measured[event.job.id] = event.result["node_s"]
        if event.kind == "done" and self._bar is None:
            self._line(f"{event.job.id} {event.result['status']} in {event.result['node_s']:.0f} s")

    @property
    def _done_s(self) -> float:
        return sum(self._finished.values()) + sum(self._running.values())

    def _eta(self) -> str:
        done, left = sum(self._measured.values()), 0.0
        factors = self._corrections()
        for id_, action in self._actions.items():
            if id_ not in self._finished:
                begun = self._running.get(id_, 0.0)
                done += begun * factors[action]
                left += (self._estimate.seconds[id_] - begun) * factors[action]
        planned_pace = self._estimate.wall_s / self._total_s
        elapsed = time.monotonic() - self._began
        left = max(0.0, left) * (elapsed + PLAN_WEIGHT_S * planned_pace) / (done + PLAN_WEIGHT_S)
        return f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"

    def _corrections(self) -> dict[str, float]:
        """Seconds of a job for one of its estimate, by action."""
        sums = {action: [0.0, 0.0] for action in self._actions.values()}
        for id_, measured in self._measured.items():
            sums[self._actions[id_]][0] += measured
            sums[self._actions[id_]][1] += self._estimate.seconds[id_]
        of_all = (sum(m for m, _ in sums.values()) + PLAN_WEIGHT_S) / (sum(e for _, e in sums.values()) + PLAN_WEIGHT_S)
        return {action: (m + of_all * PLAN_WEIGHT_S) / (e + PLAN_WEIGHT_S) for action, (m, e) in sums.items()}

    def _note(self, text: str) -> None:
        self._console.print(Text(text))

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._note(f"[{100 * self._done_s / self._total_s:3.0f} %] {text}  {self._eta()}".rstrip())


class _Running(ProgressColumn):
    """What is at work, drawn anew as the seconds go by."""

    def __init__(self, display: ProgressDisplay) -> None:
        super().__init__(Column(no_wrap=True))
        self._display = display

    def render(self, task: Task) -> Text:
        """The line of the display."""
        return Text(self._display.running())


@contextmanager
def telling(console: Console) -> Iterator[Callable[[str], None]]:
    """What hears, in lines, of what goes on; on a terminal every line has the time until the next one."""
    if not console.is_terminal:
        yield lambda line: console.print(Text(line), soft_wrap=True)
        return
    text = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    with Progress(text, TimeElapsedColumn(), console=console) as progress:

        def tell(line: str) -> None:
            for last in progress.task_ids[-1:]:  # the others have stopped
                progress.stop_task(last)
            progress.add_task(line, total=None)

        yield tell


def _units_of(plan: Plan, job: Job) -> int:
    """How many steps of progress a job reports."""
    if job.action == "train":
        return plan.arms[job.arm].update.num_updates
    return len(plan.config.shared.retention) + 2


def plan_table(plan: Plan, estimate: PlanEstimate, num_workers: int) -> Group:
    """The plan of a study before any compute, within 80 columns: arms, what they need, what they cost."""
    study = plan.config.study
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("arm", "source × signal"):
        table.add_column(heading, overflow="fold")  # names give way, numbers do not
    for heading in ("updates", "lr", "states", "tokens", "written", "on CPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(BASE, "not trained", *["–"] * 6)
    for name, arm in plan.arms.items():
        cost = estimate.arms[name]
        counts = (_thousands(count) for count in (cost.num_states, cost.num_tokens, cost.num_generated))
        table.add_row(
            f"{name}\n  needs {arm.teacher}" if arm.teacher else name,
            f"{arm.source.summary}\n× {arm.signal_summary}",
            str(cost.num_updates),
            f"{arm.update.lr:g}",
            *counts,
            _short(cost.train_s),
        )
    num_rollouts = plan.config.shared.drift.num_rollouts
    text = (
        "Counts are estimates for one seed; tokens pass the learner with gradient, written are those of rollouts and "
        f"teacher.\nFor drift every model writes {num_rollouts:,} rollouts more, the base model twice as many."
        f"\nReward of an answer: {plan.reward}."
        f"\n{len(plan.jobs)} jobs, seeds {', '.join(map(str, study.seeds))}; about "
        f"{duration(estimate.wall_s)} on {num_workers} processes."
    )
    return Group(Text(f"{study.name}: {study.description}".removesuffix(": ")), table, Text(text))


def cards_table(plan: Plan, estimate: PlanEstimate) -> Group:
    """Memory of every arm on a GPU and its training time on three of them; "–" where it does not fit."""
    memory = estimate_memory(plan)
    seconds = [estimate_card_seconds(plan, estimate, card) for card in CARDS]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm on a GPU, bfloat16", no_wrap=True)
    for heading in ("train", "sample", *(card.name for card in CARDS)):
        table.add_column(heading, justify="right")
    for name, need in memory.items():
        fits = [need.peak < SPARE * card.memory_gb * 1e9 for card in CARDS]
        times = (_short(of_card[name]) if fit else "–" for of_card, fit in zip(seconds, fits, strict=True))
        table.add_row(name, f"{need.training / 1e9:.1f} GB", f"{need.sampling / 1e9:.1f} GB", *times)
    text = (
        "Memory peaks and training time of one seed, by arithmetic on shapes and published peaks, not measured. "
        f"{SPARE:.0%} of a card is taken to be usable; what does not fit is trained in smaller micro-batches."
    )
    return Group(Text(), table, Text(text))


def _thousands(count: int) -> str:
    """3,200 as 3.2k: an estimate has no more digits than that."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


def _short(seconds: float) -> str:
    """A time span with one unit: 78 s, 3.5 min, 2.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:,.3g} h"
