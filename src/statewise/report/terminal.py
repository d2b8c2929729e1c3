"""The report in a terminal: the same tables and verdicts as the page, as wide as the terminal is.

How a table is set: `report.layout`. Every string is a `rich.text.Text`, so that brackets in it are not markup, and is
cleaned of control characters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from statewise.console.printing import printable, uncleaned
from statewise.report import sentences, tables
from statewise.report.layout import Setting, cell_lines, set_table, wrapped
from statewise.report.text import clean, to_ascii
from statewise.storage.records import HypothesisSummary, StudySummary

VERDICT_STYLES = {"holds": "bold cyan", "does not hold": "bold magenta", "not resolved": "bold yellow"}


def render_terminal(summary: StudySummary, console: Console) -> None:
    """Print the summary: scope, tables, verdicts, problems, legend."""
    print_line(console, summary.name, "bold")
    if summary.description:
        print_line(console, summary.description)
    print_line(console, " ".join((sentences.scope(summary), *sentences.answer(summary))))
    for table in _tables(summary):
        print_table(console, table)
    for line in (sentences.missing_effects(summary), sentences.identical_states(summary)):
        if line:
            print_line(console, line)
    if shorter := sentences.left_out(summary, "differences, drift, states and budgets are left out; the page has them"):
        print_line(console, shorter, "dim")
    _print_verdicts(console, summary)
    print_problems(console, summary)
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


def print_table(console: Console, table: tables.Table) -> None:
    """Print one table as one block; says how many columns are left out where it is too wide."""
    console.print()
    print_line(console, table.title, "bold")
    setting = set_table(table, console.width)
    console.print(_rich_table(console, setting))
    if left := setting.num_left_out:
        told = f"Left out: {left} of {len(table.headings)} columns; a terminal of width {setting.full_width} shows all."
        print_line(console, told)
    print_line(console, table.caption, "dim")


def _rich_table(console: Console, setting: Setting) -> RichTable:
    table, layout = setting.table, setting.layout
    rich_table = RichTable(box=box.SIMPLE_HEAD, padding=(0, layout.gap, 0, 0), pad_edge=False, show_edge=False)
    rich_table.add_column(text_of(console, table.heading), width=setting.label_width, overflow="fold")
    for heading, width in zip(table.headings, setting.widths, strict=False):
        rich_table.add_column(_wrapped(console, heading, width), justify="right", width=width)
    for row in table.rows:
        label = _wrapped(console, row.label, setting.label_width)
        if row.note:
            label.append("\n").append_text(text_of(console, row.note, "dim"))
        shown = row.cells[: len(setting.widths)]
        lines = [[text_of(console, *line) for line in cell_lines(cell, layout)] for cell in shown]
        rich_table.add_row(label, *(Text("\n", justify="right").join(cell) for cell in lines))
    return rich_table


def _wrapped(console: Console, text: str, width: int) -> Text:
    return Text(wrapped(text_of(console, text).plain, width))


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
    head = text_of(console, f"{sentences.verdict_mark(hypothesis)} {hypothesis.verdict}", style)
    head.append("  ").append_text(text_of(console, hypothesis.name, "bold"))
    if p := sentences.p_adjusted(hypothesis):
        head.append("  ").append_text(text_of(console, p))
    console.print(head)
    lines = [line for line in (hypothesis.statement, sentences.scope_of_hypothesis(hypothesis)) if line]
    for name, estimate in hypothesis.contrasts.items():
        cell = tables.delta_cell(estimate, hypothesis.margin)
        lines.append(
            f"{name}: {cell.line}, {sentences.size(estimate)}. {sentences.missing_data(estimate, hypothesis.margin)}"
        )
    lines += [f"Test: {hypothesis.test}"] * bool(hypothesis.test) + [hypothesis.note] * bool(hypothesis.note)
    for line in lines:
        console.print(Padding(text_of(console, line), (0, 0, 0, 2), expand=False))


def print_problems(console: Console, summary: StudySummary, most: int | None = None) -> None:
    """What a reader must know beside the tables: what diverged, failed or could not be scored; `most` lines of it."""
    problems = [f"{run.label}: {tables.divergence(run)}" for run in summary.runs if run.num_diverged]
    problems += summary.problems
    if not problems:
        return
    console.print()
    print_line(console, "Problems", "bold")
    more = len(problems) - len(problems[:most])
    for problem in [*problems[:most], *([f"and {more} more"] if more else [])]:
        console.print(Padding(text_of(console, f"! {problem}", "yellow"), (0, 0, 0, 2), expand=False))


def _print_legend(console: Console, summary: StudySummary) -> None:
    console.print()
    print_line(console, f"{sentences.UNRESOLVED_LEGEND} {sentences.seeds_note(summary)}", "dim")
    if family := sentences.run_family(summary):
        print_line(console, family, "dim")
    for method, names in sentences.methods(summary).items():
        print_line(console, f"{', '.join(names)}: {method}.", "dim")


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print one line of text; brackets in it are not markup."""
    console.print(text_of(console, line, style))


def text_of(console: Console, text: str, style: str = "") -> Text:
    """`text` as it is printed: clean, no markup, in ASCII where the console has nothing else."""
    shown = clean(text)
    return Text(to_ascii(shown) if console.options.ascii_only else shown, style=style)
