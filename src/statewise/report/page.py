"""The report as one HTML file that works offline: no scripts, no fonts, no requests, and a policy that forbids them.

What is printed comes from `tables`, `figures` and `sentences`; this file only hands it to the templates. Every string
is escaped by jinja2 and freed of control characters on its way in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from statewise.report import design, figures, numbers, sentences, tables
from statewise.report.text import clean, keep_together
from statewise.storage.records import HypothesisSummary, StudySummary, write_bytes

TEMPLATE = "report.html.jinja"
FILE_NAME = "report.html"
GAIN_CAPTION = (
    "Gain against forgetting. Crosses are 95 % intervals, the square is base. "
    "Hollow: gain, forgetting or both are not resolved."
)
DRIFT_CAPTION = (
    "Drift of the states. Dots are means, lines 95 % intervals over seeds; dashed: the noise floor. "
    "Hollow: not resolved, p of all seeds together is not below .05."
)
DRIFT_CAPTION_OF_ONE = (
    "Drift of the states, of one seed and so without an interval; dashed: the noise floor. "
    "Hollow: not resolved, p is not below .05."
)
FOREST_CAPTION = "Paired differences from base with 95 % intervals. Hollow: not resolved."


def render_page(summary: StudySummary) -> str:
    """The whole page; the same summary gives the same bytes.

    Returns:
        A complete HTML document that loads nothing.
    """
    template = _environment().get_template(TEMPLATE)
    return template.render(
        summary=summary,
        answer=keep_together(" ".join((sentences.scope(summary), *sentences.answer(summary)))),
        seeds_note=sentences.seeds_note(summary),
        legend=sentences.UNRESOLVED_LEGEND,
        hypotheses=[_hypothesis(hypothesis) for hypothesis in summary.hypotheses],
        cells=_cells(summary),
        effects=tables.effect_table(summary),
        missing_effects=sentences.missing_effects(summary),
        states=tables.hash_table(summary),
        identical_states=sentences.identical_states(summary),
        left_out=sentences.left_out(summary, "the figures of drift and of paired differences are left out"),
        scores=tables.score_table(summary),
        differences=[table for table in (tables.base_table(summary), tables.teacher_table(summary)) if table],
        drift=tables.drift_table(summary),
        budgets=tables.budget_table(summary),
        answers=[t for t in (tables.answer_table(summary), tables.evaluated_answer_table(summary)) if t],
        figures=_figures(summary),
        recipes=[
            (run.label, run.recipe, tables.label_of(summary, run.teacher) or numbers.NOTHING) for run in summary.runs
        ],
        methods=sentences.methods(summary),
        hypothesis_family=sentences.hypothesis_family(summary),
        run_family=sentences.run_family(summary),
    )


def write_report(summary: StudySummary, folder: Path) -> Path:
    """Write `report.html` into `folder`, whole or not at all."""
    path = folder / FILE_NAME
    write_bytes(path, render_page(summary).encode("utf-8"))
    return path


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("statewise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean_unless_markup,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _clean_unless_markup(value: Any) -> Any:
    return clean(value) if type(value) is str else value  # markup is a subclass of str


def _hypothesis(hypothesis: HypothesisSummary) -> dict[str, Any]:
    return {
        "name": hypothesis.name,
        "statement": hypothesis.statement,
        "verdict": hypothesis.verdict,
        "kind": hypothesis.verdict.replace(" ", "-") if hypothesis.verdict in sentences.VERDICTS else "other",
        "sign": sentences.verdict_mark(hypothesis),
        "test": hypothesis.test,
        "scope": sentences.scope_of_hypothesis(hypothesis),
        "p": sentences.p_adjusted(hypothesis),
        "note": hypothesis.note,
        "contrasts": [
            {
                "name": name,
                "cell": tables.delta_cell(estimate, hypothesis.margin),
                "size": sentences.size(estimate),
                "missing": sentences.missing_data(estimate, hypothesis.margin),
            }
            for name, estimate in hypothesis.contrasts.items()
        ],
    }


def _cells(summary: StudySummary) -> dict[str, Any] | None:
    """The cells of a factorial design, with title and caption: a list of panels for each response."""
    found = tables.cross_tables(summary)
    if not found:
        return None
    num_panels = len(design.panels_of(summary))
    row_axis, column_axis, *others = axes = design.axes_of(summary)
    panels = f", panels: {', '.join(others)}" if others else ""
    return {
        "title": " × ".join(axes),
        "responses": [found[start : start + num_panels] for start in range(0, len(found), num_panels)],
        "caption": f"Rows: {row_axis}, columns: {column_axis}{panels}. Gain is run minus base, forgetting base minus "
        f"run. Blue: above 0, orange: below, the stronger the farther. Hollow, {numbers.UNRESOLVED}: not resolved, "
        f"{numbers.ALONE}: not resolved once all runs are held together. {numbers.NOTHING}: not in the study.",
    }


def _figures(summary: StudySummary) -> list[tuple[str, str]]:
    """Every figure that has data, with its caption."""
    axis = next(iter(design.axes_of(summary)), "")
    is_crowded = len(tables.trained_runs(summary)) > tables.MOST_LABELS
    drawn = [
        (figures.gain_figure(summary), GAIN_CAPTION + f" Colour and shape: {axis}." * bool(is_crowded and axis)),
        (figures.drift_figure(summary), DRIFT_CAPTION if design.has_drift_intervals(summary) else DRIFT_CAPTION_OF_ONE),
        (figures.forest_figure(summary), FOREST_CAPTION),
    ]
    return [(svg, caption) for svg, caption in drawn if svg is not None]
