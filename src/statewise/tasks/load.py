"""Builds a task from the user's task folder or from lm-eval's own collection.

Importing this module takes seconds (lm-eval); list and find tasks with `tasks.find`. Departs from lm-eval in what a
task file may do: its templates are rendered in a sandbox, Python that it names (`!function`) is not imported unless
the caller trusts it (`tasks.task_file`), and no metric is fetched as Python by the package `evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import lm_eval.api.metrics  # fills the registry of metrics
import lm_eval.utils
from jinja2 import BaseLoader, StrictUndefined, Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from statewise.errors import NotHereError, UsageError, unknown
from statewise.storage.rows import READERS
from statewise.tasks.data import local_dataset
from statewise.tasks.find import check_task_name, find_task_file, lm_eval_names
from statewise.tasks.offline import offline_without_hub
from statewise.tasks.own_file import LOCAL_FORMATS
from statewise.tasks.quiet import quiet_lm_eval
from statewise.tasks.task import GRADER_ERRORS, Task, TaskOptions
from statewise.tasks.task_file import UNSAFE, TaskFile, built_in_folder, read_task_file

INDEX_KEYS = ("tag", "group", "task_list")  # keys that only lm-eval's index reads
UNSUPPORTED = {
    "class": "is written as a Python class; only tasks that are all YAML can be used",
    UNSAFE: "runs code that the model wrote; statewise does not run model output",
    "use_prompt": "takes its prompt from elsewhere; write it into doc_to_text",
    "doc_to_image": "shows images; only text tasks can be used",
    "doc_to_audio": "plays audio; only text tasks can be used",
}
NUM_SUGGESTIONS = 5

# Of `dataset_kwargs` in a file that is not lm-eval's own: what is read and how, never where it is kept or what is run.
ROW_KEYS = sorted({name for _, known in READERS.values() for name in known})
DATASET_KEYS = ("data_dir", "data_files", "revision", *ROW_KEYS)
BUILD_ERRORS = (*GRADER_ERRORS, TemplateError, AssertionError, RuntimeError)

# As lm-eval's environment, but an attribute, call or change by which a template could leave it is an error.
TEMPLATES = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
TEMPLATES.filters |= lm_eval.utils.env.filters


@lru_cache(maxsize=1024)  # lm-eval compiles a template for every document: nine tenths of the time of a prompt
def _compile(template: str) -> Template:
    return TEMPLATES.from_string(template)


def render_template(template: str, doc: Mapping[str, Any]) -> str:
    """A template of a task file with the values of a document; stands in the place of lm-eval's `apply_template`.

    Raises:
        UsageError: it reaches for more than values.
        TemplateError: it has a mistake.
    """
    try:
        return _compile(template).render(**doc)
    except SecurityError as error:
        raise UsageError(f"the task's template {template[:80]!r} is refused: {error}") from None


lm_eval.utils.env = TEMPLATES
lm_eval.utils.apply_template = render_template


def load_task(
    name_or_path: str,
    *,
    task_folder: Path | None = None,
    data: Path | None = None,
    reward_metric: str = "",
    options: TaskOptions = TaskOptions(),  # noqa: B008  (frozen)
    trusted: tuple[str, ...] = (),
) -> Task:
    """Build a task: `<task_folder>/<name>.yaml`, else lm-eval's own task or group of that name.

    Local data files (`dataset_path: json` and `dataset_kwargs.data_files`) are taken relative to the YAML, those of
    lm-eval's own tasks from `data` where it is given; they are read at once and checked, and no cache is kept. Other
    data sets are loaded by lm-eval, from the Hugging Face cache or hub.

    Args:
        name_or_path: a name, or the path of a YAML file (ends in ".yaml").
        task_folder: where the user's tasks lie; None: only lm-eval's own.
        data: folder of local copies of hub data sets (`tasks.data.copied_splits` says how they are found).
        reward_metric: "metric,filter" that `Task.reward` returns; "": the task's first metric with its first filter.
        options: what differs from the task's own protocol.
        trusted: Python of the task's file that may be run, as `TaskFile.told_code` names it; that of lm-eval's own
            files always may.

    Raises:
        UsageError: no such task (names the nearest), it names Python that is not trusted, or its YAML or data cannot be
            used (says where and why).
    """
    with quiet_lm_eval():
        path = find_task_file(name_or_path, task_folder)
        paths = [path] if path else _find_in_lm_eval(name_or_path, task_folder)
        members = tuple(_build(path, data, options, trusted) for path in paths)
    name = str(members[0].config.task) if len(members) == 1 else name_or_path
    _check_members(name, members)
    for member in members:
        if member.OUTPUT_TYPE == "multiple_choice":
            _check_labels(str(member.config.task), member)
    if members[0].OUTPUT_TYPE != "generate_until":
        return Task(name, members, options=options)
    first = f"{next(iter(members[0].aggregation()))},{members[0]._filters[0].name}"
    return Task(name, members, reward_metric or first, options)


def _check_members(name: str, members: tuple[Any, ...]) -> None:
    """Refuse a group whose members are not scored alike: their items have no common mean."""
    kinds = {(m.OUTPUT_TYPE, tuple(m.aggregation()), tuple(f.name for f in m._filters)) for m in members}
    if len(kinds) > 1:
        names = ", ".join(str(member.config.task) for member in members[:NUM_SUGGESTIONS])
        raise UsageError(
            f"task {name!r} is a group whose members differ in output type, metrics or filters, so their items have no "
            f"common score; name them one by one, such as {names}"
        )


def _build(path: Path, data: Path | None, options: TaskOptions, trusted: tuple[str, ...]) -> Any:
    file = read_task_file(path)
    file.check_trusted(trusted)
    _check_keys(file)
    try:
        config = file.resolved()
    except (ValueError, OSError, ImportError, AttributeError) as error:
        raise UsageError(f"task file {path}: cannot be read: {_describe(error)}") from error
    _check_metrics(path, config)
    if options.num_fewshot is not None:
        config = {**config, "num_fewshot": options.num_fewshot}
    dataset = local_dataset(config, path.parent, data)
    if dataset is not None:
        config = {**config, "custom_dataset": dataset}
    settings = {key: value for key, value in config.items() if key not in INDEX_KEYS}
    try:
        if dataset is not None:
            return ConfigurableTask(config=settings)
        with offline_without_hub():
            return ConfigurableTask(config=settings)
    except UsageError as error:
        raise UsageError(f"task file {path}: {error}") from error
    except BUILD_ERRORS as error:
        raise UsageError(f"task file {path}: lm-eval cannot build the task: {_describe(error)}") from error
    except OSError as error:  # also what datasets and the hub raise where there is no network
        raise NotHereError(
            f"task file {path}: its data set {config.get('dataset_path')!r} cannot be loaded: {_describe(error)}; "
            "download it while online, or give local copies with --data"
        ) from error


def _check_keys(file: TaskFile) -> None:
    """Refuse what cannot be used, whoever wrote it."""
    path, config = file.path, file.config
    for key, reason in UNSUPPORTED.items():
        if config.get(key) or (key == UNSAFE and file.is_unsafe):
            raise UsageError(f"task file {path}: {key}: the task {reason}")
    _ = file.name  # it has one
    _check_source(file)


def _check_source(file: TaskFile) -> None:
    """Refuse data whose reader could run code or write elsewhere, where lm-eval's own files do not say so."""
    path, config = file.path, file.config
    if "dataset_path" in file.own_keys and isinstance(source := config["dataset_path"], str):
        is_format = source in LOCAL_FORMATS
        is_loader = not is_format and ("/" not in source or source.endswith(".py"))
        if is_loader or Path(source, f"{Path(source).name}.py").is_file():
            raise UsageError(
                f"task file {path}: dataset_path {source!r} is neither a format ({', '.join(LOCAL_FORMATS)}) nor a "
                "data set of the hub (owner/name); data sets that are Python are never run"
            )
    if "dataset_kwargs" in file.own_keys and not config.get("custom_dataset"):
        for key in config["dataset_kwargs"] or {}:
            if key not in DATASET_KEYS:
                raise unknown("key in dataset_kwargs:", str(key), DATASET_KEYS, f"task file {path}")


