"""Write the results of a built-in study into docs/studies.md, from its run folder.

uv run python tools/study_tables.py runs/grid --commit 1a2b3c4

Everything between the study's two marks is made of `summary.json` and of the results of the run's jobs. `--commit` is
the commit that the run was made with, which a run folder does not record.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from markers import between

from statewise.report import numbers, sentences, tables
from statewise.report.summary_json import summary_from_json
from statewise.storage import records
from statewise.storage.records import HypothesisSummary, StudySummary

PAGE = Path(__file__).parents[1] / "docs" / "studies.md"


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--commit", required=True)
    arguments = parser.parse_args()
    summary = summary_from_json(records.read_json(arguments.run / "summary.json"))
    start, end = (f"<!-- {which} of {summary.name}: tools/study_tables.py -->\n" for which in ("results", "end"))
    text = results(summary, job_seconds(arguments.run), arguments.commit)
    PAGE.write_text(between(PAGE, start, end, text)[1], encoding="utf-8")


def job_seconds(run: Path) -> float:
    """Seconds of all trainings and evaluations of a run, each in a process of its own."""
    ends = [path for name in ("train.json", "done.json") for path in run.glob(f"arms/*/*/{name}")]
    return sum(float(records.read_json(path)["node_s"]) for path in ends)


def results(summary: StudySummary, seconds: float, commit: str) -> str:
    """How it was run, base's scores, gain and forgetting cell by cell, effects, hypotheses."""
    where = (summary.environment.get(key, "") for key in ("machine", "device", "processes"))
    machine = ", ".join(filter(None, where))
    made = f"`statewise run {summary.name}` at commit {commit}; {machine}; {numbers.duration(seconds)} of one process."
    parts = [" ".join((made, sentences.scope(summary), *sentences.answer(summary))), base_scores(summary)]
    shown = [*tables.cross_tables(summary), tables.effect_table(summary)]
    if not summary.effects:
        shown += [tables.score_table(summary), tables.base_table(summary)]
    parts += [markdown(table) for table in shown if table is not None]
    parts += [sentences.missing_effects(summary), sentences.identical_states(summary), answers(summary)]
    parts += [hypothesis(one) for one in summary.hypotheses]
    parts += [sentences.UNRESOLVED_LEGEND, sentences.run_family(summary), sentences.hypothesis_family(summary)]
    parts += [f"Problem: {problem}" for problem in summary.problems]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n\n"


def base_scores(summary: StudySummary) -> str:
    """The base model's scores with their intervals."""
    (base,) = (run for run in summary.runs if run.arm == tables.BASE)
    told = [
        f"{heading} {numbers.score(score.value)} {numbers.interval(score.low, score.high)}"
        for key, heading in summary.columns.items()
        if (score := base.scores.get(key))
    ]
    return f"Base: {'; '.join(told)}."


def answers(summary: StudySummary) -> str:
    """The largest share of rewarded answers that had not ended, in training and in evaluation."""
    told = []
    for where, kind in (("training", "answers"), ("evaluation", "evaluated_answers")):
        counts = [(getattr(run, kind), run.label) for run in summary.runs]
        shares = [
            (c["num_rewarded_unfinished"] / c["num_rewarded"], label) for c, label in counts if c.get("num_rewarded")
        ]
        if shares:
            share, label = max(shares)
            told.append(f"in {where} {numbers.score(share)} ({label})")
    return f"Largest share of rewarded answers that had not ended: {'; '.join(told)}." if told else ""


def markdown(table: tables.Table) -> str:
    """A table of the report, its caption below."""
    lines = [[table.heading, *table.headings], ["---"] * (1 + len(table.headings))]
    lines += [[" ".join(filter(None, (row.label, row.note))), *map(cell, row.cells)] for row in table.rows]
    return f"**{table.title}**\n\n" + "\n".join(_row(line) for line in lines) + f"\n\n{table.caption}"


def cell(one: tables.Cell) -> str:
    """A cell on one line."""
    return " ".join(filter(None, (one.text, one.interval, one.mark, one.detail)))


def hypothesis(one: HypothesisSummary) -> str:
    """A hypothesis, its verdict, and the contrasts that decided."""
    lines = [
        f"* “{one.statement}” **{one.verdict}** ({', '.join(filter(None, (sentences.p_adjusted(one), one.note)))})"
    ]
    for name, estimate in one.contrasts.items():
        found = tables.delta_cell(estimate, one.margin)
        lines.append(f"  * {name}: {cell(found)}, {sentences.size(estimate)}")
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
