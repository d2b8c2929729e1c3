"""A factorial design cell by cell: gain and forgetting over its first two axes, one panel per level of the others.

Every cell carries its number; the colour, blue above 0 and orange below, only repeats it, so that the figure reads the
same in grey. A cell that is not resolved is hollow and says "n.r."; one without a number says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from statewise.records import RunSummary, StudySummary
from statewise.report import design, numbers, tables
from statewise.report.design import Panel
from statewise.report.svg import FONT_SIZE, GRID, INK, PANEL, SERIES, SMALL_FONT_SIZE, SOFT, to_svg
from statewise.report.text import clean

# All lengths in points.
CELL_WIDTH, CELL_HEIGHT = 48.0, 32.0
INSET = 1.5  # from the edge of a cell to its square
PANEL_GAP, BLOCK_GAP = 18.0, 20.0
HEADING_HEIGHT, TITLE_HEIGHT = 20.0, 17.0
EDGE = 6.0
WIDEST = 720.0  # panels beyond it go into a further line
LONGEST_LABEL = 20
# Mean width of a character of a sans-serif font, as a share of its size.
CHARACTER_WIDTH = 0.57
MARK_SIZE = 7.5
# Of the lines of a cell from its middle, by how many there are.
LINE_OFFSETS = {1: (0.0,), 2: (-4.5, 7.0), 3: (-8.0, 1.5, 9.5)}
SLANT = 35.0  # degrees, of column labels that do not fit
# Ink on the strongest colour keeps a contrast above 4.5 : 1, in the light and in the dark theme.
FAINTEST, STRONGEST = 0.06, 0.5
ABOVE, BELOW = SERIES[0], SERIES[1]


@dataclass(frozen=True)
class _Layout:
    """Where things are: `left` of the first cell, `top` from a block's heading to its first row, panels a line."""

    left: float
    labels: float
    top: float
    panel_width: float
    panel_height: float
    per_line: int
    is_slanted: bool


def design_figure(summary: StudySummary) -> str | None:
    """The heat map as SVG; None where the study is no design of two axes, or has no numbers yet."""
    panels, responses = design.panels_of(summary), design.responses_of(summary)
    if not panels or not responses:
        return None
    layout = _lay_out(panels)
    lines = [panels[start : start + layout.per_line] for start in range(0, len(panels), layout.per_line)]
    block = layout.top + layout.panel_height + BLOCK_GAP
    width = layout.left + min(len(panels), layout.per_line) * (layout.panel_width + PANEL_GAP) + EDGE
    height = block * len(lines) * len(responses)
    axes = _page(width, height)
    y = 0.0
    for line in lines:
        for response in responses:
            largest = _largest(summary, panels, response)
            axes.text(EDGE, y + 12, clean(response), color=INK, fontweight="bold", va="center", parse_math=False)
            for index, panel in enumerate(line):
                x = layout.left + index * (layout.panel_width + PANEL_GAP)
                _draw_names(axes, panel, layout, (x, y), is_first=index == 0)
                _draw_cells(axes, summary, panel, response, (x, y + layout.top, largest))
            y += block
    assert isinstance(axes.figure, Figure)
    return to_svg(axes.figure, "cells", _describe(summary, panels, responses), is_wide=True)


def caption(summary: StudySummary) -> str:
    """What rows, columns, panels and colours are."""
    row_axis, column_axis, *others = design.axes_of(summary)
    panels = f", panels: {', '.join(others)}" if others else ""
    return (
        f"Rows: {row_axis}, columns: {column_axis}{panels}. Gain is run minus base, forgetting base minus run. Blue: "
        f"above 0, orange: below, the darker the farther. Hollow, {numbers.UNRESOLVED}: not resolved, "
        f"{numbers.ALONE}: not resolved once all runs are held together. "
        f"{numbers.NOTHING}: not in the study."
    )


def _lay_out(panels: list[Panel]) -> _Layout:
    first = panels[0]
    rows, columns = [_short(level) for level in first.rows], [_short(level) for level in first.columns]
    longest = SMALL_FONT_SIZE * CHARACTER_WIDTH * max(map(len, columns))
    is_slanted = longest > CELL_WIDTH - 2
    labels = longest * math.sin(math.radians(SLANT)) + SMALL_FONT_SIZE + 4 if is_slanted else SMALL_FONT_SIZE + 6
    left = EDGE + FONT_SIZE * CHARACTER_WIDTH * max(map(len, rows)) + 8
    panel_width = CELL_WIDTH * len(columns) + (longest * 0.5 if is_slanted else 0)
    return _Layout(
        left=left,
        labels=labels,
        top=HEADING_HEIGHT + (TITLE_HEIGHT if first.title else 0) + labels,
        panel_width=panel_width,
        panel_height=CELL_HEIGHT * len(rows),
        per_line=max(1, int((WIDEST - left) // (panel_width + PANEL_GAP))),
        is_slanted=is_slanted,
    )


def _page(width: float, height: float) -> Axes:
    """Axes over the whole figure whose coordinates are points from the top left."""
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), facecolor="none")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return axes