def _check_metrics(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a metric that lm-eval does not have: it would ask `evaluate`, which fetches Python from the hub."""
    if config.get("process_results") is not None:  # makes the scores itself; metrics are only their names
        return
    for entry in config.get("metric_list") or []:
        name = entry.get("metric") if isinstance(entry, dict) else None
        if isinstance(name, str) and entry.get("hf_evaluate"):
            raise UsageError(
                f"task file {path}: metric_list: {name!r} with hf_evaluate is Python that the package evaluate fetches "
                "from the hub, which is never run; use a metric of lm-eval"
            )
        if isinstance(name, str) and name not in metric_registry:
            raise unknown("metric", name, metric_registry, f"task file {path}: metric_list")


def _describe(error: Exception) -> str:
    """The error's first line: datasets appends pages, yaml its context."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@cache
def _index_of(folder: Path) -> dict[str, Any]:
    """lm-eval's index of a folder of its tasks: its whole collection of 14,000 files would take seconds."""
    return dict(TaskManager(include_path=str(folder), include_defaults=False).task_index)


def _find_in_lm_eval(name: str, task_folder: Path | None) -> list[Path]:
    """The YAML files of one of lm-eval's own tasks, or of the members of one of its groups or tags."""
    check_task_name(name, task_folder)
    # The folders of lm-eval's collection that mention the name; one of them defines it, most often the one called so.
    folders = dict.fromkeys(path.relative_to(built_in_folder()).parts[0] for path in lm_eval_names().get(name, []))
    for index in (_index_of(built_in_folder() / folder) for folder in sorted(folders, key=lambda one: one != name)):
        if name in index:
            return _expand(name, index)
    raise UsageError(f"task {name!r}: lm-eval mentions it but defines it nowhere; give the path of a YAML file")


def _expand(name: str, index: Mapping[str, Any]) -> list[Path]:
    """The files of a task, or of all tasks below a group or tag, in the group's order (tags: by name)."""
    entry = index.get(name)
    if entry is None or entry.kind.name == "PY_TASK":
        raise UsageError(f"task {name!r}: class: the task {UNSUPPORTED['class']}")
    if entry.kind.name == "TASK":
        return [Path(entry.yaml_path)]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task", [])
    if not all(isinstance(member, str) for member in members):
        raise UsageError(
            f"task {name!r} is a group that changes its members' settings, which only `lm_eval` itself can run; name "
            "single tasks"
        )
    return [path for member in members for path in _expand(member, index)]


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
