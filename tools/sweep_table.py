"""Write the table of the learning-rate sweep into docs/pocket.md, from its run folder.

uv run python tools/sweep_table.py runs/lr-sweep
"""

from __future__ import annotations

import argparse
from pathlib import Path

from markers import between

from statewise.report.summary_json import summary_from_json
from statewise.storage import records
from statewise.storage.records import RunSummary, StudySummary

PAGE = Path(__file__).parents[1] / "docs" / "pocket.md"
START, END = "<!-- sweep: uv run python tools/sweep_table.py runs/lr-sweep -->\n", "<!-- /sweep -->"
HEADINGS = ("greedy", "sampled", "familiar", "rare", "pocket_facts", "pocket_myths")


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    summary = summary_from_json(records.read_json(parser.parse_args().run / "summary.json"))
    PAGE.write_text(between(PAGE, START, END, table(summary))[1], encoding="utf-8")


def table(summary: StudySummary) -> str:
    """A row a run: scores, the mean that decides, forgetting with its interval."""
    titles = ["run", *(heading.removeprefix("pocket_") for heading in HEADINGS), "mean of greedy and sampled", "F"]
    rows = [titles, ["---"] * len(titles), *(_cells(summary, run) for run in summary.runs)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    size = next(iter(summary.runs[0].scores.values())).num_items
    return (
        "\n".join([*lines, "", f"(n = {size} problems, one run a cell; F with its 95 % interval over items.)"]) + "\n"
    )


def _cells(summary: StudySummary, run: RunSummary) -> list[str]:
    keys = {heading.removeprefix("pocket_math "): key for key, heading in summary.columns.items()}
    values = [run.scores[keys[heading]].value for heading in HEADINGS]
    lost = run.forgetting
    interval = f"{lost.value:.3f} [{lost.low:.3f}, {lost.high:.3f}]" if lost and lost.low is not None else "–"
    return [run.label, *(f"{value:.3f}" for value in values), f"{(values[0] + values[1]) / 2:.3f}", interval]


if __name__ == "__main__":
    main()
