"""A run, its arms, evaluations and comparisons as Python has them: tables of their records, which were checked.

Tables are pandas DataFrames with a fixed list of columns each (`docs/api.md`); pandas is imported when one is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from statewise.errors import UsageError, unknown
from statewise.folder.run_folder import RunFolder, open_run
from statewise.plan.dag import BASE
from statewise.storage import model_records
from statewise.storage.records import DriftEstimate, Estimate, StudySummary, write_bytes

if TYPE_CHECKING:
    from pandas import DataFrame

Table = dict[str, Any]
ESTIMATE = ("value", "low", "high", "n", "num_seeds")
SCORE = ("arm", "task", "decoding", "metric", "member", *ESTIMATE)
FORGETTING = ("arm", "task", *ESTIMATE, "p_adjusted")
DIFFERENCE = ("task", "decoding", "metric", "a", "b", *ESTIMATE, "num_pairs", "num_only_a", "num_only_b", "mcnemar_p")
EVALUATED = ("task", "decoding", "metric", *ESTIMATE, "num_unscored")
# Of a column in which nothing is known, too.
MAY_BE_MISSING = {
    **dict.fromkeys(("low", "high", "p", "p_adjusted", "mcnemar_p"), "float64"),
    **dict.fromkeys(("num_only_a", "num_only_b"), "Int64"),
}
DRIFT = ("value", "low", "high", "floor", "p", "num_seeds")


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder, of `Study.run` or of `statewise run`. Its tables have a row for each arm and score."""

    records: RunFolder

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in `folder`.

        >>> run = sw.Run.open("runs/small")
        >>> run.arms
        ('base', 'sft', 'rl')
        """
        return cls(open_run(Path(folder)))

    @property
    def folder(self) -> Path:
        return self.records.folder

    @property
    def arms(self) -> tuple[str, ...]:
        return self.records.arms

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def summary(self) -> StudySummary:
        """All that the report prints."""
        from statewise.report.summary_json import read_summary

        summary, note = read_summary(self.folder)
        if note:
            warn(note, stacklevel=2)
        return summary

    @property
    def scores(self) -> DataFrame:
        """Every score of every arm; `n` items, over `num_seeds` seeds.

        >>> sw.Run.open("runs/small").scores.columns.to_list()
        ['arm', 'task', 'decoding', 'metric', 'member', 'value', 'low', 'high', 'n', 'num_seeds']
        """
        return _frame((row for run in self.summary.runs for row in _score_rows(run.arm, run.scores)), SCORE)

    @property
    def gains(self) -> DataFrame:
        """Arm minus base on the scores of the target, paired by item.

        >>> gains = sw.Run.open("runs/small").gains
        >>> gains[["arm", "task", "decoding", "n"]].head(2).values.tolist()
        [['sft', 'pocket_math', 'greedy', 12], ['sft', 'pocket_math', 'sampled', 12]]
        """
        rows: list[Table] = []
        for run in self.summary.runs:
            gained = {k: one for k, one in run.against_base.items() if k not in self.summary.retention}
            rows += _score_rows(run.arm, gained)
        return _frame(rows, (*SCORE, "p_adjusted"))

    @property
    def forgetting(self) -> DataFrame:
        """Base minus arm on every retention task, paired by item, and their mean, whose task is called "mean".

        >>> sw.Run.open("runs/small").forgetting[["arm", "task"]].head(3).values.tolist()
        [['sft', 'pocket_facts'], ['sft', 'pocket_myths'], ['sft', 'mean']]
        """
        rows: list[Table] = []
        for run in self.summary.runs:
            kept = {key: run.against_base[key].negated for key in self.summary.retention if key in run.against_base}
            rows += _score_rows(run.arm, kept)
            if run.forgetting:
                rows.append({"arm": run.arm, "task": "mean", **_estimate(run.forgetting)})
        return _frame(rows, FORGETTING)

    def arm(self, name: str) -> Arm:
        """An arm of the study, or "base".

        >>> str(sw.Run.open("runs/small").arm("sft"))
        'runs/small:sft'
        """
        self.records.check_arm(name)
        return Arm(self.records, name)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report as one offline page to `path`, else to `report.html` in the run's folder.

        >>> str(sw.Run.open("runs/small").report("small.html"))
        'small.html'
        """
        from statewise.report.page import FILE_NAME, render_page

        page = Path(path) if path is not None else self.folder / FILE_NAME
        write_bytes(page, render_page(self.summary).encode("utf-8"))
        return page


