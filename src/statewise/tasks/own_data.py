"""`[data]` of a study: a file of prompts and answers, and how an answer is rewarded, in the place of a target task.

The rows become a task of lm-eval's, so that training, evaluation, chat templates and records are those of any other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from statewise.errors import UsageError
from statewise.kind import Strict
from statewise.storage import records
from statewise.storage.rows import Row, read_rows
from statewise.tasks.rewards import NAMED, file_of_reward

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
METRIC = "reward"
REWARD_METRIC = f"{METRIC},none"  # of such a task, as `shared.reward_metric` names it
MOST_NEW_TOKENS = 2**20  # the study's own limit is the one that counts
MIN_TEST_ROWS = 2
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"


class DataSection(Strict):
    """`[data]`: the study's target, as a file of rows. `name`: as records and reports call it; the study's own if "".

    `train`, `test`: `.jsonl`, `.json`, `.csv` or `.parquet`, relative to the study file; without `test`, the share
    `test_share` of the training rows is kept for it, by a hash of the prompt, so that equal prompts stay together.
    `prompt`, `completion`: columns; the latter is "" where nothing imitates it or compares with it.
    `delimiter` stands between the two; an answer ends at the first of `stop`, if not by itself. `reward`:
    `exact_match`, `contains`, `math`, `regex:PATTERN` (`tasks.rewards`), or `file.py:function`. `digests` of the files
    are filled in.
    """

    name: Annotated[str, Field(pattern=f"^({NAME})?$")] = ""
    train: str
    test: str | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    prompt: str = "prompt"
    completion: str = "completion"
    delimiter: str = " "
    stop: list[Annotated[str, Field(min_length=1)]] = []
    reward: str = "exact_match"
    digests: dict[str, str] = {}

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if (self.test is None) == (self.test_share is None):
            raise ValueError("give one of test (a file) and test_share (of the training rows)")
        if not self.completion and file_of_reward(self.reward) is None:
            raise ValueError(f"reward {self.reward!r} compares with the completion; name its column")
        return self

    def located(self, folder: Path, study: str) -> Self:
        """The same with absolute paths, those given being relative to `folder`, and with the digests of the files.

        Args:
            folder: of the study file.
            study: the study's name, which the data have too unless they have one of their own.

        Raises:
            UsageError: a file is not there or of no known format; an unknown reward.
        """
        paths = {key: _file(folder, name) for key, name in (("train", self.train), ("test", self.test)) if name}
        for key, path in paths.items():
            if path.suffix not in FORMATS:
                raise UsageError(f"data.{key} {path}: of no known format; expected {', '.join(FORMATS)}", (key,))
        reward, script = self.reward, file_of_reward(self.reward)
        if script is not None:
            path = _file(folder, script)
            reward = f"{path}:{reward.rpartition(':')[2]}"
            paths["reward"] = path
        elif reward.partition(":")[0] not in NAMED:
            raise UsageError(
                f"data.reward {reward!r}: unknown; expected {', '.join(NAMED)} or a file and its function, "
                "such as rewards.py:exact",
                ("reward",),
            )
        for key, path in paths.items():
            if not path.is_file():
                raise UsageError(f"data.{key}: there is no file {path}", (key,))
        digests = {key: records.digest_file(path) for key, path in paths.items()}
        changes = {key: str(path) for key, path in paths.items() if key != "reward"}
        return self.changed(**changes, name=self.name or study, reward=reward, digests=digests)

    @property
    def identity(self) -> dict[str, Any]:
        """What it means, wherever its files lie; for fingerprints."""
        function = {"reward": self.reward.rpartition(":")[2]} if "reward" in self.digests else {}
        return {**self.model_dump(mode="json", exclude={"train", "test"}), **function}

    @property
    def code(self) -> str | None:
        """The Python that its reward runs, for those who are told before it does."""
        return self.reward if "reward" in self.digests else None


@dataclass(frozen=True)
class OwnRow:
    """One prompt and its answer, "" for none; `values`: the whole row, these two as text; `place`: file and line."""

    prompt: str
    completion: str
    values: dict[str, Any]
    place: str

    @property
    def document(self) -> dict[str, str]:
        """As lm-eval holds it: nothing of where the row lies, since it enters the items' digests."""
        row = json.dumps(self.values, default=str)  # Parquet has dates
        return {"prompt": self.prompt, "completion": self.completion, "row": row}


