"""Rows of a data file: one reader a format, one set of checks, and errors that name file and row.

A row holds what stands in the file. `datasets.load_dataset` and `str.splitlines` do not promise that: they read 007 as
7, NA as no value, and cut a text at U+2028. What no reader could keep is refused.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from statewise.errors import UsageError

INT64 = range(-(2**63), 2**63)
MOST_NESTED = 40
SURROGATE = re.compile("[\ud800-\udfff]")
NO_OPTIONS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Row:
    """One row and the place it was read from: `file:line`, or `file, row 3` where a file has no lines; `number` is that
    of the line or row, from 1.
    """

    place: str
    number: int
    values: dict[str, Any]


def read_rows(path: Path, file_format: str = "json", options: Mapping[str, Any] = NO_OPTIONS) -> list[Row]:
    """The rows of a file, one or more; a byte order mark and blank lines are passed over.

    Args:
        path: the file.
        file_format: `json` (an object a line, or one array of objects), `csv` (with a header; an empty cell is no
            value, and a column is one of numbers or truth values only where each cell is written as Python writes it),
            `parquet`, or `text` (a line a row, in column `text`).
        options: for csv `delimiter` or `sep`, and `column_names` where the file has no header; for json
            `field`, the key of the one object of the file that holds the rows.

    Raises:
        UsageError: no such file, not of this format, no rows, or a value that cannot be kept; names file and row.
    """
    read, known = READERS[file_format]
    for option in options:
        if option not in known:
            raise UsageError(
                f"{path}: option {option!r} of dataset_kwargs is not known for {file_format}; "
                + (f"known are {', '.join(known)}" if known else "there are none")
            )
    return checked(read(path, options), str(path))


def checked(found: Iterable[Row], told: str) -> list[Row]:
    """The rows, one or more, of values that can be kept; `told` is where they lie.

    Raises:
        UsageError: there are none, or a value that cannot be kept; names the row.
    """
    rows = list(found)
    if not rows:
        raise UsageError(f"{told}: holds no rows")
    for row in rows:
        for column, value in row.values.items():
            if problem := _problem_of(value):
                raise UsageError(f"{row.place}: column {column!r} {problem}")
    return rows


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text; save it as UTF-8, and unpacked") from None


def _read_json(path: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    text = _text_of(path)
    if field := options.get("field"):
        whole = _parsed(text, f"{path}")
        found = whole.get(field) if isinstance(whole, dict) else None
        if not isinstance(found, list):
            raise UsageError(f"{path}: expected one JSON object with a list of rows as its {field!r}")
        values = [(f"{path}, row {number}", number, value) for number, value in enumerate(found, start=1)]
    elif text.lstrip().startswith("["):
        found = _parsed(text, f"{path}")
        values = [(f"{path}, row {number}", number, value) for number, value in enumerate(found, start=1)]
    else:
        # Not splitlines(): JSON strings may hold U+2028, which is a line to it but not to JSON Lines.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        values = [(f"{path}:{number}", number, _parsed(line, f"{path}:{number}")) for number, line in lines]
    for place, number, value in values:
        if not isinstance(value, dict):
            raise UsageError(f"{place}: expected one JSON object, got {type(value).__name__}")
        yield Row(place, number, value)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise UsageError(f"{place}: not valid JSON: {error.msg} at {where}; expected one object a line") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not valid JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; write null where there is no value")


def _read_csv(path: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the module's 128 KiB
    delimiter = options.get("delimiter") or options.get("sep") or ","
    lines = _text_of(path).split("\n")
    number, table = 1, []
    try:
        reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
        for cells in reader:
            if cells:
                table.append((number, cells))
            number = reader.line_num + 1
    except (csv.Error, TypeError) as error:
        raise UsageError(f"{path}:{number}: not valid CSV: {error}") from None
    given = options.get("column_names")
    header = given or (table.pop(0)[1] if table else [])
    if repeated := [name for name in header if header.count(name) > 1]:
        raise UsageError(f"{path}: column {repeated[0]!r} stands twice in its header; give every column its own name")
    for number, cells in table:
        if len(cells) != len(header):
            raise UsageError(
                f"{path}:{number}: {len(cells)} cells, but {len(header)} columns; put texts with commas in quotes"
            )
    columns = [_typed([cells[index] or None for _, cells in table]) for index in range(len(header))]
    for index, (number, _) in enumerate(table):
        values = {name: column[index] for name, column in zip(header, columns, strict=True)}
        yield Row(f"{path}:{number}", number, values)


def _typed(cells: list[str | None]) -> list[Any]:
    """The values of a column: of another type than text only where each prints as the very cell it was read from."""
    for convert in ({"True": True, "False": False}.__getitem__, int, float):
        try:
            values = [None if cell is None else convert(cell) for cell in cells]
        except (ValueError, KeyError):
            continue
        if all(cell is None or (str(v) == cell and not _problem_of(v)) for cell, v in zip(cells, values, strict=True)):
            return values
    return cells


def _read_parquet(path: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    try:
        # Not read_table(), which makes columns of folders that are called `name=value`.
        rows = rows_of_table(pq.ParquetFile(path).read(), str(path))
    except (OSError, ValueError, pa.ArrowException) as error:  # ArrowInvalid and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path}: not a Parquet file that can be read: {str(error).partition(chr(10))[0]}") from None
    yield from rows


def rows_of_table(table: pa.Table, told: str) -> list[Row]:
    """The rows of an Arrow table, as they are; `told` is where they lie.

    Raises:
        UsageError: two columns have one name.
    """
    names, found = table.column_names, table.to_pylist()
    if len(set(names)) < len(names):
        raise UsageError(f"{told}: two columns have one name; its columns are {', '.join(names)}")
    rows = []
    for number, values in enumerate(found, start=1):
        # pandas writes NaN where a number is missing.
        kept = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}
        rows.append(Row(f"{told}, row {number}", number, kept))
    return rows


def _read_text(path: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if line.strip():
            yield Row(f"{path}:{number}", number, {"text": line.removesuffix("\r")})


Reader = Callable[[Path, Mapping[str, Any]], Iterator[Row]]
READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "json": (_read_json, ("field",)),
    "csv": (_read_csv, ("delimiter", "sep", "column_names")),
    "parquet": (_read_parquet, ()),
    "text": (_read_text, ()),
}


def _problem_of(value: Any, depth: int = 0) -> str:
    """What about a value no table could keep; "" for nothing."""
    if depth > MOST_NESTED:
        return f"is nested more than {MOST_NESTED} deep"
    if isinstance(value, dict | list):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next((problem for part in parts if (problem := _problem_of(part, depth + 1))), "")
    if isinstance(value, int) and not isinstance(value, bool) and value not in INT64:
        return f"holds {str(value)[:24]}…, a whole number of more than 64 bits; write it as text, in quotes"
    if isinstance(value, float) and not math.isfinite(value):
        return f"holds {value}, which is no finite number; write null where there is no value"
    if isinstance(value, str) and SURROGATE.search(value):
        return "holds half a character (a lone surrogate), which is no text; write the whole character"
    return ""
