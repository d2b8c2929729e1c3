"""How a table is set in a terminal: one block, no wider than the terminal, with no number cut off.

Of several ways to set it the first is taken that fits: as it is, closer, turned so that its rows are columns, or with
every interval on two lines. A table that fits in none of them loses its last columns, and says how many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rich.text import Text

from statewise.report.tables import Cell, Row, Table
from statewise.report.text import clean, to_ascii

# Where a cell may go on in a second line: between the ends of an interval or range, planned and realised, 2 × and 10³.
_BREAKS = re.compile(r"(?<=,) |(?<= /) |(?<= to) |(?<= ×) ")
_PIECES = re.compile(r"(?<=[\s_-])")


@dataclass(frozen=True)
class Layout:
    """Most columns of a label, the space between columns, what stands inside intervals, and whether cells break."""

    label_width: int
    gap: int
    separator: str
    is_broken: bool = False


WIDE = Layout(label_width=22, gap=1, separator=", ")
COMPACT = Layout(label_width=14, gap=0, separator=",")
NARROW = Layout(label_width=12, gap=0, separator=", ", is_broken=True)


@dataclass(frozen=True)
class Setting:
    """A table as it is set. `widths`: of the columns that are shown, the first ones; `full_width` would show all."""

    table: Table
    layout: Layout
    label_width: int
    widths: tuple[int, ...]
    full_width: int

    @property
    def num_left_out(self) -> int:
        return len(self.table.headings) - len(self.widths)


def set_table(table: Table, width: int) -> Setting:
    """The first setting that shows all columns; else the first with those that are needed, or the one with most."""
    other = turned(table)
    ways = [(table, WIDE), (table, COMPACT)]
    if not table.num_needed:
        ways += [(other, WIDE), (other, COMPACT), (table, NARROW), (other, NARROW)]
    settings = [_set(*way, width) for way in ways]
    if whole := next((one for one in settings if not one.num_left_out), None):
        return whole
    upright = [_set(table, layout, width) for layout in (WIDE, COMPACT, NARROW)]
    is_enough = (one for one in upright if 0 < table.num_needed <= len(one.widths))
    chosen = next(is_enough, None) or max(upright, key=lambda one: len(one.widths))
    return replace(chosen, full_width=min(one.full_width for one in settings))


def _set(table: Table, layout: Layout, width: int) -> Setting:
    texts = [table.heading, *(text for row in table.rows for text in (row.label, row.note))]
    label_width = min(layout.label_width, max(map(text_width, texts)))
    widths = [_column_width(table, index, layout) for index in range(len(table.headings))]
    ends = [label_width + sum(widths[:count]) + count * (layout.gap + 1) for count in range(1, len(widths) + 1)]
    shown = max(1, sum(end <= width for end in ends))
    return Setting(table, layout, label_width, tuple(widths[:shown]), max(ends, default=label_width))


def turned(table: Table) -> Table:
    """The same table with its rows as columns; what stands under a label goes on in the heading."""
    rows = tuple(
        Row(heading, tuple(row.cells[index] for row in table.rows)) for index, heading in enumerate(table.headings)
    )
    headings = tuple(", ".join(filter(None, (row.label, row.note))) for row in table.rows)
    return Table(table.title, table.caption, headings, rows, "")


def cell_lines(cell: Cell, layout: Layout) -> list[tuple[str, str]]:
    """Text and style of each line of a cell."""
    style = "dim" if cell.mark else "bold" if cell.interval else ""
    below = [cell.interval.replace(", ", layout.separator), cell.detail]
    if layout.is_broken:
        first = _BREAKS.split(cell.text)
        below = [cell.mark, *_BREAKS.split(cell.interval), *_BREAKS.split(cell.detail)]
    else:
        first = [f"{cell.text} {cell.mark}" if cell.mark else cell.text]
    return [(line, style) for line in first] + [(line, "dim") for line in below if line]


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width`, broken at spaces, hyphens and underscores; a longer piece stays whole."""
    lines = [""]
    for piece in _PIECES.split(text):
        if lines[-1] and text_width(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def text_width(text: str) -> int:
    """Columns of the text as it is, or in ASCII where that is longer (η² is eta^2)."""
    shown = clean(text)
    return max(Text(shown).cell_len, len(to_ascii(shown)))


def _column_width(table: Table, index: int, layout: Layout) -> int:
    lines = [line for row in table.rows for line, _ in cell_lines(row.cells[index], layout)]
    heading = clean(table.headings[index])
    pieces = _PIECES.split(heading) if layout.is_broken else heading.split()
    return max(map(text_width, lines + pieces), default=1)
