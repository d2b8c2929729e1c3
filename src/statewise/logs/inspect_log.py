"""Logs of inspect (`.eval`), read by its own package, which is an extra. An item is a sample's id.

A score's letters are what inspect's own metrics make of them (C 1, P 0.5, I and N 0). Over several epochs an item has
the mean of its scores. Departs from inspect's `accuracy`: a value that is no number is refused, never 0.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from statewise.console.printing import plural
from statewise.errors import UsageError
from statewise.folder.item_scores import Column
from statewise.logs.log import EvaluationLog, Gathering, LoggedItem
from statewise.tasks.items import chance_of_guess

EVAL = ".eval"
ANSWERS = "answers"  # the decoding of an inspect task: a solver may do anything
LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
# Of how answers were generated; other settings (connections, time limits) do not change what is asked.
GENERATION = ("temperature", "top_p", "top_k", "max_tokens", "stop_seqs", "system_message", "reasoning_effort", "seed")
UNREAD = {"messages", "events", "store", "attachments"}


def read_eval_files(paths: list[Path]) -> EvaluationLog:
    """The scores of these logs, one task each.

    Raises:
        UsageError: one cannot be read or did not finish, two are of one task, or the package is missing.
    """
    logs = {path: _read(path) for path in paths}
    gathering, protocols, notes = Gathering(), dict[str, str](), list[str]()
    for path, log in logs.items():
        task = str(log.eval.task)
        if task in protocols:
            same = ", ".join(str(one) for one, other in logs.items() if other.eval.task == task)
            raise UsageError(f"{path.parent}: holds several runs of task {task!r}; name one: {same}")
        if log.status != "success":
            raise UsageError(
                f"{path}: the evaluation did not finish (status {log.status!r}); finish it: inspect eval-retry"
            )
        protocols[task] = _protocol(log)
        notes += _gather(gathering, log, str(path))
    return gathering.log(protocols, notes)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise UsageError(f"{path}: logs of inspect are read by its package; pip install 'statewise[inspect]'") from None
    try:
        return read_eval_log(str(path), exclude_fields=UNREAD)
    except Exception as error:  # noqa: BLE001  (a zip, JSON and pydantic: each has errors of its own)
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{path}: inspect_ai cannot read it: {told[0]}") from None


def _gather(gathering: Gathering, log: Any, place: str) -> list[str]:
    """Keep the scores of a log; returns what a reader must know of its samples."""
    epochs: dict[tuple[Column, int | str], list[float]] = {}
    asked: dict[tuple[Column, int | str], LoggedItem] = {}
    task, seen, num_left, reducers = str(log.eval.task), set[tuple[Any, int]](), 0, log.eval.config.epochs_reducer
    is_mean = reducers in (None, ["mean"]) or (log.eval.config.epochs or 1) == 1
    is_choice = any(
        step.solver == "multiple_choice" and not step.params.get("multiple_correct") for step in log.plan.steps
    )
    for sample in log.samples or []:
        if (sample.id, sample.epoch) in seen:
            raise UsageError(f"{place}: sample {sample.id!r} stands here twice in epoch {sample.epoch}")
        seen.add((sample.id, sample.epoch))
        if sample.error is not None or sample.invalidation is not None or not sample.scores:
            num_left += 1
            continue
        for name, value in _values(sample.scores):
            score = _number(value)
            if score is None or not is_mean:
                shown = f"the reducer {', '.join(reducers or [])}" if not is_mean else repr(value)[:60]
                gathering.refused[f"{task} {name}"] = f"{shown} is no score that has a mean"
                continue
            key = (Column(task, ANSWERS, name), sample.id)
            epochs.setdefault(key, []).append(score)
            asked[key] = LoggedItem(score, _digest(sample), _chance(sample) if is_choice else math.nan)
    for (column, id_), scores in epochs.items():
        item, known = asked[column, id_], [score for score in scores if not math.isnan(score)]
        score = math.fsum(known) / len(known) if known else math.nan
        gathering.add(column, id_, LoggedItem(score, item.digest, item.chance), place)
    return [f"{task}: {plural(num_left, 'sample')} without a score (errors, invalidated) left out"] * bool(num_left)


def _values(scores: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each score by the name of its scorer; those of a dictionary by scorer/key."""
    for scorer, score in scores.items():
        if isinstance(score.value, dict):
            yield from ((f"{scorer}/{key}", value) for key, value in score.value.items())
        else:
            yield scorer, score.value


def _number(value: Any) -> float | None:
    """A value as a number, nan for none, None for what is no score."""
    if value is None or isinstance(value, int | float):
        return math.nan if value is None else float(value)
    if not isinstance(value, str):
        return None
    known = LETTERS.get(value, LETTERS.get(value.lower()) if len(value) > 1 else None)
    try:
        return float(value) if known is None else known
    except ValueError:
        return None


def _digest(sample: Any) -> str:
    """SHA-256 over what a sample asks; ids of messages are drawn anew in each run."""
    asked = sample.input if isinstance(sample.input, str) else [[one.role, one.text] for one in sample.input]
    text = json.dumps([asked, sample.choices, sample.target], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _chance(sample: Any) -> float:
    chance = chance_of_guess(len(sample.choices or []))
    return math.nan if chance is None or not isinstance(sample.target, str) or len(sample.target) > 1 else chance


def _protocol(log: Any) -> str:
    """How the samples were asked: what differs between two logs makes them two tasks."""
    spec, plan = log.eval, log.plan
    solvers = [f"{step.solver} {_told(step.params)}".strip() for step in plan.steps]
    settings = {**spec.model_generate_config.model_dump(), **plan.config.model_dump(exclude_none=True)}
    generation = {key: settings[key] for key in GENERATION if settings.get(key) is not None}
    parts = [
        f"inspect; task version {spec.task_version}",
        f"arguments {_told(spec.task_args)}" if spec.task_args else "",
        f"solvers {', '.join(solvers)}",
        f"generation {_told(generation)}" if generation else "",
        f"scorers {', '.join(f'{one.name} {_told(one.options or {})}'.strip() for one in spec.scorers or [])}",
        f"mean of {spec.config.epochs} epochs" if (spec.config.epochs or 1) > 1 else "",
    ]
    return "; ".join(part for part in parts if part)


def _told(values: dict[str, Any]) -> str:
    kept = {key: value for key, value in values.items() if value is not None}
    return json.dumps(kept, sort_keys=True, default=str) if kept else ""
