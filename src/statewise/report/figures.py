"""The figures of a report: gain against forgetting, drift against its noise floor, paired differences.

A legend names the colour and shape of each point of gain and forgetting; rows have their names beside them. A filled
marker is a resolved difference, a hollow one is not, so that nothing hangs on colour. Of many runs only gain and
forgetting are drawn, with a colour and shape per level of their first axis. A figure without data is None, and the page
leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from statewise.report import design, numbers, tables
from statewise.report.svg import FONT_SIZE, GRID, INK, PANEL, SERIES, SMALL_FONT_SIZE, SOFT, new_figure, to_svg
from statewise.report.text import clean
from statewise.storage.records import Estimate, RunSummary, StudySummary

ROW_HEIGHT = 25.0
MARKER_SIZE = 7.0
# A shape for each run that a legend names; the square is base's.
MARKERS = ("o", "^", "D", "v", "<", "P", "X", "*", "d", "p", "h", ">")
OTHER_RUNS = "other runs"
LEGEND_LINE = 15.0
LONGEST_LABEL, LONGEST_NAME = 26, 56  # characters of a row's label, of a legend's line; two lines of labels fit abreast
# Mean width of a character of a sans-serif font, as a share of its size; the left margin of rows depends on it.
CHARACTER_WIDTH = 0.57


def gain_figure(summary: StudySummary) -> str | None:
    """Gain on the target (x) against mean forgetting F (y), one cross of 95 % intervals a run."""
    target = summary.target
    points = [
        (run, run.against_base[target], run.forgetting)
        for run in tables.trained_runs(summary)
        if target in run.against_base and run.forgetting is not None
    ]
    if not points:
        return None
    is_crowded = len(points) > tables.MOST_LABELS
    styles = _styles(summary, [run for run, _, _ in points], is_crowded=is_crowded)
    legend = [*dict.fromkeys(styles.values()), (INK, "s", tables.BASE)]
    num_columns = 2 if max(len(name) for *_, name in legend) <= LONGEST_LABEL else 1
    below = LEGEND_LINE * math.ceil(len(legend) / num_columns) + 6
    figure, axes = new_figure(height=320 + below, left=44, top=30, bottom=46 + below)
    axes.set_xlim(*_limits([gain for _, gain, _ in points], share=0.12))
    axes.set_ylim(*_limits([loss for _, _, loss in points], share=0.12))
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.grid(color=GRID, linewidth=0.6)
    for run, gain, loss in points:
        color, shape, _ = styles[run.arm]
        faint = 0.25 if is_crowded else 0.75
        axes.plot(_bounds(gain), [loss.value] * 2, color=color, linewidth=1.4, alpha=faint)
        axes.plot([gain.value] * 2, _bounds(loss), color=color, linewidth=1.4, alpha=faint)
        is_resolved = not numbers.mark(gain) and not numbers.mark(loss)
        _mark(axes, gain.value, loss.value, color, is_resolved=is_resolved, shape=shape)
    axes.plot([0], [0], marker="s", markersize=MARKER_SIZE - 1, color=INK, zorder=5)
    _add_legend(figure, legend, num_columns)
    _style_ticks(axes)
    axes.text(0, 1.04, "Mean forgetting F (up: forgot more)", transform=axes.transAxes, color=INK, parse_math=False)
    heading = clean(summary.columns[target])
    _name_axis(axes, f"Gain on {heading}")
    told = "; ".join(f"{run.label}: gain {_told(gain)}, forgetting {_told(loss)}" for run, gain, loss in points)
    return to_svg(figure, "gain", f"Gain on {heading} against mean forgetting. {told}.")


def _styles(summary: StudySummary, runs: list[RunSummary], *, is_crowded: bool) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and name of every run's point, by arm: a run's own, or where they are many, of its first level."""
    if not is_crowded:
        return {run.arm: (*_style(tables.trained_runs(summary).index(run)), run.label) for run in runs}
    axis, levels = next(iter(design.axes_of(summary).items()), ("", ()))
    style = {level: (*_style(index), f"{axis} {level}") for index, level in enumerate(levels)}
    return {run.arm: style.get(run.levels.get(axis, ""), (SOFT, MARKERS[-1], OTHER_RUNS)) for run in runs}


def _style(index: int) -> tuple[str, str]:
    """Colour and marker; they repeat after different counts, so that their pairs do not."""
    return SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]


