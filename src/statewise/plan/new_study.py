"""A study begun from a file of rows (`statewise init`), and what is in such a file (`statewise data`)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from statewise.assets import BEGUN
from statewise.config.study import SharedSection
from statewise.errors import UsageError, unknown
from statewise.plan.request import LARGE_PARAMETERS  # from here on an adapter is trained
from statewise.policy.find import count_parameters, look_up_model
from statewise.storage.output_folder import check_empty
from statewise.storage.records import write_bytes
from statewise.storage.rows import Row, read_rows
from statewise.tasks.own_data import FORMATS, text_of

# What columns are called in the data sets that people have, the likeliest first.
PROMPTS = ("prompt", "question", "instruction", "input", "problem", "query")
COMPLETIONS = ("completion", "answer", "output", "response", "solution", "target")
TEST_SHARE = 0.2
SHOWN = 3  # rows, and problems of a kind


@dataclass(frozen=True)
class DataFacts:
    """What is in a file of rows, as a study would see it.

    `problems`: rows without a text in one of the two columns, told with their place; `num_twice`: rows whose prompt
    came before; `num_in_test`: prompts that the file `test` has too (None: no such file). Lengths of the 5 %, 50 % and
    95 % quantile, in `unit`.
    """

    path: Path
    columns: tuple[str, ...]
    prompt: str
    completion: str
    num_rows: int
    problems: tuple[str, ...]
    num_twice: int
    num_in_test: int | None
    first: tuple[tuple[str, str], ...]
    unit: str
    prompt_lengths: tuple[int, int, int]
    completion_lengths: tuple[int, int, int]


def describe_data(
    path: Path, prompt: str | None = None, completion: str | None = None, *, test: Path | None = None, model: str = ""
) -> DataFacts:
    """Read a file of rows, bad ones too.

    Args:
        path: `.jsonl`, `.json`, `.csv` or `.parquet`.
        prompt: column; None: the likeliest that there is.
        completion: column, "" for none; None: the likeliest that there is.
        test: another file of the same columns, whose prompts are looked for in this one.
        model: whose tokens lengths are counted in; "": characters.

    Raises:
        UsageError: not a file of rows, or a column that is not there or cannot be guessed.
    """
    rows = _read(path)
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    prompt = _column(path, columns, prompt, PROMPTS, "prompt")
    completion = "" if completion == "" else _column(path, columns, completion, COMPLETIONS, "completion")
    asked = [prompt, *([completion] if completion else [])]
    texts, problems = list[tuple[str, str]](), list[str]()
    for row in rows:
        try:
            found = [text_of(row, column) for column in asked]
        except UsageError as error:
            problems.append(str(error))
        else:
            texts.append((found[0], found[1] if completion else ""))
    prompts = [text for text, _ in texts]
    others = {str(row.values[prompt]) for row in _read(test) if row.values.get(prompt) is not None} if test else None
    count, unit = _measure(model)
    return DataFacts(
        path, columns, prompt, completion, len(rows), tuple(problems),
        sum(times - 1 for times in Counter(prompts).values()),
        None if others is None else len(others & set(prompts)),
        tuple(texts[:SHOWN]), unit, _quantiles([count(one) for one in prompts]),
        _quantiles([count(one) for _, one in texts]),
    )  # fmt: skip


def write_study(folder: Path, facts: DataFacts, model: str = SharedSection().model) -> Path:
    """Write `study.toml` and `rewards.py` of a new study on the described file; returns the former.

    Raises:
        UsageError: the folder has something in it, the file has bad rows or no completions, or there is no such model.
    """
    if facts.problems:
        raise UsageError(f"{facts.problems[0]} (one of {len(facts.problems)} such rows); mend the file first")
    if not facts.completion:
        raise UsageError(f"{facts.path}: a study that imitates needs a column of completions")
    reference, usual = look_up_model(model), SharedSection()
    # Weights that are not here yet have two bytes each, as most are published.
    size = sum(count_parameters(reference.folder).values()) or reference.missing_bytes / 2
    check_empty(folder)
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in facts.path.stem).strip("-")
    written = {
        "file": str(folder / "study.toml"), "name": json.dumps(name.lower() or "own"), "share": TEST_SHARE,
        "train": json.dumps(os.path.relpath(facts.path.resolve(), folder.resolve())),
        "prompt": json.dumps(facts.prompt), "completion": json.dumps(facts.completion), "model": json.dumps(model),
        "retention": json.dumps(usual.retention if model == usual.model else []),
        "lr": "1e-4" if size > LARGE_PARAMETERS else "3e-4",
        "adapter": 'adapter = { kind = "lora", rank = 16 }\n' if size > LARGE_PARAMETERS else "",
        "column": repr(facts.completion), "new_tokens": max(16, -(-3 * facts.completion_lengths[2] // 2 // 8) * 8),
    }  # fmt: skip
    study = folder / "study.toml"
    for name, text in (("study.toml", BEGUN / "study.toml.txt"), ("rewards.py", BEGUN / "rewards.py.txt")):
        write_bytes(folder / name, text.read_text(encoding="utf-8").format(**written).encode())
    return study


def _read(path: Path) -> list[Row]:
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: of no known format; expected {', '.join(FORMATS)}")
    return read_rows(path, FORMATS[path.suffix])


def _column(path: Path, columns: Sequence[str], given: str | None, usual: Sequence[str], key: str) -> str:
    if given is not None:
        if given not in columns:
            raise unknown("column", given, columns, str(path))
        return given
    found = [name for name in usual if name in columns]
    if not found:
        raise UsageError(f"{path}: which column is the {key}? give --{key}; the columns are {', '.join(columns)}")
    return found[0]


def _measure(model: str) -> tuple[Callable[[str], int], str]:
    """What counts the length of a text, and in what: characters without a model, or without its tokenizer.json."""
    path = look_up_model(model).folder / "tokenizer.json" if model else None
    if path is None or not path.is_file():
        return len, "characters"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text).ids), "tokens"


def _quantiles(lengths: Sequence[int]) -> tuple[int, int, int]:
    ordered = sorted(lengths) or [0]
    low, middle, high = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.05, 0.5, 0.95))
    return low, middle, high
