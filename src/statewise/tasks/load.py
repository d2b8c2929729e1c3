"""Builds a task from the user's task folder or from lm-eval's own collection.

Importing this module takes seconds (lm-eval); list and find tasks with `tasks.find`. A task file is code: lm-eval's
`!function` runs Python from the task's folder.
"""

from __future__ import annotations

import difflib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import lm_eval.utils
import yaml
from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

# TaskManager can override a task's keys only if it indexes the whole folder; the loader beneath it reads one file.
from lm_eval.tasks._yaml_loader import load_yaml

from statewise import errors
from statewise.errors import UsageError
from statewise.tasks.data import local_dataset
from statewise.tasks.find import find_task_file, list_tasks
from statewise.tasks.quiet import quiet_lm_eval
from statewise.tasks.task import Task

LM_EVAL_FOLDER = Path(str(lm_eval.tasks.__file__)).parent
INDEX_KEYS = ("tag", "group", "task_list")  # keys that only lm-eval's index reads
UNSUPPORTED = {
    "class": "is written as a Python class; only tasks that are all YAML can be used",
    "unsafe_code": "runs code that the model wrote; statewise does not run model output",
    "doc_to_image": "shows images; only text tasks can be used",
    "doc_to_audio": "plays audio; only text tasks can be used",
}
NUM_SUGGESTIONS = 5

# lm-eval compiles a template anew for every document: nine tenths of the time of a prompt or a reward.
lm_eval.utils.env.from_string = lru_cache(maxsize=1024)(lm_eval.utils.env.from_string)


def load_task(name_or_path: str, *, task_folder: Path | None = None, reward_metric: str = "") -> Task:
    """Build a task: `<task_folder>/<name>.yaml`, else lm-eval's own task of that name.

    Local data files (`dataset_path: json` and `dataset_kwargs.data_files`) are taken relative to the YAML, read at once
    and checked; no cache is kept. Other data sets are loaded by lm-eval, from the Hugging Face cache or hub.

    Args:
        name_or_path: a name, or the path of a YAML file (ends in ".yaml").
        task_folder: where the user's tasks lie; None: only lm-eval's own.
        reward_metric: "metric,filter" that `Task.reward` returns; "": the task's first metric with its first filter.

    Raises:
        UsageError: no such task (names the nearest), or its YAML or data cannot be used (says where and why).
    """
    with quiet_lm_eval():
        path = find_task_file(name_or_path, task_folder) or _find_in_lm_eval(name_or_path, task_folder)
        lm_eval_task = _build(path)
    name = str(lm_eval_task.config.task)
    if lm_eval_task.OUTPUT_TYPE == "multiple_choice":
        _check_labels(name, lm_eval_task)
    if lm_eval_task.OUTPUT_TYPE != "generate_until":
        return Task(name, lm_eval_task)
    first = f"{next(iter(lm_eval_task.aggregation()))},{lm_eval_task._filters[0].name}"
    return Task(name, lm_eval_task, reward_metric or first)


def _build(path: Path) -> Any:
    config = _read_config(path)
    for key, reason in UNSUPPORTED.items():
        if config.get(key):
            raise UsageError(f"task file {path}: {key}: the task {reason}")
    if "task" not in config:
        raise UsageError(f"task file {path}: no `task` key; it must give the task's name")
    dataset = local_dataset(config, path.parent)
    if dataset is not None:
        config = {**config, "custom_dataset": dataset}
    try:
        return ConfigurableTask(config={key: value for key, value in config.items() if key not in INDEX_KEYS})
    except (TemplateError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"task file {path}: lm-eval cannot build the task: {_describe(error)}") from error
    except OSError as error:  # also what datasets and the hub raise where there is no network
        raise UsageError(
            f"task file {path}: its data set {config.get('dataset_path')!r} cannot be loaded: {_describe(error)}; "
            "download it while online, or write a task with local `data_files`"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(load_yaml(path))
    except (yaml.YAMLError, ValueError, OSError, ImportError, AttributeError) as error:
        raise UsageError(f"task file {path}: cannot be read: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    """The error's first line: datasets appends pages, yaml its context."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@cache
def _index() -> dict[str, Any]:
    return dict(TaskManager().task_index)  # reads 14,000 files: seconds


def _find_in_lm_eval(name: str, task_folder: Path | None) -> Path:
    """The YAML file of one of lm-eval's own tasks."""
    # Most tasks lie in a file of their name; that spares the index.
    for path in sorted(LM_EVAL_FOLDER.rglob(f"{name}.yaml")) if name.isidentifier() else ():
        if load_yaml(path, resolve_func=False).get("task") == name:
            return path
    index = _index()
    entry = index.get(name)
    if entry is None:
        own = list_tasks(task_folder) if task_folder else ()
        known = [*own, *difflib.get_close_matches(name, index, n=NUM_SUGGESTIONS)]
        raise errors.unknown("task", name, known, f"{task_folder or 'lm-eval'}")
    if entry.kind.name not in ("TASK", "PY_TASK"):
        members = sorted(other for other in index if other.startswith(f"{name}_") and index[other].kind.name == "TASK")
        hint = f", such as {', '.join(members[:NUM_SUGGESTIONS])}" if members else ""
        raise UsageError(f"task {name!r} is a group of lm-eval tasks: name its members one by one{hint}")
    return Path(entry.yaml_path)


def _check_labels(name: str, lm_eval_task: Any) -> None:
    """Refuse items whose gold is none of their choices: lm-eval scores them 0, whatever the model says."""
    if lm_eval_task.multiple_input:
        return
    for index, doc in enumerate(lm_eval_task.eval_docs):
        choices, gold = lm_eval_task.doc_to_choice(doc), lm_eval_task.doc_to_target(doc)
        for label in gold if isinstance(gold, list) else [gold]:
            is_known = 0 <= label < len(choices) if isinstance(label, int) else label in choices
            if not is_known:
                raise UsageError(
                    f"task {name!r}: item {index} has label {label!r}, but its {len(choices)} choices are "
                    f"{choices}; correct the data"
                )