def _add_legend(figure: Figure, styles: list[tuple[str, str, str]], num_columns: int) -> None:
    """Name colours and shapes below the axes."""
    handles = [
        Line2D([], [], color=color, marker=shape, markersize=MARKER_SIZE - 1, linestyle="none", label=name)
        for color, shape, name in styles
    ]
    legend = figure.legend(
        handles=handles, loc="lower center", ncols=num_columns, frameon=False, fontsize=SMALL_FONT_SIZE, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_text(_short(text.get_text(), LONGEST_NAME))
        text.set_parse_math(False)


def drift_figure(summary: StudySummary) -> str | None:
    """MMD², or else the first distance, of every run from base: mean and interval over seeds, with the noise floor."""
    distances = tables.drift_distances(summary)
    if not distances or len(tables.trained_runs(summary)) > tables.MOST_ROWS:
        return None
    distance = "mmd" if "mmd" in distances else distances[0]
    rows = [(run, run.drift[distance]) for run in tables.trained_runs(summary) if distance in run.drift]
    figure, axes = _row_axes([run.label for run, _ in rows])
    floors, ends = {drift.floor for _, drift in rows}, [0.0]
    for y, (run, drift) in enumerate(rows):
        color = _color(summary, run)
        ends += [drift.value, drift.floor]
        if drift.low is not None and drift.high is not None:
            ends += [drift.low, drift.high]
            axes.plot([drift.low, drift.high], [y, y], color=color, linewidth=2.2, alpha=0.75, solid_capstyle="round")
        _mark(axes, drift.value, y, color, is_resolved=tables.is_drift_resolved(drift))
        axes.plot([drift.floor] * 2, [y - 0.5, y + 0.5], color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
    left, right = _padded(min(ends), max(ends), 0.06)
    axes.set_xlim(left, right)
    # On the side of the floor where there is room for it.
    is_right = max(floors) > (left + right) / 2
    axes.annotate(
        "noise floor" if len(floors) == 1 else "noise floors",
        (min(floors) if is_right else max(floors), -0.5), (-4 if is_right else 4, 4), textcoords="offset points",
        ha="right" if is_right else "left", color=INK, fontsize=SMALL_FONT_SIZE,
    )  # fmt: skip
    _style_ticks(axes)
    heading = tables.distance_heading(distance)
    _name_axis(axes, f"{heading} to base")
    told = "; ".join(f"{run.label}: {numbers.quantity(drift.value)}" for run, drift in rows)
    floor = numbers.quantity(max(floors))
    return to_svg(figure, "drift", f"{heading} of each run's states from base. {told}. Noise floor {floor}.")


def forest_figure(summary: StudySummary) -> str | None:
    """Paired differences from base with 95 % intervals, the runs of one column under its heading."""
    rows: list[tuple[str, RunSummary | None, Estimate | None]] = []
    for column, heading in summary.columns.items():
        members = [run for run in tables.trained_runs(summary) if column in run.against_base]
        if members:
            rows.append((heading, None, None))
            rows += [(run.label, run, run.against_base[column]) for run in members]
    estimates = [estimate for _, _, estimate in rows if estimate is not None]
    if not estimates or len(tables.trained_runs(summary)) > tables.MOST_ROWS:
        return None
    figure, axes = _row_axes([label if run else "" for label, run, _ in rows])
    axes.axvline(0, color=SOFT, linewidth=0.8)
    for y, (label, run, estimate) in enumerate(rows):
        if run is None or estimate is None:
            _row_text(axes, y, clean(label), is_heading=True)
            continue
        color = _color(summary, run)
        axes.plot(_bounds(estimate), [y, y], color=color, linewidth=2.2, alpha=0.75, solid_capstyle="round")
        _mark(axes, estimate.value, y, color, is_resolved=not numbers.mark(estimate))
    axes.set_xlim(*_limits(estimates, share=0.05))
    _style_ticks(axes)
    _name_axis(axes, "difference from base")
    told = "; ".join(f"{label}: {_told(estimate)}" if estimate else f"On {label}" for label, _, estimate in rows)
    return to_svg(figure, "forest", f"Paired differences from base. {told}.")


def _row_axes(labels: list[str]) -> tuple[Figure, Axes]:
    """Axes with one row a label, the first on top, labels to the left."""
    shown = [_short(label) for label in labels]
    left = min(170.0, 14 + FONT_SIZE * CHARACTER_WIDTH * max(map(len, shown)))
    figure, axes = new_figure(height=ROW_HEIGHT * len(labels) + 66, left=left, top=20, bottom=46)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    for y, label in enumerate(shown):
        _row_text(axes, y, label)
    return figure, axes


def _row_text(axes: Axes, y: float, label: str, *, is_heading: bool = False) -> None:
    # A heading stands in its own, otherwise empty row, and so may be longer than the margin is wide.
    offset, alignment = ((4, 0), "left") if is_heading else ((-10, 0), "right")
    axes.annotate(
        label, (0, y), offset, xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha=alignment,
        va="center", color=INK, fontweight="bold" if is_heading else "normal", parse_math=False, annotation_clip=False,
    )  # fmt: skip


def _mark(axes: Axes, x: float, y: float, color: str, *, is_resolved: bool, shape: str = "o") -> None:
    axes.plot(
        [x], [y], marker=shape, markersize=MARKER_SIZE, color=color, markerfacecolor=color if is_resolved else PANEL,
        markeredgewidth=1.8, zorder=4,
    )  # fmt: skip


def _style_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if axes.yaxis.get_ticklocs().size:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _tick(value: float) -> str:
    """Without the zeros that three fixed digits would leave: .05, −.1, 0."""
    digits = f"{value:.4f}".rstrip("0").rstrip(".")
    return digits.replace("-", numbers.MINUS).replace("0.", ".", 1) if digits not in ("0", "-0") else "0"


def _bounds(estimate: Estimate) -> tuple[float, float]:
    """The interval's ends, or the value twice where there is none."""
    if estimate.low is None or estimate.high is None:
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def _limits(estimates: Iterable[Estimate], share: float) -> tuple[float, float]:
    """Limits that hold all intervals and zero, with a margin that is a share of the span."""
    ends = [end for estimate in estimates for end in _bounds(estimate)]
    return _padded(min(*ends, 0.0), max(*ends, 0.0), share)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    margin = (high - low) * share or 0.01
    return low - margin, high + margin


def _name_axis(axes: Axes, name: str) -> None:
    """The name of the x axis at its right end, below the ticks."""
    axes.annotate(
        name, (1, -36), xycoords=("axes fraction", "axes points"), ha="right", color=INK, parse_math=False,
        annotation_clip=False,
    )  # fmt: skip


def _color(summary: StudySummary, run: RunSummary) -> str:
    """The run's colour in all figures; colours repeat after seven, labels do not."""
    return SERIES[tables.trained_runs(summary).index(run) % len(SERIES)]


def _short(label: str, longest: int = LONGEST_LABEL) -> str:
    label = clean(label)
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _told(estimate: Estimate) -> str:
    cell = tables.delta_cell(estimate)
    return f"{cell.text} {cell.interval}{', not resolved' * bool(cell.mark)}"