def read_own_data(data: DataSection) -> dict[str, list[OwnRow]]:
    """The rows of `train` and `test`.

    Raises:
        UsageError: a file cannot be read, a row lacks a column or holds no text in it, or a split is too small.
    """
    return _read(data.model_dump_json()) if data.digests else _read_now(data)


@lru_cache(maxsize=2)
def _read(section: str) -> dict[str, list[OwnRow]]:
    """A run reads its rows several times; their digests are in the section, so what is kept is what they say."""
    return _read_now(DataSection.model_validate_json(section))


def _read_now(data: DataSection) -> dict[str, list[OwnRow]]:
    for key, name in (("train", data.train), ("test", data.test)):
        if name and data.digests and records.digest_file(Path(name)) != data.digests[key]:
            raise UsageError(f"data.{key}: {name} changed since the study was read; run the same command again")
    splits = _split(data, _rows(data, data.train))
    if len(splits["test"]) < MIN_TEST_ROWS:
        raise UsageError(
            f"{data.test or data.train}: {len(splits['test'])} test row; an interval needs {MIN_TEST_ROWS} or more"
        )
    return splits


def _split(data: DataSection, train: list[OwnRow]) -> dict[str, list[OwnRow]]:
    if data.test is not None:
        return {"train": train, "test": _rows(data, data.test)}
    kept = [_share_of(row.prompt) < (data.test_share or 0) for row in train]
    splits = {
        "train": [row for row, is_kept in zip(train, kept, strict=True) if not is_kept],
        "test": [row for row, is_kept in zip(train, kept, strict=True) if is_kept],
    }
    for split, rows in splits.items():
        if not rows:
            raise UsageError(f"{data.train}: of its {len(train)} rows test_share {data.test_share:g} leaves no {split}")
    return splits


def overlap_note(data: DataSection, splits: Mapping[str, list[OwnRow]]) -> str:
    """What a reader must know of prompts that are both trained on and evaluated; "" where there are none."""
    trained = {row.prompt for row in splits["train"]}
    twice = [row for row in splits["test"] if row.prompt in trained]
    if not twice:
        return ""
    return (
        f"{len(twice)} of {len(splits['test'])} test prompts of {data.name!r} are training prompts too, "
        f"such as that of {twice[0].place}"
    )


def _file(folder: Path, name: str) -> Path:
    return (folder / Path(name).expanduser()).resolve()


def _share_of(prompt: str) -> float:
    """A number in 0..1 that the prompt alone decides."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64


def _rows(data: DataSection, name: str) -> list[OwnRow]:
    path, column = Path(name), data.completion
    rows = read_rows(path, FORMATS[path.suffix])
    prompts = _column(rows, data.prompt, "prompt")
    completions = _column(rows, data.completion, "completion") if data.completion else [""] * len(rows)
    return [
        OwnRow(prompt, answer, {**row.values, data.prompt: prompt, **({column: answer} if column else {})}, row.place)
        for row, prompt, answer in zip(rows, prompts, completions, strict=True)
    ]


def text_of(row: Row, column: str, told: str = "") -> str:
    """The text in a column of a row; a number as it prints.

    Raises:
        UsageError: there is none; `told` says whose column it is.
    """
    value = row.values.get(column)
    if value is None:
        raise UsageError(
            f"{row.place}: no value in column {column!r}{told}; its columns are {', '.join(map(repr, row.values))}"
        )
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"{row.place}: column {column!r}{told} is no text, but {type(value).__name__}")
    if not (text := str(value)).strip():
        raise UsageError(f"{row.place}: column {column!r}{told} is empty")
    return text


def _column(rows: list[Row], column: str, key: str) -> list[str]:
    """The texts of a column, which all rows have, in values of one type."""
    told = f" (data.{key})"
    texts = [text_of(row, column, told) for row in rows]
    usual = Counter(type(row.values[column]) for row in rows).most_common(1)[0][0]
    if odd := next((row for row in rows if type(row.values[column]) is not usual), None):
        raise UsageError(
            f"{odd.place}: column {column!r}{told} is of type {type(odd.values[column]).__name__}, in most rows "
            f"{usual.__name__}; make them all of one type"
        )
    return texts
