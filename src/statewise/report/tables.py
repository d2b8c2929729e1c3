"""The tables of a report as rows of cells: the terminal and the page print the same ones.

The first column of `StudySummary.columns` is the target, the others are retention tasks; the arm "base" is the model
before post-training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from statewise.console.printing import plural
from statewise.report import design, numbers
from statewise.storage.records import DriftEstimate, Effect, Estimate, RunSummary, StudySummary

BASE = "base"
SIGNIFICANCE = 0.05
# More runs than this are not named in a scatter plot; with more than that, one line a run is too many for a figure.
MOST_LABELS, MOST_ROWS = 12, 20
BUDGETS = (
    "num_updates", "num_trajectories", "num_states", "num_loss_tokens", "num_tokens", "num_generated_learner",
    "num_generated_teacher", "num_generated_base", "flops", "flops_forward", "flops_backward", "train_s",
)  # fmt: skip
WITHIN_PROMPTS = "within_prompt_mmd"
DISTANCE_HEADINGS = {
    "mmd": "MMD²",
    WITHIN_PROMPTS: "MMD² within prompts",
    "centroid": "centroid distance",
    "sliced_wasserstein": "sliced Wasserstein",
    "jaccard": "Jaccard distance",
}


@dataclass(frozen=True)
class Cell:
    """One value with its interval or range below it; `mark` is `numbers.UNRESOLVED` or "", `detail` a third line.

    `shade` is the value as a share of the largest of its kind, -1..1: the page's colour, which only repeats the number.
    """

    text: str
    interval: str = ""
    mark: str = ""
    detail: str = ""
    shade: float = 0.0

    @property
    def line(self) -> str:
        """Text, interval and mark on one line."""
        return " ".join(part for part in (self.text, self.interval, self.mark) if part)


@dataclass(frozen=True)
class Row:
    """`note` stands under the label: the teacher, or how many seeds diverged."""

    label: str
    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """`headings` are those of the cells; `heading` is that of the labels.

    `num_needed`: so many of the first columns are enough where there is no room for all; 0: all are wanted.
    """

    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    heading: str = "run"
    num_needed: int = 0


EMPTY = Cell(numbers.NOTHING)


def score_table(summary: StudySummary) -> Table:
    """Scores, mean forgetting F and retention ratio of every run."""
    rows = []
    for run in summary.runs:
        scores = [score_cell(run.scores.get(column)) for column in summary.columns]
        kept = delta_cell(run.forgetting), score_cell(run.retention_ratio, null=1.0)
        rows.append(Row(run.label, (*scores, *kept), divergence(run)))
    return Table(
        title="Scores and forgetting",
        caption="Score with its 95 % interval. F: mean of base minus run over the retention tasks, above 0 where the "
        "run forgot. Retention: mean of run over base.",
        headings=(*summary.columns.values(), "F", "retention"),
        rows=tuple(rows),
    )


def base_table(summary: StudySummary) -> Table | None:
    """Paired differences from the base model; None if no run has any."""
    rows = tuple(
        Row(run.label, _delta_cells(summary, run.against_base), divergence(run)) for run in trained_runs(summary)
    )
    caption = "Run minus base on the same items, with the 95 % interval of the difference."
    return _table_unless_empty("Paired differences from base", caption, summary, rows)


def teacher_table(summary: StudySummary) -> Table | None:
    """Paired differences of students from their teachers; None if no run has any."""
    rows = tuple(
        Row(run.label, _delta_cells(summary, run.against_teacher), f"teacher: {label_of(summary, run.teacher)}")
        for run in summary.runs
        if run.teacher is not None
    )
    caption = "Student minus its teacher on the same items, with the 95 % interval of the difference."
    return _table_unless_empty("Paired differences from the teacher", caption, summary, rows)


def drift_table(summary: StudySummary) -> Table | None:
    """Distances of every run's states from base, under a row with the noise floor; None if nothing was measured."""
    distances = drift_distances(summary)
    if not distances:
        return None
    rows = [Row("noise floor", tuple(_floor_cell(summary, distance) for distance in distances), "base against base")]
    rows += [
        Row(run.label, tuple(_drift_cell(run.drift.get(distance)) for distance in distances), divergence(run))
        for run in trained_runs(summary)
    ]
    tested = [drift for run in trained_runs(summary) for drift in run.drift.values() if drift.p_value is not None]
    level = numbers.score(SIGNIFICANCE)
    caption = (
        f"{design.drift_basis(summary)} differ from base's. {numbers.UNRESOLVED} here: p is not below {level}. "
        f"Tests: {len(tested)}, each at {level} and not adjusted for their number."
    )
    if WITHIN_PROMPTS not in distances:
        caption += f" {distance_heading(WITHIN_PROMPTS)}: not measured, there was one rollout a prompt."
    return Table(
        title="Drift of the states from base",
        caption=caption,
        headings=tuple(distance_heading(distance) for distance in distances),
        rows=tuple(rows),
    )


