"""`statewise samples`: what was evaluated here, as lm-eval's `samples_*.jsonl` and `results_*.json`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statewise.errors import UsageError
from statewise.folder.run_folder import RunFolder, read_object
from statewise.models.evaluation import HEADER, checked_scores, load_asked, plan_evaluation
from statewise.models.evaluation_request import EvaluationRequest
from statewise.models.sides import find_arm, read_side
from statewise.plan.catalog import place_of_task
from statewise.storage import records
from statewise.tasks.find import find_code

if TYPE_CHECKING:
    from statewise.logs.write_samples import EvaluatedTask

IN_CHAT = "was asked in a chat template, whose prompts are not recorded; lm-eval's files would hold others"


def export_samples(
    text: str, out: Path, data: Path | None, trusts: bool, tell_code: Callable[[tuple[str, ...]], None]
) -> list[Path]:
    """Write the samples of a folder of `statewise eval`, or of `RUN:ARM:SEED`, below `out`; returns the files.

    Args:
        text: what was evaluated.
        out: folder to write into; lm-eval's `--output_path`.
        data: folder of local data, where the evaluation was given one.
        trusts: whether Python that a task file names may run.
        tell_code: hears of that Python before it runs.

    Raises:
        UsageError: nothing was evaluated there, or its tasks or model are gone or others now.
    """
    if (Path(text) / HEADER).is_file():
        model, evaluated = _of_folder(Path(text), data, trusts, tell_code)
    elif arm := find_arm(text):
        if data is not None:
            raise UsageError(f"{text}: a run knows its data; leave --data out")
        model, evaluated = _of_arm(*arm, text, trusts, tell_code)
    else:
        read_side(text)  # says what is wrong
        raise UsageError(f"{text}: is a log; give a folder of `statewise eval`, or RUN:ARM:SEED")

    from statewise.logs.write_samples import write_samples

    return write_samples(out, model, evaluated)


def _of_folder(
    folder: Path, data: Path | None, trusts: bool, tell_code: Callable[[tuple[str, ...]], None]
) -> tuple[str, list[EvaluatedTask]]:
    stored = read_object(folder / HEADER)
    checked_scores(folder, stored)
    settings: dict[str, Any] = dict(stored["settings"])
    if settings.pop("chat"):
        raise UsageError(f"{folder}: {IN_CHAT}")
    if "own_data" in settings:
        raise UsageError(f"{folder}: was evaluated by a study; give RUN:ARM:SEED of its run, or evaluate with --tasks")
    if settings["data"] and data is None:
        raise UsageError(f"{folder}: was evaluated on a folder of local data; give it with --data")
    settings.pop("data")
    model = str(stored["model"]["name"])
    request = EvaluationRequest(
        model, tuple(stored["asked"]), data=data, out=folder, trusts_task_code=trusts, **settings
    )
    plan = plan_evaluation(request)
    tell_code(plan.task_code)

    from statewise.logs.write_samples import EvaluatedTask

    return model, [
        EvaluatedTask(
            load_asked(plan, asked), records.read_table(folder / "evals" / f"{name}.parquet"), request.limit,
            request.items, stored["tasks"][name]["protocol"],
        )
        for asked, name in stored["asked"].items()
    ]  # fmt: skip


def _of_arm(
    run: RunFolder, arm: str, seeds: list[int], text: str, trusts: bool, tell_code: Callable[[tuple[str, ...]], None]
) -> tuple[str, list[EvaluatedTask]]:
    if len(seeds) > 1:
        raise UsageError(f"{text}: has seeds {', '.join(map(str, seeds))}; name one, {text}:{seeds[0]}")
    read_side(text)  # refuses an arm that was not evaluated
    shared, record = run.config.shared, run.record(arm, seeds[0], "evaluate")
    if shared.chat:
        raise UsageError(f"{text}: {IN_CHAT}")
    names = (shared.target, *shared.retention)
    known = [name for name in names if not (run.config.data and name == run.config.data.name)]
    code = tuple(
        line for name in known for line in find_code(*place_of_task(name, run.config, run.model), is_trusted=trusts)
    )
    tell_code(code)

    from statewise.logs.write_samples import EvaluatedTask
    from statewise.plan.benchmarks import build_task_of

    tables = {path.stem: path for path in run.tables(arm, seeds[0], "evaluate", "evals/*.parquet")}
    return f"{run.folder.resolve().name}-{arm}-{seeds[0]}", [
        EvaluatedTask(
            build_task_of(run.config, run.model, name, code), records.read_table(tables[name]),
            shared.evaluation.limit, shared.evaluation.items, record["protocols"][name],
        )
        for name in names
    ]  # fmt: skip
