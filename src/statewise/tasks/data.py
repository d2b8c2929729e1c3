"""Local data files of a task, read into memory (`statewise.storage.rows`) and checked against the task's templates.

`datasets.load_dataset("json", …)` resolves relative files against the working directory and keeps an Arrow cache under
the home folder. Reading the rows here instead works from any directory, on a read-only install and in several processes
at once, never serves stale rows, and can say which line of which file is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval.utils
import pyarrow as pa
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from statewise.errors import UsageError
from statewise.storage.rows import READERS, Row, read_rows
from statewise.tasks.own_file import locate_data

TEMPLATE_KEYS = ("doc_to_text", "doc_to_target", "doc_to_choice")
COPY_SUFFIXES = (".jsonl", ".json", ".parquet")
TRUST = "trust_remote_code"  # of datasets that were scripts: there is nothing to trust in a file of rows
SUBSET_COLUMN = "subject"


def _printed(value: Any) -> Any:
    if value is None:
        raise ValueError("a missing value is printed")
    return value


# As `load.TEMPLATES`, in which tasks are rendered, but a value that is missing is never printed.
TEMPLATES = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printed)
TEMPLATES.filters |= lm_eval.utils.env.filters


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
    if file_format not in READERS:
        if data is None or not isinstance(file_format, str):
            return None
        copied = _dataset(config, copied_splits(config, data))
        return lambda **_: copied
    splits = None if data_files is None else locate_data(data_files, folder, str(config.get("task")))
    if splits is None:
        return None
    options.pop(TRUST, None)
    loaded = _dataset(
        config,
        {split: [row for f in files for row in read_rows(f, file_format, options)] for split, files in splits.items()},
    )
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
    return read_rows(path, "parquet" if path.suffix == ".parquet" else "json")


def _dataset(config: Mapping[str, Any], splits: Mapping[str, list[Row]]) -> datasets.DatasetDict:
    loaded = datasets.DatasetDict()
    for split, rows in splits.items():
        if config.get("process_docs") is None:
            check_columns(config, rows)
        columns = list(dict.fromkeys(name for row in rows for name in row.values))
        loaded[split] = _table({column: [row.values.get(column) for row in rows] for column in columns}, rows)
    return loaded


def _table(columns: dict[str, list[Any]], rows: list[Row]) -> datasets.Dataset:
    """The columns of `rows`, None where a row has no value.

    Raises:
        UsageError: a table would not keep a column (1 beside 2.5 becomes 1.0), since its values are of different types.
    """
    table = _kept(columns)
    if table is None:
        column = next(column for column, values in columns.items() if _kept({column: values}) is None)
        known = [value for value in columns[column] if value is not None]
        odd = next((row for row in rows if type(row.values.get(column)) not in (type(known[0]), type(None))), rows[0])
        kinds = ", ".join(sorted({type(value).__name__ for value in known}))
        raise UsageError(
            f"{odd.place}: column {column!r} has values of different types ({kinds}); make them all of one type"
        )
    return table


def _kept(columns: dict[str, list[Any]]) -> datasets.Dataset | None:
    """The table of `columns`, or None where it would not hold the very values."""
    try:
        table = datasets.Dataset.from_dict(columns)
        held = table[:]
    except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError):
        return None
    return table if all(_is_kept(values, held[column]) for column, values in columns.items()) else None


def _is_kept(value: Any, held: Any) -> bool:
    """Whether a table holds the very value; to keys that other rows have it adds None."""
    if isinstance(value, dict) and isinstance(held, dict):
        return value.keys() <= held.keys() and all(_is_kept(value.get(key), held[key]) for key in held)
    if isinstance(value, list) and isinstance(held, list):
        return len(value) == len(held) and all(map(_is_kept, value, held))
    return bool(value == held) and isinstance(value, float) == isinstance(held, float)


def check_columns(config: Mapping[str, Any], rows: list[Row]) -> None:
    """Refuse rows without a column that the task's templates print.

    lm-eval takes a template that names no column for a literal text, so that a mistyped column would be scored as 0.
    Templates with conditions may have optional columns; for them a column is missed if no row has it, or if a row
    without a value would print `None`.
    """
    present = {name for row in rows for name in row.values}
    for key in TEMPLATE_KEYS:
        template = config.get(key)
        if not isinstance(template, str):
            continue
        columns = sorted(_columns_of(template, key, config))
        for column in columns:
            place = _first_without(column, rows, is_optional="{%" in template and column in present)
            if place:
                raise UsageError(
                    f"{place}: no value for column {column!r}, which {key} of task {config.get('task')!r} uses; "
                    f"the file's columns are {', '.join(map(repr, sorted(present)))}"
                )
        partial = [row for row in rows if any(row.values.get(column) is None for column in columns)]
        if partial and (place := _first_printing_none(template, partial, present)):
            raise UsageError(
                f"{place}: {key} of task {config.get('task')!r} would print a missing value as `None`; fill the cell, "
                "or put its place in the template under a condition"
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


def _first_printing_none(template: str, rows: list[Row], columns: set[str]) -> str | None:
    """Where `template`, rendered as lm-eval does, prints a value that a row lacks or cannot go on without one."""
    compiled = TEMPLATES.from_string(template)
    for row in rows:
        try:
            compiled.render(**{column: row.values.get(column) for column in columns})
        except SecurityError:
            return None  # refused where it is rendered, and not for what is missing
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            return row.place
    return None