def cross_tables(summary: StudySummary) -> list[Table]:
    """Gain and forgetting of a factorial design: rows and columns are its first two axes, a table a panel."""
    row_axis, column_axis = [*design.axes_of(summary), "", ""][:2]
    panels = design.panels_of(summary)
    tables = []
    for response in design.responses_of(summary):
        found = [design.response_of(summary, run, response) for panel in panels for run in panel.runs.values()]
        largest = max((abs(estimate.value) for estimate in found if estimate), default=0.0) or 1.0
        for panel in panels:
            runs = [[panel.runs.get((level, other)) for other in panel.columns] for level in panel.rows]
            rows = tuple(
                Row(level, tuple(_cross_cell(summary, run, response, largest) for run in row))
                for level, row in zip(panel.rows, runs, strict=True)
            )
            title = f"{response}, {panel.title}" if panel.title else response
            caption = f"Rows: {row_axis}; columns: {column_axis}. {numbers.NOTHING}: not in the study."
            tables.append(Table(title, caption, panel.columns, rows, row_axis))
    return tables


def _cross_cell(summary: StudySummary, run: RunSummary | None, response: str, largest: float) -> Cell:
    """A cell of the design without its interval; it says so where the run has no number."""
    if run is None:
        return EMPTY
    estimate = design.response_of(summary, run, response)
    if estimate is None:
        return Cell(divergence(run) or "no score")
    cell = delta_cell(estimate)
    detail = f"{run.num_diverged} diverged" if run.num_diverged else ""
    return Cell(cell.text, mark=cell.mark, detail=detail, shade=estimate.value / largest)


def effect_table(summary: StudySummary) -> Table | None:
    """η² and partial ω² per effect, two columns a response; None where no design could be decomposed."""
    shown = [table for table in summary.effects if table.effects]
    names = dict.fromkeys(effect.name for table in shown for effect in table.effects)
    if not names:
        return None
    by_name = [{effect.name: effect for effect in table.effects} for table in shown]
    rows = tuple(Row(name, tuple(cell for one in by_name for cell in _effect_cells(one.get(name)))) for name in names)
    used = [f"{table.response}: {table.num_cells} cells × {plural(table.num_seeds, 'seed')}" for table in shown]
    notes = [f"{table.response}: {table.note}" for table in shown if table.note]
    caption = (
        f"η²: share of the variance over cells and seeds that an effect explains; ω²: partial ω², without what the "
        f"spread between seeds alone would give. {'; '.join(used)}. "
        f"{'. '.join(dict.fromkeys([*(table.method for table in shown), *notes]))}."
    )
    headings = tuple(f"{table.response} {sign}" for table in shown for sign in ("η²", "ω²"))
    return Table("Effect sizes", caption, headings, rows, "effect")


def hash_table(summary: StudySummary) -> Table | None:
    """The hash over all training states of every run and seed; None where it says nothing."""
    if not design.shows_states(summary):
        return None
    letters = design.letters_of(summary)
    seeds = sorted({seed for run in summary.runs for seed in run.state_hashes}, key=lambda seed: (len(seed), seed))
    rows = tuple(
        Row(run.label, tuple(_hash_cell(seed, run.state_hashes.get(seed), letters) for seed in seeds))
        for run in trained_runs(summary)
        if run.state_hashes
    )
    caption = (
        f"First {design.SHOWN_DIGITS} digits of the hash over all states that a run trained on, in order. Runs with "
        "the same letter in a column trained on identical states."
    )
    return Table("Training states", caption, tuple(f"seed {seed}" for seed in seeds), rows)


