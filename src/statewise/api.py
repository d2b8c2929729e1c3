"""What `import statewise as sw` offers: studies, runs, evaluations and comparisons, as the command line has them.

Everything here calls what a command calls, so that a folder of one is a folder of the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from statewise.errors import FailedRunError, UsageError, unknown
from statewise.frames import Arm, Comparison, Evaluation, Run, drift_frame
from statewise.locality import LOCALITIES, Locality
from statewise.plan.request import StudyRequest, plan_study, run_folder_of
from statewise.signals import SIGNALS, Signal
from statewise.states import SOURCES, Source
from statewise.trackers import TRACKERS, Tracker, trackers_named

if TYPE_CHECKING:
    from pandas import DataFrame

    from statewise.report.terminal import CleanConsole

Table = dict[str, Any]
Side = Arm | Evaluation | str | Path
# Options by the names that the requests of the command line have for them.
FIELDS = {"quick": "is_quick", "chat": "is_chat", "trust_task_code": "trusts_task_code", "seeds": "num_seeds"}
LEAST = {"limit": 2, "samples": 2, "seed": 0, "max_new_tokens": 1, "num_fewshot": 0}


class StudyOptions(TypedDict, total=False):
    """How a study is changed, as by the options of `statewise run`.

    `seeds`: a list of them, or how many; `model`: base model, by name or folder; `data`: folder of local copies of the
    benchmarks' data; `limit`: items a task and prompts of drift, at most; `quick`: the study's own small size; `chat`:
    prompts in the tokenizer's chat template; `overrides`: as for `--set`, such as "rl.update.lr=3e-5";
    `trust_task_code`: Python that a task file names may run.
    """

    seeds: int | Sequence[int]
    model: str | Path
    data: str | Path
    limit: int
    quick: bool
    chat: bool
    overrides: Sequence[str]
    trust_task_code: bool


class StudyTables(StudyOptions, total=False):
    """The tables of a study file, with its keys, and options beside them."""

    study: Table
    shared: Table
    arms: Table
    grid: Table
    hypotheses: list[Table]
    reference: Table


class RunOptions(TypedDict, total=False):
    """`workers`: processes side by side, None: as the model asks for; `quiet`: nothing is shown meanwhile; `report_to`:
    trackers that are told of it, by name.
    """

    workers: int | None
    quiet: bool
    report_to: str | Sequence[str]


class EvaluationOptions(TypedDict, total=False):
    """How a model is evaluated, as by the options of `statewise eval`.

    `study`: a study, by name or path, whose tasks, own data and protocol are taken in the place of `tasks`;
    `out`: folder of the scores, else `evals/<model>`; `limit`: items a task; `first`: the first of them, not a sample;
    `samples`: sampled answers an item, for pass@k; `seed`: of sampled answers; `num_fewshot`: worked examples; `quiet`:
    nothing is shown meanwhile; `data`, `chat`, `trust_task_code`: as for a study.
    """

    study: str | Path
    out: str | Path
    limit: int
    first: bool
    samples: int
    data: str | Path
    seed: int
    max_new_tokens: int
    num_fewshot: int
    chat: bool
    trust_task_code: bool
    quiet: bool


class Study:
    """A study, checked: unknown words and arms that cannot be trained were refused.

    Made of a dictionary for each table of a study file. `study.name` may be left out.

    >>> study = sw.Study(arms={"sft": {
    ...     "source": {"kind": "dataset"}, "signal": {"kind": "imitate"}, "update": {"num_updates": 2, "lr": 3e-4},
    ... }}, seeds=[0, 1])
    >>> study.name, study.arms, study.seeds
    ('study', ('sft',), (0, 1))
    """

    def __init__(self, **given: Unpack[StudyTables]) -> None:
        _check_keywords("Study", given, StudyTables)
        options = {key: value for key, value in given.items() if key in StudyOptions.__annotations__}
        tables = {key: value for key, value in given.items() if key not in options}
        section = tables.get("study", {})
        tables["study"] = {"name": "study", **section} if isinstance(section, dict) else section
        self._plan(deepcopy(tables), options)

    @classmethod
    def load(cls, name: str | Path, **options: Unpack[StudyOptions]) -> Study:
        """A built-in study by name, or the study file at a path.

        >>> sw.Study.load("pocket", seeds=[0], quick=True)
        Study('pocket', arms=[mild-sft, stress-sft, opd-from-mild, opd-from-stress, rl], seeds=[0])
        """
        _check_keywords("Study.load", options, StudyOptions)
        study = cls.__new__(cls)
        study._plan(str(name), options)
        return study

    def _plan(self, study: str | Table, options: Mapping[str, Any]) -> None:
        settings, overrides = _settings(options, ("overrides",)), options.get("overrides", ())
        if isinstance(overrides, str):
            raise UsageError(f"overrides={overrides!r}: expected a list, such as [{overrides!r}]")
        seeds = settings.get("num_seeds")
        if seeds is not None and not isinstance(seeds, int):  # which ones, not how many
            overrides = (*overrides, f"study.seeds={json.dumps([*settings.pop('num_seeds')], default=int)}")
        settings |= {key: str(settings[key]) for key in ("model", "data") if settings.get(key) is not None}
        self.request = StudyRequest(study, tuple(overrides), **settings)
        self.config = plan_study(replace(self.request, is_dry=True)).config

    @property
    def name(self) -> str:
        return self.config.study.name

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.config.arms)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.config.study.seeds)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, arms=[{', '.join(self.arms)}], seeds={[*self.seeds]})"

    def run(self, folder: str | Path | None = None, **how: Unpack[RunOptions]) -> Run:
        """Run what is not done of the study in `folder`, else `runs/<study>`; the same call resumes.

        Worker processes do not import the caller's script, so that it needs no `if __name__ == "__main__"`. Progress is
        shown on standard error.

        >>> study = sw.Study.load("small.toml", seeds=[0], limit=12)
        >>> study.run("runs/small", workers=1, quiet=True)
        Run('runs/small')

        Raises:
            FailedRunError: jobs failed; the others are done, and the same call tries again.
            KeyboardInterrupt: by Ctrl-C, once the workers have stopped; the same call continues.
            UsageError: the folder holds another study, or a model, a task or a tracker cannot be used.
        """
        _check_keywords("Study.run", how, RunOptions)
        workers = how.get("workers")
        if workers is not None and workers < 1:
            raise UsageError(f"workers={workers}: expected a number >= 1")
        from statewise.progress import run_to_report

        trackers = trackers_named(how.get("report_to") or ())
        plan = plan_study(self.request)
        where = Path(folder) if folder is not None else run_folder_of(self.request, self.config)
        console = _console(how.get("quiet", False))
        _tell_code(plan.task_code, _teller(console))
        outcome, _ = run_to_report(plan, where, workers, console, trackers)
        if outcome.interrupted:
            raise KeyboardInterrupt(f"what is done is kept in {where}; the same call continues it")
        if outcome.failed:
            told = "; ".join(f"{job}: {reason}" for job, reason in outcome.failed.items())
            raise FailedRunError(f"{told}; what is done: Run.open({str(where)!r})", outcome.failed)
        return Run.open(where)


def evaluate(model: str | Path, tasks: str | Sequence[str] = (), **options: Unpack[EvaluationOptions]) -> Evaluation:
    """Score any model on any task, item by item, as `statewise eval`; done tasks are kept.

    Args:
        model: "pocket", a model's folder or a name of the hub.
        tasks: one or several, by name or as paths of YAML files; none with the option `study`.
        options: see `EvaluationOptions`.

    >>> sw.evaluate("pocket", "pocket_facts", limit=12, quiet=True).scores[["task", "metric", "n"]].values.tolist()
    [['pocket_facts', 'acc,none', 12]]

    Raises:
        UsageError: no such model or task, or the folder holds another evaluation.
    """
    from statewise.models.evaluation import evaluate_tasks, plan_evaluation
    from statewise.models.evaluation_request import EvaluationRequest

    _check_keywords("evaluate", options, EvaluationOptions)
    settings = _settings(options, ("quiet", "first"))
    settings |= {key: Path(settings[key]) for key in ("data", "out") if settings.get(key) is not None}
    settings |= {"study": str(settings["study"])} if settings.get("study") is not None else {}
    for key, least in LEAST.items():
        if settings.get(key) is not None and settings[key] < least:
            raise UsageError(f"evaluate: {key}={settings[key]}: expected a number >= {least}")
    names = (tasks,) if isinstance(tasks, str) else tuple(dict.fromkeys(tasks))
    items = "first" if options.get("first") else "sample"
    plan = plan_evaluation(EvaluationRequest(str(model), names, items=items, **settings))
    tell = _teller(_console(options.get("quiet", False)))
    _tell_code(plan.task_code, tell)
    return Evaluation(plan.out, evaluate_tasks(plan, tell))


def compare(a: Side, b: Side) -> Comparison:
    """B against A on the items of both, as `statewise compare`.

    Args:
        a: an arm, an evaluation or its folder, or "RUN:ARM", "RUN:ARM:SEED".
        b: the same; differences are B minus A.

    >>> run = sw.Run.open("runs/small")
    >>> sw.compare(run.arm("base"), "runs/small:sft").differences["task"].unique().tolist()
    ['pocket_facts', 'pocket_math', 'pocket_myths']

    Raises:
        UsageError: a side is none, or they share no task that can be compared.
    """
    from statewise.models.sides import read_side

    sides = read_side(str(a)), read_side(str(b))
    from statewise.models.compare import compare as compare_sides

    return Comparison(compare_sides(*sides))


def drift(a: Arm | str, b: Arm | str) -> DataFrame:
    """How far the states of arm `b` are from those of `a`, by their recorded rollouts; a row for each distance.

    `floor`: the distance between two samples of one policy, that of the base model of a's run. `p`: that the policies
    are the same, of all seeds together. See `models.arm_drift` and `drift.measure`.

    Args:
        a: an arm, or "RUN:ARM", "RUN:ARM:SEED"; of any run.
        b: the same.

    >>> sw.drift("runs/small:base", "runs/small:sft").index.to_list()
    ['mmd', 'within_prompt_mmd', 'centroid', 'sliced_wasserstein', 'jaccard']

    Raises:
        UsageError: no such arm, or the two were not rolled out on the same prompts.
    """
    from statewise.models.arm_drift import measure_arms

    return drift_frame(measure_arms(str(a), str(b)))


def register_source(source: type[Source]) -> None:
    """A source that studies may name by the default of its field `kind`; see CONTRIBUTING.md.

    Workers do not import the caller's script, so the class stands in a module that can be imported. A package makes
    its own known to the command line as well, by an entry point `statewise.sources`.

    Raises:
        UsageError: no such default, or another source of that name.
    """
    SOURCES.add(source)


def register_signal(signal: type[Signal]) -> None:
    """As `register_source`, of a signal; the entry point is `statewise.signals`."""
    SIGNALS.add(signal)


def register_locality(locality: type[Locality]) -> None:
    """As `register_source`, of a locality; the entry point is `statewise.localities`."""
    LOCALITIES.add(locality)


def register_tracker(name: str, tracker: type[Tracker]) -> None:
    """A tracker that `report_to` may name; its process imports the class. The entry point is `statewise.trackers`.

    Raises:
        UsageError: another tracker has this name, or it is no such class.
    """
    TRACKERS.put(name, tracker)


def _check_keywords(called: str, given: Iterable[str], known: type) -> None:
    for key in given:
        if key not in known.__annotations__:
            raise unknown("keyword", key, known.__annotations__, called)


def _settings(options: Mapping[str, Any], left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Options as the fields of a request."""
    return {FIELDS.get(key, key): value for key, value in options.items() if key not in left_out}


def _console(is_quiet: bool) -> CleanConsole | None:
    """Standard error, where what happens meanwhile is shown."""
    from statewise.report.terminal import CleanConsole

    return None if is_quiet else CleanConsole(stderr=True)


def _teller(console: CleanConsole | None) -> Callable[[str], None]:
    return (lambda line: None) if console is None else partial(console.print, soft_wrap=True)


def _tell_code(task_code: Iterable[str], tell: Callable[[str], None]) -> None:
    """Name the Python of task files and rewards, before it runs."""
    for line in task_code:
        tell(f"Python that this runs: {line}")
