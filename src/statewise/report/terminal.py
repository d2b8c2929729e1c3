"""The report in a terminal: the same tables and verdicts as the page, as wide as the terminal is.

A table that is too wide is printed in parts with the run's name repeated, never with numbers cut off. Every string is a
`rich.text.Text`, so that brackets in it are not markup, and is cleaned of control characters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from statewise.console.printing import printable, uncleaned
from statewise.report import sentences, tables
from statewise.report.text import clean, to_ascii
from statewise.storage.records import HypothesisSummary, StudySummary

VERDICT_STYLES = {"holds": "bold cyan", "does not hold": "bold magenta", "not resolved": "bold yellow"}


def render_terminal(summary: StudySummary, console: Console) -> None:
    """Print the summary: scope, tables, verdicts, problems, legend."""
    print_line(console, summary.name, "bold")
    if summary.description:
        print_line(console, summary.description)
    print_line(console, f"{sentences.scope(summary)} {sentences.outcome(summary)}")
    for table in _tables(summary):
        print_table(console, table)
    for line in (sentences.missing_effects(summary), sentences.identical_states(summary)):
        if line:
            print_line(console, line)
    if shorter := sentences.left_out(summary, "differences, drift, states and budgets are left out; the page has them"):
        print_line(console, shorter, "dim")
    _print_verdicts(console, summary)
    _print_problems(console, summary)
    _print_legend(console, summary)


def _tables(summary: StudySummary) -> list[tables.Table]:
    """All tables of few runs; of many, a design cell by cell, and the scores."""
    found = [*tables.cross_tables(summary), tables.effect_table(summary), tables.score_table(summary)]
    if len(tables.trained_runs(summary)) <= tables.MOST_ROWS:
        found += [
            tables.base_table(summary), tables.teacher_table(summary), tables.drift_table(summary),
            tables.hash_table(summary), tables.budget_table(summary), tables.answer_table(summary),
            tables.evaluated_answer_table(summary),
        ]  # fmt: skip
    return [table for table in found if table is not None]


class CleanConsole(Console):
    """A console of rich that takes nothing for markup, and prints of every text what is `printable`."""

    def __init__(self, *, stderr: bool = False) -> None:
        file = uncleaned(sys.stderr if stderr else sys.stdout)
        super().__init__(file=file, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


@dataclass(frozen=True)
class _Layout:
    """How a table is set; the compact one breaks labels and drops the space inside intervals."""

    label_width: int
    gap: int
    separator: str


WIDE = _Layout(label_width=22, gap=1, separator=", ")
COMPACT = _Layout(label_width=14, gap=0, separator=",")


def print_table(console: Console, table: tables.Table) -> None:
    """Print one table, in parts where it is too wide."""
    console.print()
    print_line(console, table.title, "bold")
    layout, parts = min(
        ((layout, _fitting_parts(table, layout, console.width)) for layout in (WIDE, COMPACT)),
        key=lambda pair: len(pair[1]),
    )
    for part in parts:
        console.print(_rich_table(console, table, part, layout))
    print_line(console, table.caption, "dim")


def _fitting_parts(table: tables.Table, layout: _Layout, width: int) -> list[dict[int, int]]:
    """The columns, index to width, in parts of which each fits into `width`; a part has at least one column."""
    room = width - _label_width(table, layout)
    parts: list[dict[int, int]] = [{}]
    for index in range(len(table.headings)):
        needed = _column_width(table, index, layout)
        if parts[-1] and sum(parts[-1].values()) + needed + (len(parts[-1]) + 1) * (layout.gap + 1) > room:
            parts.append({})
        parts[-1][index] = needed
    return parts


def _rich_table(console: Console, table: tables.Table, part: dict[int, int], layout: _Layout) -> RichTable:
    rich_table = RichTable(box=box.SIMPLE_HEAD, padding=(0, layout.gap, 0, 0), pad_edge=False, show_edge=False)
    rich_table.add_column(_text(console, table.heading), width=_label_width(table, layout), overflow="fold")
    for index, width in part.items():
        rich_table.add_column(_text(console, table.headings[index]), justify="right", width=width)
    for row in table.rows:
        label = _text(console, row.label)
        if row.note:
            label.append("\n").append_text(_text(console, row.note, "dim"))
        lines = [[_text(console, *line) for line in _cell_lines(row.cells[index], layout)] for index in part]
        rich_table.add_row(label, *(Text("\n", justify="right").join(cell) for cell in lines))
    return rich_table


def _cell_lines(cell: tables.Cell, layout: _Layout) -> list[tuple[str, str]]:
    """Text and style of each line of a cell."""
    first = f"{cell.text} {cell.mark}" if cell.mark else cell.text
    style = "dim" if cell.mark else "bold" if cell.interval else ""
    interval = cell.interval.replace(", ", layout.separator)
    return [(first, style)] + [(line, "dim") for line in (interval, cell.detail) if line]


def _label_width(table: tables.Table, layout: _Layout) -> int:
    texts = [table.heading, *(text for row in table.rows for text in (row.label, row.note))]
    return min(layout.label_width, max(map(_width, texts)))


def _column_width(table: tables.Table, index: int, layout: _Layout) -> int:
    lines = [content for row in table.rows for content, _ in _cell_lines(row.cells[index], layout)]
    return max(map(_width, lines + clean(table.headings[index]).split()), default=1)


def _width(text: str) -> int:
    """Of the text as it is, or in ASCII where that is longer (η² is eta^2)."""
    shown = clean(text)
    return max(Text(shown).cell_len, len(to_ascii(shown)))


def _print_verdicts(console: Console, summary: StudySummary) -> None:
    if not summary.hypotheses:
        return
    console.print()
    print_line(console, "Statements put to the test", "bold")
    if family := sentences.hypothesis_family(summary):
        print_line(console, family, "dim")
    for hypothesis in summary.hypotheses:
        console.print()
        _print_verdict(console, hypothesis)


def _print_verdict(console: Console, hypothesis: HypothesisSummary) -> None:
    style = VERDICT_STYLES.get(hypothesis.verdict, "bold")
    head = _text(console, f"{sentences.verdict_mark(hypothesis)} {hypothesis.verdict}", style)
    head.append("  ").append_text(_text(console, hypothesis.name, "bold"))
    if p := sentences.p_adjusted(hypothesis):
        head.append("  ").append_text(_text(console, p))
    console.print(head)
    lines = [line for line in (hypothesis.statement, sentences.scope_of_hypothesis(hypothesis)) if line]
    for name, estimate in hypothesis.contrasts.items():
        cell = tables.delta_cell(estimate, hypothesis.margin)
        lines.append(
            f"{name}: {cell.line}, {sentences.size(estimate)}. {sentences.missing_data(estimate, hypothesis.margin)}"
        )
    lines += [f"Test: {hypothesis.test}"] * bool(hypothesis.test) + [hypothesis.note] * bool(hypothesis.note)
    for line in lines:
        console.print(Padding(_text(console, line), (0, 0, 0, 2), expand=False))


def _print_problems(console: Console, summary: StudySummary) -> None:
    problems = [f"{run.label}: {tables.divergence(run)}" for run in summary.runs if run.num_diverged]
    problems += summary.problems
    if not problems:
        return
    console.print()
    print_line(console, "Problems", "bold")
    for problem in problems:
        console.print(Padding(_text(console, f"! {clean(problem)}", "yellow"), (0, 0, 0, 2), expand=False))


def _print_legend(console: Console, summary: StudySummary) -> None:
    console.print()
    print_line(console, f"{sentences.UNRESOLVED_LEGEND} {sentences.seeds_note(summary)}", "dim")
    if family := sentences.run_family(summary):
        print_line(console, family, "dim")
    for method, names in sentences.methods(summary).items():
        print_line(console, f"{', '.join(names)}: {method}.", "dim")


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print one line of text; brackets in it are not markup."""
    console.print(_text(console, line, style))


def _text(console: Console, text: str, style: str = "") -> Text:
    shown = clean(text)
    return Text(to_ascii(shown) if console.options.ascii_only else shown, style=style)