def budget_table(summary: StudySummary) -> Table | None:
    """What every run was planned to use and used, one column a budget; None if none was recorded.

    With many runs, budgets that are the same for all of them are told in the caption.
    """
    runs = [run for run in summary.runs if run.budget]
    found = dict.fromkeys(key for run in runs for key in run.budget)
    keys = sorted(found, key=lambda key: BUDGETS.index(key) if key in BUDGETS else len(BUDGETS))
    if not keys:
        return None
    cells = {key: [_budget_cell(key, run.budget.get(key), run.planned.get(key)) for run in runs] for key in keys}
    same = [key for key in keys if len(runs) > MOST_LABELS and len(set(cells[key])) == 1]
    caption = "Mean over seeds."
    if any(run.planned for run in runs):
        caption = (
            "Planned / realised, mean over seeds; realised alone where nothing was planned. Updates and trajectories "
            "are planned exactly, states and tokens are estimates made before the run."
        )
    if same:
        told = ", ".join(f"{_budget_heading(key)} {cells[key][0].text}" for key in same)
        caption += f" The same for every run: {told}."
    shown = [key for key in keys if key not in same]
    rows = tuple(Row(run.label, tuple(cells[key][index] for key in shown)) for index, run in enumerate(runs))
    title = "Budgets, planned and realised" if any(run.planned for run in runs) else "Realised budgets"
    return Table(title, caption, tuple(_budget_heading(key) for key in shown), rows)


ENDS = ("unfinished", "rewarded", "rewarded though unfinished")
UNFINISHED = (
    "{what}, over all seeds. Unfinished: cut at the limit of tokens before they ended. A filter that takes the last "
    "number of a text may reward such an answer, and refuse a right one that goes on."
)


def answer_table(summary: StudySummary) -> Table | None:
    """Training answers that were cut at a limit, and those of them that were rewarded; None where all of them ended."""
    rows = tuple(Row(run.label, _answer_cells(run.answers, "num_trajectories")) for run in summary.runs if run.answers)
    caption = UNFINISHED.format(what="Trajectories that a run trained on")
    return Table("Unfinished answers in training", caption, ("trajectories", *ENDS), rows) if rows else None


def evaluated_answer_table(summary: StudySummary) -> Table | None:
    """The same of the answers that the target's scores are of, greedy and sampled; None where all of them ended."""
    rows = tuple(
        Row(run.label, _answer_cells(run.evaluated_answers, "num_answers"))
        for run in summary.runs
        if run.evaluated_answers
    )
    caption = UNFINISHED.format(what="Answers to the target's items, greedy and sampled; rewarded: a score above 0")
    return Table("Unfinished answers in evaluation", caption, ("answers", *ENDS), rows) if rows else None


def _answer_cells(answers: Mapping[str, int], whole: str) -> tuple[Cell, ...]:
    def cell(key: str, among: str = "", name: str = "") -> Cell:
        if key not in answers:
            return EMPTY
        total = answers.get(among, 0)
        return Cell(f"{answers[key]:,}", detail=f"{numbers.score(answers[key] / total)} of {name}" if total else "")

    return (
        cell(whole), cell("num_unfinished", whole, "all"), cell("num_rewarded"),
        cell("num_rewarded_unfinished", "num_rewarded", "rewarded"),
    )  # fmt: skip


def delta_cell(estimate: Estimate | None, null: float = 0.0) -> Cell:
    """A signed difference, marked where its interval does not leave out `null`."""
    if estimate is None:
        return EMPTY
    bounds = numbers.interval(estimate.low, estimate.high, is_delta=True)
    return Cell(numbers.delta(estimate.value), bounds, numbers.mark(estimate, null))


def score_cell(estimate: Estimate | None, null: float | None = None) -> Cell:
    """A score or ratio, marked where its interval does not leave out `null`."""
    if estimate is None:
        return EMPTY
    mark = "" if null is None else numbers.mark(estimate, null)
    return Cell(numbers.score(estimate.value), numbers.interval(estimate.low, estimate.high), mark)


def divergence(run: RunSummary) -> str:
    """How many seeds of the run ended without a model, beside those that were evaluated; empty if none did."""
    if run.num_diverged == 0:
        return ""
    return f"{run.num_diverged} of {run.num_diverged + run.num_seeds} seeds diverged" if run.num_seeds else "diverged"


def trained_runs(summary: StudySummary) -> tuple[RunSummary, ...]:
    """Every run but the base model, in order."""
    return tuple(run for run in summary.runs if run.arm != BASE)


def label_of(summary: StudySummary, arm: str | None) -> str:
    """The label of `arm`, or its bare name where the summary has no such run."""
    return next((run.label for run in summary.runs if run.arm == arm), arm or "")


