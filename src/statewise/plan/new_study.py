"""A study begun from a file of rows (`statewise init`), and what is in such a file (`statewise data`)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from statewise.errors import UsageError, unknown
from statewise.plan.catalog import pocket_tasks
from statewise.policy.find import ModelReference, count_parameters, look_up_model
from statewise.storage.output_folder import check_empty
from statewise.storage.records import write_bytes
from statewise.storage.rows import Row, read_rows
from statewise.tasks.own_data import FORMATS, text_of

# What columns are called in the data sets that people have, the likeliest first.
PROMPTS = ("prompt", "question", "instruction", "input", "problem", "query")
COMPLETIONS = ("completion", "answer", "output", "response", "solution", "target")
TEST_SHARE = 0.2
SHOWN = 3  # rows, and problems of a kind
LARGE_PARAMETERS = 50e6  # from here on an adapter is trained
POCKET = "pocket"

REWARDS = '''"""The reward of this study. Its bytes are in the fingerprint: another reward trains anew."""


def score(prompt: str, completion: str, row: dict) -> float:
    """How good the text is that the model wrote after `prompt`: a number from 0 to 1."""
    return float(completion.strip() == str(row[{column}]).strip())
'''

STUDY = """\
# Written by `statewise init`. Every key: docs/tutorial.md, docs/methods.md. Try it: statewise run {file} --quick
[study]
name = {name}
seeds = [0, 1, 2]
factors = ["source", "signal", "teacher"]
quick = ["study.seeds=[0]", "shared.update.num_updates=2", "shared.evaluation.limit=8", "shared.drift.num_prompts=8"]

[data]
train = {train}
test_share = {share}            # by a hash of the prompt; or test = "a file"
prompt = {prompt}
completion = {completion}
reward = "rewards.py:score"

[shared]
model = {model}
retention = {retention}   # tasks on which forgetting is measured, such as "mmlu"; statewise list tasks
update = {{ num_updates = 40, lr = {lr} }}
{adapter}evaluation = {{ limit = 200, max_new_tokens = {new_tokens} }}
drift = {{ num_prompts = 64, max_new_tokens = {new_tokens} }}

[arms.sft]
source = {{ kind = "dataset" }}
signal = {{ kind = "imitate" }}

[arms.opd]
source = {{ kind = "rollout", max_new_tokens = {new_tokens} }}
signal = {{ kind = "reverse_kl" }}
teacher = "sft"                 # or a model from elsewhere: [models.big] model = "org/name"

[arms.rl]
source = {{ kind = "rollout", num_prompts = 8, samples_per_prompt = 8, max_new_tokens = {new_tokens} }}
signal = {{ kind = "reward" }}
"""


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
    others = {str(row.values.get(prompt)) for row in _read(test)} if test else None
    count, unit = _measure(model)
    return DataFacts(
        path, columns, prompt, completion, len(rows), tuple(problems),
        sum(times - 1 for times in Counter(prompts).values()),
        None if others is None else len(others & set(prompts)),
        tuple(texts[:SHOWN]), unit, _quantiles([count(one) for one in prompts]),
        _quantiles([count(one) for _, one in texts]),
    )  # fmt: skip


def write_study(folder: Path, facts: DataFacts, model: str = POCKET) -> Path:
    """Write `study.toml` and `rewards.py` of a new study on the described file; returns the former.

    Raises:
        UsageError: the folder has something in it, the file has bad rows or no completions, or there is no such model.
    """
    if facts.problems:
        raise UsageError(f"{facts.problems[0]} (one of {len(facts.problems)} such rows); mend the file first")
    if not facts.completion:
        raise UsageError(f"{facts.path}: a study that imitates needs a column of completions")
    size, tasks = sum(count_parameters(look_up_model(model).folder).values()), pocket_tasks()
    check_empty(folder)
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in facts.path.stem).strip("-")
    written = {
        "file": str(folder / "study.toml"), "name": json.dumps(name.lower() or "own"), "share": TEST_SHARE,
        "train": json.dumps(os.path.relpath(facts.path.resolve(), folder.resolve())),
        "prompt": json.dumps(facts.prompt), "completion": json.dumps(facts.completion), "model": json.dumps(model),
        "retention": json.dumps([task for task in tasks if task != "pocket_math"] if model == POCKET else []),
        "lr": "1e-4" if size > LARGE_PARAMETERS else "3e-4",
        "adapter": 'adapter = { kind = "lora", rank = 16 }\n' if size > LARGE_PARAMETERS else "",
        "new_tokens": max(16, -(-3 * facts.completion_lengths[2] // 2 // 8) * 8),
    }  # fmt: skip
    study = folder / "study.toml"
    write_bytes(study, STUDY.format(**written).encode())
    write_bytes(folder / "rewards.py", REWARDS.replace("{column}", repr(facts.completion)).encode())
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
    """What counts the length of a text, and in what."""
    if not model:
        return len, "characters"
    from tokenizers import Tokenizer

    reference: ModelReference = look_up_model(model)
    tokenizer = Tokenizer.from_file(str(reference.folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids), "tokens"


def _quantiles(lengths: Sequence[int]) -> tuple[int, int, int]:
    ordered = sorted(lengths) or [0]
    low, middle, high = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.05, 0.5, 0.95))
    return low, middle, high
