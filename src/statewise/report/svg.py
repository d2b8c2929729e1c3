"""A matplotlib figure as inline SVG: the same bytes every time, themed by the page's CSS, with text as text.

matplotlib has no notion of a CSS variable, so figures are drawn in marker colours that stand for one each and are
replaced afterwards. `Figure` objects only: nothing here touches pyplot's global state.
"""

from __future__ import annotations

import html
import io
import re
import warnings

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from statewise.report.text import clean

WIDTH = 370.0  # points, about the width of a phone: on a desk the figure grows, on a phone it does not shrink
FONT_SIZE = 11.0
SMALL_FONT_SIZE = 9.5
INK, SOFT, GRID, PANEL = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0505{index:02x}" for index in range(1, 8))
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "line", PANEL: "panel"} | {
    color: f"series-{index}" for index, color in enumerate(SERIES, start=1)
}
_SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib; the page's own font replaces it
    "font.size": FONT_SIZE,
    "path.simplify": False,
    "axes.unicode_minus": True,
}
# Keys of the metadata block; None for all of them leaves the block out, and with it the date and the version.
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def new_figure(height: float, left: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """One axes with fixed margins; all lengths in points."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
    rectangle = (left / WIDTH, bottom / height, (WIDTH - left - 16) / WIDTH, (height - top - bottom) / height)
    axes = figure.add_axes(rectangle, facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=SOFT, labelsize=SMALL_FONT_SIZE, length=0, pad=6)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element; matplotlib escapes the text it draws, so it needs no further escaping.

    Args:
        name: prefix of all ids, unique in the page.
        description: what a reader who cannot see it is told.
    """
    stream = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        # A name in a script that DejaVu lacks: only the measured width is off, the browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata=_NO_METADATA)
    body = stream.getvalue()
    body = body[body.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', body)
    assert view_box is not None
    body = body[body.index(">") + 1 :]
    body = re.sub(r'(?<=[ <])id="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", body).replace("xlink:href", "href")
    body = re.sub(r"#0[1-5]0[1-5]0[1-7]", lambda match: f"var(--{_VARIABLES[match[0]]})", body)
    return f'<svg viewBox="{view_box[1]}" role="img" aria-label="{html.escape(clean(description))}">' + body