@dataclass(frozen=True, repr=False)
class Arm:
    """An arm of a run, with all its seeds. As text it is `RUN:ARM`, as the command line names it."""

    records: RunFolder
    name: str

    def __str__(self) -> str:
        return f"{self.records.folder}:{self.name}"

    def __repr__(self) -> str:
        return f"Arm({str(self)!r})"

    def items(self, task: str) -> DataFrame:
        """One row for each seed, evaluated item, decoding and metric: column `seed`, then those of the record.

        >>> items = sw.Run.open("runs/small").arm("sft").items("pocket_facts")
        >>> items[["seed", "decoding", "metric"]].head(1).values.tolist()
        [[0, 'choices', 'acc,none']]

        Raises:
            UsageError: the study has no such task, or the arm was not evaluated.
        """
        shared = self.records.config.shared
        tasks = (shared.target, *shared.retention)
        if task not in tasks:
            raise unknown("task", task, tasks, str(self))
        return self._read("evaluate", f"evals/{task}.parquet")

    def states(self) -> DataFrame:
        """One row for each seed, update and trajectory that the arm was trained on: its tokens, mask and rewards.

        >>> states = sw.Run.open("runs/small").arm("rl").states()
        >>> states[["seed", "step", "source", "writer"]].head(1).values.tolist()
        [[0, 0, 'rollout', 'learner']]

        Raises:
            UsageError: the arm was not trained.
        """
        return self._read("train", "states/*.parquet")

    def _read(self, action: str, pattern: str) -> DataFrame:
        """The tables of all seeds, after their records were checked."""
        import pyarrow
        from pyarrow import parquet

        tables, reasons = [], list[str]()
        for seed in self.records.config.study.seeds:
            record = self.records.record(self.name, seed, action)
            reasons += [str(record["reason"])] if "reason" in record else []
            if not record:
                continue
            for path in self.records.tables(self.name, seed, action, pattern):
                table = parquet.read_table(path)
                tables.append(table.add_column(0, "seed", pyarrow.array([seed] * table.num_rows)))
        if not tables:
            is_base = (self.name, action) == (BASE, "train")
            why = "the base model is not trained" if is_base else "continue the run"
            raise UsageError(f"{self}: has no {pattern} in any seed; {[*reasons, why][0]}")
        frame: DataFrame = pyarrow.concat_tables(tables).to_pandas()
        return frame


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A folder of scores; `rows`: those that were asked for. As text it is the folder, as for `compare`."""

    folder: Path
    rows: list[Table]

    @property
    def scores(self) -> DataFrame:
        """One row for each task, decoding and metric.

        >>> sw.evaluate("pocket", "pocket_facts", limit=12, quiet=True).scores["num_unscored"].to_list()
        [0]
        """
        return _frame([{**row, **_estimate(Estimate(**row["estimate"]))} for row in self.rows], EVALUATED)

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Evaluation({str(self)!r})"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two sides item by item. `record` is all that `statewise compare` tells.

    `notes` and `refused` (task → reason) say what was not compared, or not alike.
    """

    record: model_records.Comparison

    @property
    def notes(self) -> tuple[str, ...]:
        return self.record.notes

    @property
    def refused(self) -> dict[str, str]:
        return self.record.refused

    @property
    def differences(self) -> DataFrame:
        """B minus A, one row for each task, decoding and metric.

        >>> sw.compare("runs/small:base", "runs/small:rl").differences[["task", "n"]].tail(1).values.tolist()
        [['pocket_myths', 12]]
        """
        rows = [
            {**asdict(score), "a": score.a.value, "b": score.b.value, **_estimate(score.difference)}
            for score in self.record.scores
        ]
        return _frame(rows, DIFFERENCE)

    def __repr__(self) -> str:
        return f"Comparison({self.record.a!r}, {self.record.b!r})"


def drift_frame(distances: Mapping[str, DriftEstimate]) -> DataFrame:
    """One row for each distance, by its name."""
    rows = [{**asdict(one), "p": one.p_value} for one in distances.values()]
    return _frame(rows, DRIFT).set_axis([*distances])


def _score_rows(arm: str, scores: Mapping[str, Estimate]) -> list[Table]:
    """Of scores by `results.measured.Column.key`."""
    rows = []
    for key, estimate in scores.items():
        task, decoding, metric, *member = key.split(":", 3)
        named = {"arm": arm, "task": task, "decoding": decoding, "metric": metric, "member": "".join(member)}
        rows.append({**named, **_estimate(estimate)})
    return rows


def _estimate(estimate: Estimate) -> Table:
    return {**asdict(estimate), "n": estimate.num_items}


def _frame(rows: Iterable[Table], columns: tuple[str, ...]) -> DataFrame:
    from pandas import DataFrame

    frame = DataFrame(list(rows), columns=list(columns))
    return frame.astype({name: dtype for name, dtype in MAY_BE_MISSING.items() if name in columns})