def drift_distances(summary: StudySummary) -> tuple[str, ...]:
    """Names of the distances that any run has, in order of appearance."""
    return tuple(dict.fromkeys(distance for run in trained_runs(summary) for distance in run.drift))


def is_drift_resolved(drift: DriftEstimate) -> bool:
    """Whether the seeds together tell the states from base's. The test decides; the floor is a scale to read by."""
    return drift.p_value is not None and drift.p_value < SIGNIFICANCE


def distance_heading(distance: str) -> str:
    """The distance as a reader knows it; an unknown one by its own name."""
    return DISTANCE_HEADINGS.get(distance, distance.replace("_", " "))


def all_estimates(summary: StudySummary) -> dict[str, list[Estimate | DriftEstimate]]:
    """Every estimate of the summary under the name of what it estimates."""
    runs = summary.runs
    groups: dict[str, Iterable[Estimate | DriftEstimate | None]] = {
        "scores": [estimate for run in runs for estimate in run.scores.values()],
        "differences from base": [estimate for run in runs for estimate in run.against_base.values()],
        "differences from the teacher": [estimate for run in runs for estimate in run.against_teacher.values()],
        "forgetting F": [run.forgetting for run in runs],
        "retention ratio": [run.retention_ratio for run in runs],
        "drift": [drift for run in runs for drift in run.drift.values()],
        "contrasts of the hypotheses": [e for hypothesis in summary.hypotheses for e in hypothesis.contrasts.values()],
    }
    present = {name: [estimate for estimate in group if estimate is not None] for name, group in groups.items()}
    return {name: group for name, group in present.items() if group}


def _delta_cells(summary: StudySummary, deltas: Mapping[str, Estimate]) -> tuple[Cell, ...]:
    return tuple(delta_cell(deltas.get(column)) for column in summary.columns)


def _drift_cell(drift: DriftEstimate | None) -> Cell:
    if drift is None:
        return EMPTY
    bounds = ""
    if drift.low is not None and drift.high is not None:
        bounds = f"[{numbers.quantity(drift.low)}, {numbers.quantity(drift.high)}]"
    mark = "" if is_drift_resolved(drift) else numbers.UNRESOLVED
    return Cell(numbers.quantity(drift.value), bounds, mark, _p_text(drift))


def _p_text(drift: DriftEstimate) -> str:
    """The p of all seeds; the smallest and largest of those that an earlier version did not combine."""
    seeds = sorted(drift.p_values)
    ends = (drift.p_value,) if drift.p_value is not None else (*seeds[:1], *seeds[-1:])
    return f"p {'–'.join(dict.fromkeys(map(numbers.p_value, ends)))}" if ends else ""


def _floor_cell(summary: StudySummary, distance: str) -> Cell:
    floors = sorted({run.drift[distance].floor for run in trained_runs(summary) if distance in run.drift})
    return Cell(" to ".join(dict.fromkeys((numbers.quantity(floors[0]), numbers.quantity(floors[-1])))))


def _effect_cells(effect: Effect | None) -> tuple[Cell, Cell]:
    if effect is None:
        return EMPTY, EMPTY
    share = Cell(numbers.score(effect.eta_squared), numbers.interval(effect.low, effect.high))
    return share, EMPTY if effect.omega_squared is None else Cell(numbers.score(effect.omega_squared))


def _hash_cell(seed: str, state_hash: str | None, letters: Mapping[tuple[str, str], str]) -> Cell:
    if state_hash is None:
        return EMPTY
    letter = letters.get((seed, state_hash))
    return Cell(state_hash[: design.SHOWN_DIGITS] + (f" {letter}" if letter else ""))


def _budget_heading(key: str) -> str:
    if key.startswith("flops"):
        return key.replace("flops", "FLOPs").replace("_", " ")
    return key.removeprefix("num_").removesuffix("_s").replace("_", " ")


def _budget_cell(key: str, value: float | None, planned: float | None) -> Cell:
    if value is None:
        return EMPTY
    show = numbers.duration if key.endswith("_s") else numbers.quantity
    return Cell(show(value) if planned is None else f"{show(planned)} / {show(value)}")


def _table_unless_empty(title: str, caption: str, summary: StudySummary, rows: tuple[Row, ...]) -> Table | None:
    if all(cell == EMPTY for row in rows for cell in row.cells):
        return None
    return Table(title, caption, tuple(summary.columns.values()), rows)
