"""Local data files of a task, read into memory and checked row by row.

`datasets.load_dataset("json", …)` resolves relative files against the working directory and keeps an Arrow cache under
the home folder. Reading the rows here instead works from any directory, on a read-only install and in several processes
at once, never serves stale rows, and can say which line of which file is wrong.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, TemplateSyntaxError, meta

from statewise.errors import UsageError

TEMPLATE_KEYS = ("doc_to_text", "doc_to_target", "doc_to_choice")
LOCAL_FORMATS = ("json", "csv", "parquet", "text")
JSON_SUFFIXES = (".json", ".jsonl")
COPY_SUFFIXES = (".jsonl", ".json", ".parquet")
SUBSET_COLUMN = "subject"
TEMPLATES = Environment()  # only parsed, never rendered: an expression cannot run here


@dataclass(frozen=True)
class Row:
    """One row and the place it was read from, `file:line`."""

    place: str
    values: dict[str, Any]


def local_dataset(
    config: Mapping[str, Any], folder: Path, data: Path | None = None
) -> Callable[..., datasets.DatasetDict] | None:
    """What lm-eval calls `custom_dataset`, for a task whose data are local files; None for any other task.

    Args:
        config: the task's YAML, includes resolved.
        folder: folder against which relative `data_files` are resolved.
        data: folder of local copies of hub data sets.

    Raises:
        UsageError: a file is missing, empty or malformed, or lacks a column that the templates use.
    """
    if config.get("custom_dataset"):
        return None
    options = dict(config.get("dataset_kwargs") or {})
    data_files = options.pop("data_files", None)
    file_format = config.get("dataset_path")
    if file_format not in LOCAL_FORMATS:
        if data is None or not isinstance(file_format, str):
            return None
        copied = _dataset(config, copied_splits(config, data))
        return lambda **_: copied
    splits = None if data_files is None else _locate(data_files, folder, str(config.get("task")))
    if splits is None:
        return None
    if not options and file_format == "json" and all(f.suffix in JSON_SUFFIXES for fs in splits.values() for f in fs):
        loaded = _dataset(
            config, {split: [row for f in files for row in read_rows(f)] for split, files in splits.items()}
        )
    else:
        loaded = _load_uncached(file_format, config.get("dataset_name"), splits, options)
    return lambda **_: loaded


def copied_splits(config: Mapping[str, Any], data: Path) -> dict[str, list[Row]]:
    """The rows of a hub data set from its local copy, by split, with the column names of the hub.

    A copy lies in a folder of `data` named after the data set (`openai/gsm8k`: `gsm8k`, `openai__gsm8k` or `openai`;
    underscores may be left out). In it a split is `<configuration>/<split>`, `<split>` or, for the split that the task
    evaluates, `<configuration>`, as `.jsonl`, `.json` or `.parquet`, whole or in the numbered parts of a download. Of a
    file that holds several configurations, as MMLU's subjects, the rows of this one are taken, by its column `subject`.

    Raises:
        UsageError: no such folder, no file of a split that the task names, or no row of the configuration.
    """
    folder = _copy_of(str(config["dataset_path"]), data, str(config.get("task")))
    name = str(config.get("dataset_name") or "")
    evaluated = config.get("test_split") or config.get("validation_split")
    splits = {}
    for split in dict.fromkeys(
        s for s in (config.get("training_split"), config.get("fewshot_split"), evaluated) if isinstance(s, str)
    ):
        stems = [f"{name}/{split}", split, *([name] if split == evaluated and name else [])]
        found = _files_of(folder, stems)
        if found:
            rows = [row for path in found for row in _cached_rows(path, path.stat().st_mtime_ns)]
            splits[split] = _of_configuration(rows, name, found[0])
        else:
            raise UsageError(
                f"task {config.get('task')!r}: {folder} holds no split {split!r}; expected one of "
                + ", ".join(f"{stem}{COPY_SUFFIXES[0]}" for stem in stems)
            )
    return splits


def _files_of(folder: Path, stems: list[str]) -> list[Path]:
    """The file of the first stem that has one, or its numbered parts as the hub's downloads have them."""
    for stem in stems:
        for end in COPY_SUFFIXES:
            if (whole := folder / f"{stem}{end}").is_file():
                return [whole]
            if parts := sorted(folder.glob(f"{stem}-[0-9]*{end}")):
                return parts
    return []


def _copy_of(dataset_path: str, data: Path, task: str) -> Path:
    owner, _, last = dataset_path.rpartition("/")
    names = [last, last.replace("_", ""), dataset_path.replace("/", "__"), *([owner] if owner else [])]
    for name in names:
        if (data / name).is_dir():
            return data / name
    raise UsageError(
        f"task {task!r}: {data} holds no copy of its data set {dataset_path!r}; expected a folder {' or '.join(names)} "
        "in it"
    )


