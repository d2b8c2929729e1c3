"""Write the gain-against-forgetting figure of a run folder as a file of its own, for the README.

    uv run python tools/readme_figure.py runs/pocket docs/images/pocket-gain-forgetting.svg

In the report the figure takes its colours from the page; a file brings them along.
"""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path

from statewise.report.figures import gain_figure
from statewise.report.summary_json import summary_from_json
from statewise.storage import records


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    figure = gain_figure(summary_from_json(records.read_json(arguments.run / "summary.json")))
    if figure is None:
        raise SystemExit(f"{arguments.run}: no gains to draw")
    page_style = (files("statewise.report") / "templates" / "style.html.jinja").read_text(encoding="utf-8")
    colours = re.search(r":root \{.*?\}", page_style, re.DOTALL)
    assert colours is not None
    style = f"<style>{colours[0]} svg {{ background: var(--panel); font-family: sans-serif; }}</style>"
    head, _, body = figure.partition(">")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}\n'
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
