"""The last screen of a run: the answer in three sentences, the scores, a line a hypothesis, problems.

All else that was measured is in `report.terminal`, and on the page.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from statewise.console.printing import plural
from statewise.report import numbers, sentences, tables
from statewise.report.tables import Row, Table
from statewise.report.terminal import VERDICT_STYLES, print_line, print_problems, print_table, text_of
from statewise.storage.records import Estimate, HypothesisSummary, RunSummary, StudySummary

# The columns that must be shown: gain, F, target, retention.
NUM_NEEDED = 4
MOST_PROBLEMS = 6


def render_screen(summary: StudySummary, console: Console) -> None:
    """Print what came out, and no more."""
    print_line(console, summary.name, "bold")
    print_line(console, sentences.scope(summary), "dim")
    for sentence in sentences.answer(summary):
        print_line(console, sentence)
    table = outcome_table(summary)
    print_table(console, table)
    _print_hypotheses(console, summary)
    print_problems(console, summary, MOST_PROBLEMS)
    console.print()
    if legend := _legend([cell.mark for row in table.rows for cell in row.cells]):
        print_line(console, legend, "dim")


def outcome_table(summary: StudySummary) -> Table:
    """Gain and F of every run, and its scores; of many runs those with the largest gains."""
    others = [column for column in summary.columns if column not in (summary.target, *summary.retention)]
    columns = [*summary.retention, *others]
    runs, caption = _shown(summary)
    rows = [
        Row(
            run.label,
            (
                tables.delta_cell(run.against_base.get(summary.target)),
                tables.delta_cell(run.forgetting),
                tables.score_cell(run.scores.get(summary.target)),
                tables.score_cell(run.retention_ratio, null=1.0),
                *(tables.score_cell(run.scores.get(column)) for column in columns),
            ),
            tables.divergence(run),
        )
        for run in runs
    ]
    target = summary.columns.get(summary.target, "target")
    caption += (
        "Gain: run minus base on the target; F: base minus run, mean over the retention tasks; retention: run over "
        "base. 95 % intervals below."
    )
    headings = ("gain", "F", target, "retention", *(summary.columns[column] for column in columns))
    return Table("Scores and forgetting", caption, headings, tuple(rows), num_needed=NUM_NEEDED)


def _shown(summary: StudySummary) -> tuple[list[RunSummary], str]:
    """The runs that have a row, and what to say of the others."""
    trained = tables.trained_runs(summary)
    if len(trained) <= tables.MOST_LABELS:
        return list(summary.runs), ""
    gained = [run for run in trained if summary.target in run.against_base]
    largest = sorted(gained, key=lambda run: -run.against_base[summary.target].value)[: tables.MOST_LABELS]
    told = [arm for one in summary.largest if one.response == "forgetting" for arm in one.arms[:1]]
    others = [run for run in gained if run.arm in told and run not in largest]
    base = [run for run in summary.runs if run not in trained]
    caption = (
        f"The {len(largest)} largest gains of {plural(len(trained), 'run')}{' and the largest F' * bool(others)}. "
    )
    return [*base, *largest, *others], caption


def _print_hypotheses(console: Console, summary: StudySummary) -> None:
    if not summary.hypotheses:
        return
    console.print()
    print_line(console, "Hypotheses", "bold")
    lines = RichTable.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for hypothesis in summary.hypotheses:
        verdict = f"{sentences.verdict_mark(hypothesis)} {hypothesis.verdict}"
        style = VERDICT_STYLES.get(hypothesis.verdict, "bold")
        lines.add_row(text_of(console, verdict, style), text_of(console, _told(hypothesis)))
    console.print(lines)
    notes = [sentences.scope_of_hypothesis(hypothesis) for hypothesis in summary.hypotheses]
    if len(summary.hypotheses) > 1:
        notes.append("Intervals at the level that decided each, all held together (Holm).")
    for note in dict.fromkeys(filter(None, notes)):
        print_line(console, note, "dim")


def _told(hypothesis: HypothesisSummary) -> str:
    """The name and the difference it is about; of several the lowest and the highest."""
    found = sorted(hypothesis.contrasts.values(), key=lambda estimate: estimate.value)
    ends = list(dict.fromkeys(_value(estimate) for estimate in (*found[:1], *found[-1:])))
    several = f"{len(found)} contrasts, " if len(found) > 1 else ""
    margin = f", margin {numbers.delta(hypothesis.margin)}" if hypothesis.margin else ""
    return f"{hypothesis.name}: {several}{' to '.join(ends) or 'not measured'}{margin}"


def _value(estimate: Estimate) -> str:
    cell = tables.delta_cell(estimate)
    return f"{cell.text} {cell.interval}"


def _legend(marks: list[str]) -> str:
    meanings = {
        numbers.UNRESOLVED: "not resolved: the interval covers 0 (retention: 1).",
        numbers.ALONE: "resolved by itself, not once all runs are held together.",
    }
    return " ".join(f"{mark} = {meaning}" for mark, meaning in meanings.items() if mark in marks)