def _draw_names(axes: Axes, panel: Panel, layout: _Layout, corner: tuple[float, float], *, is_first: bool) -> None:
    x, y = corner
    if panel.title:
        axes.text(x, y + HEADING_HEIGHT + 6, clean(panel.title), color=SOFT, va="center", parse_math=False)
    for index, level in enumerate(panel.columns):
        middle = x + (index + 0.5) * CELL_WIDTH
        axes.text(
            middle - (6 if layout.is_slanted else 0), y + layout.top - 5, _short(level), color=INK,
            fontsize=SMALL_FONT_SIZE, ha="left" if layout.is_slanted else "center", va="baseline",
            rotation=SLANT if layout.is_slanted else 0, rotation_mode="anchor", parse_math=False,
        )  # fmt: skip
    for index, level in enumerate(panel.rows if is_first else ()):
        middle = y + layout.top + (index + 0.5) * CELL_HEIGHT
        axes.text(x - 8, middle, _short(level), color=INK, ha="right", va="center", parse_math=False)


def _draw_cells(
    axes: Axes, summary: StudySummary, panel: Panel, response: str, place: tuple[float, float, float]
) -> None:
    """`place`: left and top of the panel, and the value of the strongest colour."""
    left, top, largest = place
    for row, level in enumerate(panel.rows):
        for column, other in enumerate(panel.columns):
            run = panel.runs.get((level, other))
            estimate = design.response_of(summary, run, response) if run else None
            x, y = left + column * CELL_WIDTH, top + row * CELL_HEIGHT
            cell = tables.cross_cell(summary, run, response)
            _draw_square(axes, (x, y), estimate.value if estimate else None, largest, is_hollow=bool(cell.mark))
            _draw_text(axes, (x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2), cell, has_number=estimate is not None)


def _draw_square(
    axes: Axes, corner: tuple[float, float], value: float | None, largest: float, *, is_hollow: bool
) -> None:
    color = GRID if not value else ABOVE if value > 0 else BELOW
    strength = 0.0 if value is None else FAINTEST + (STRONGEST - FAINTEST) * abs(value) / largest
    square = (corner[0] + INSET, corner[1] + INSET), CELL_WIDTH - 2 * INSET, CELL_HEIGHT - 2 * INSET
    if is_hollow or value is None:
        style = (0, (2, 2)) if value is None else "solid"
        axes.add_patch(Rectangle(*square, facecolor=PANEL, edgecolor=color, linewidth=1.2, linestyle=style))
        return
    axes.add_patch(Rectangle(*square, facecolor=color, alpha=strength, edgecolor="none"))


def _draw_text(axes: Axes, center: tuple[float, float], cell: tables.Cell, *, has_number: bool) -> None:
    x, y = center
    lines = [(cell.text, SMALL_FONT_SIZE if has_number else MARK_SIZE)]
    lines += [(part, MARK_SIZE) for part in (cell.mark, cell.detail) if part]
    for offset, (text, size) in zip(LINE_OFFSETS[len(lines)], lines, strict=True):
        is_value = has_number and offset == LINE_OFFSETS[len(lines)][0]
        axes.text(
            x, y + offset, text, color=INK if is_value else SOFT, fontsize=size, ha="center", va="center",
            parse_math=False,
        )  # fmt: skip


def _largest(summary: StudySummary, panels: list[Panel], response: str) -> float:
    """The largest value of any cell, for one scale in all panels of a response."""
    runs: list[RunSummary] = [run for panel in panels for run in panel.runs.values()]
    found = [design.response_of(summary, run, response) for run in runs]
    return max((abs(estimate.value) for estimate in found if estimate), default=0.0) or 1.0


def _describe(summary: StudySummary, panels: list[Panel], responses: list[str]) -> str:
    parts = []
    for response in responses:
        told = [
            f"{run.label} {cell.text}{', not resolved' * bool(cell.mark)}"
            for panel in panels
            for run in panel.runs.values()
            for cell in [tables.cross_cell(summary, run, response)]
        ]
        parts.append(f"{response}: {'; '.join(told)}.")
    return " ".join(parts)


def _short(level: str) -> str:
    level = clean(level)
    return level if len(level) <= LONGEST_LABEL else level[: LONGEST_LABEL - 1] + "…"