def _of_configuration(rows: list[Row], name: str, path: Path) -> list[Row]:
    """The rows of configuration `name`, where the rows say which they belong to."""
    if SUBSET_COLUMN not in rows[0].values or not name:
        return rows
    kept = [row for row in rows if row.values.get(SUBSET_COLUMN) == name]
    if not kept:
        raise UsageError(f"{path}: no row has {SUBSET_COLUMN} {name!r}")
    return kept


@lru_cache(maxsize=8)
def _cached_rows(path: Path, modified_ns: int) -> list[Row]:
    """The rows of a file as of `modified_ns`: a group's members read the same one."""
    if path.suffix != ".parquet":
        return read_rows(path)
    values = pq.read_table(path).to_pylist()
    if not values:
        raise UsageError(f"{path}: holds no rows")
    return [Row(f"{path}, row {index + 1}", value) for index, value in enumerate(values)]


def _locate(data_files: Any, folder: Path, task: str) -> dict[str, list[Path]] | None:
    """Absolute files per split; None if they are not local."""
    per_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    located: dict[str, list[Path]] = {}
    for split, patterns in per_split.items():
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if "://" in pattern:
                return None
            files = sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]
            missing = [file for file in files if not file.is_file()] or ([] if files else [folder / pattern])
            if missing:
                raise UsageError(
                    f"task {task!r}: its {split} data {missing[0].resolve()} do not exist; "
                    "put the file there or correct dataset_kwargs.data_files in the task's YAML"
                )
            located.setdefault(str(split), []).extend(file.resolve() for file in files)
    return located


def _dataset(config: Mapping[str, Any], splits: Mapping[str, list[Row]]) -> datasets.DatasetDict:
    loaded = datasets.DatasetDict()
    for split, rows in splits.items():
        if config.get("process_docs") is None:
            check_columns(config, rows)
        columns = list(dict.fromkeys(name for row in rows for name in row.values))
        try:
            loaded[split] = datasets.Dataset.from_dict({c: [row.values.get(c) for row in rows] for c in columns})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UsageError(
                f"{rows[0].place}: a column has values of different types: {error}; make them all of one type"
            ) from error
    return loaded


def _load_uncached(
    file_format: str, name: str | None, splits: Mapping[str, list[Path]], options: dict[str, Any]
) -> datasets.DatasetDict:
    """Other local formats, through datasets, with a cache folder that lives only while they are read."""
    data_files = {split: [str(file) for file in files] for split, files in splits.items()}
    with tempfile.TemporaryDirectory(prefix="statewise-") as cache:
        loaded = datasets.load_dataset(
            file_format, name, data_files=data_files, cache_dir=cache, keep_in_memory=True, **options
        )
    return loaded


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file, or of a .json file that holds one array; blank lines are skipped.

    Raises:
        UsageError: no rows, or a line that is not one JSON object; says which.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    rows = []
    for place, value in _parse(path, text):
        if not isinstance(value, dict):
            raise UsageError(f"{place}: expected one JSON object, got {type(value).__name__}")
        rows.append(Row(place, value))
    if not rows:
        raise UsageError(f"{path}: holds no rows; expected one JSON object a line")
    return rows


def _parse(path: Path, text: str) -> list[tuple[str, Any]]:
    if path.suffix == ".json" and text.lstrip().startswith("["):
        try:
            return [(f"{path}, row {index + 1}", value) for index, value in enumerate(json.loads(text))]
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    parsed = []
    # Not splitlines(): JSON strings may hold U+2028, which is a line to it but not to JSON Lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            parsed.append((f"{path}:{number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}") from error
    return parsed


def check_columns(config: Mapping[str, Any], rows: list[Row]) -> None:
    """Refuse rows without a column that the task's templates print.

    lm-eval takes a template that names no column for a literal text, so that a mistyped column would be scored as 0.
    Templates with conditions may have optional columns; for them a column is missed only if no row has it.
    """
    present = {name for row in rows for name in row.values}
    for key in TEMPLATE_KEYS:
        template = config.get(key)
        if not isinstance(template, str):
            continue
        for column in sorted(_columns_of(template, key, config)):
            place = _first_without(column, rows, is_optional="{%" in template and column in present)
            if place:
                raise UsageError(
                    f"{place}: no value for column {column!r}, which {key} of task {config.get('task')!r} uses; "
                    f"the file's columns are {', '.join(sorted(present))}"
                )


def _columns_of(template: str, key: str, config: Mapping[str, Any]) -> set[str]:
    if template.isidentifier():
        return {template}
    try:
        return set(meta.find_undeclared_variables(TEMPLATES.parse(template)))
    except TemplateSyntaxError as error:
        raise UsageError(f"task {config.get('task')!r}: {key} is not a valid template: {error}") from error


def _first_without(column: str, rows: list[Row], *, is_optional: bool) -> str | None:
    if is_optional:
        return None
    return next((row.place for row in rows if row.values.get(column) is None), None)
