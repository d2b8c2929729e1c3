"""`[data]` of a study: a file of prompts and answers, and how an answer is rewarded, in the place of a target task.

The rows become a task of lm-eval's, so that training, evaluation, chat templates and records are those of any other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from statewise.errors import UsageError
from statewise.kind import Strict
from statewise.storage import records
from statewise.storage.rows import Row
from statewise.tasks.conversations import Turn, Turns, answers_of, first_asked, is_plain, plain_text, turns_of
from statewise.tasks.rewards import NAMED, file_of_reward, model_of_reward
from statewise.tasks.row_sources import digest_source, locate_rows, read_source

METRIC = "reward"
REWARD_METRIC = f"{METRIC},none"  # of such a task, as `shared.reward_metric` names it
MOST_NEW_TOKENS = 2**20  # the study's own limit is the one that counts
MIN_TEST_ROWS = 2
PROMPT, COMPLETION = "prompt", "completion"  # columns; where a column of conversations is named, of a reward's row
TURNS = "turns"  # of a document
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"


class DataSection(Strict):
    """`[data]`: the study's target, as rows. `name`: as records and reports call it; the study's own if "".

    `train`, `test`: a `.jsonl`, `.json`, `.csv` or `.parquet`, or a folder that datasets saved (`folder:split`),
    relative to the study file, or `hub:org/name[/config][@revision][:split]`; without `test`, the share `test_share` of
    the training rows is kept for it, by a hash of the prompt, so that equal prompts stay together. `prompt`,
    `completion`: columns; the latter is "" where nothing imitates it or compares with it. `messages`: the column of
    conversations in their place; the last turn of the assistant is the answer, and with `turns` "all" every one of a
    training conversation, each to the turns before it. `delimiter` stands between prompt and answer; an answer ends at
    the first of `stop`, if not by itself. `reward`: `exact_match`, `contains`, `math`, `regex:PATTERN`
    (`tasks.rewards`), `file.py:function`, or `model:NAME` of a `[models.NAME]`. `digests` of files and rows, and
    commits, are filled in.
    """

    name: Annotated[str, Field(pattern=f"^({NAME})?$")] = ""
    train: str
    test: str | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    prompt: str = PROMPT
    completion: str = COMPLETION
    messages: str = ""
    turns: Turns = "last"
    delimiter: str = " "
    stop: list[Annotated[str, Field(min_length=1)]] = []
    reward: str = "exact_match"
    digests: dict[str, str] = {}

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if (self.test is None) == (self.test_share is None):
            raise ValueError("give one of test (a file) and test_share (of the training rows)")
        if not self.completion and self.reward.partition(":")[0] in NAMED:
            raise ValueError(f"reward {self.reward!r} compares with the completion; name its column")
        if self.messages and (self.prompt, self.completion or COMPLETION) != (PROMPT, COMPLETION):
            raise ValueError("give one of messages (a column of conversations) and prompt with completion")
        if self.messages == COMPLETION:
            raise ValueError(
                f"a reward's row has the answer as {COMPLETION!r}; give the column of messages another name"
            )
        if self.turns == "all" and not (self.messages and self.completion):
            raise ValueError('turns = "all" is of messages (a column of conversations) with answers')
        return self

    def located(self, folder: Path, study: str) -> Self:
        """The same with absolute paths, those given being relative to `folder`, and with the digests of the files.

        Args:
            folder: of the study file.
            study: the study's name, which the data have too unless they have one of their own.

        Raises:
            UsageError: a file is not there or of no known format; an unknown reward.
        """
        rows, digests = dict[str, str](), dict[str, str]()
        for key, name in (("train", self.train), ("test", self.test)):
            if name:
                with _naming(key):
                    rows[key] = locate_rows(name, folder, key)
                    digests |= {f"{key}_{what}" if what else key: one for what, one in digest_source(rows[key]).items()}
        reward, script = self.reward, file_of_reward(self.reward)
        if script is not None:
            path = (folder / Path(script).expanduser()).resolve()
            if not path.is_file():
                raise UsageError(f"data.reward: there is no file {path}", ("reward",))
            reward = f"{path}:{reward.rpartition(':')[2]}"
            digests["reward"] = records.digest_file(path)
        elif model_of_reward(reward) is None and reward.partition(":")[0] not in NAMED:
            raise UsageError(
                f"data.reward {reward!r}: unknown; expected {', '.join(NAMED)} or a file and its function, "
                "such as rewards.py:exact, or model:NAME of a reward model [models.NAME]",
                ("reward",),
            )
        return self.changed(**rows, name=self.name or study, reward=reward, digests=digests)

    @property
    def identity(self) -> dict[str, Any]:
        """What it means, wherever its files lie; for fingerprints."""
        function = {"reward": self.reward.rpartition(":")[2]} if "reward" in self.digests else {}
        # Studies of prompts and answers have the fingerprints that they had before there were conversations.
        unused = set[str]() if self.messages else {"messages", "turns"}
        return {**self.model_dump(mode="json", exclude={"train", "test", *unused}), **function}

    @property
    def version(self) -> str:
        """Of the task, for its protocol: what another reward scored is not compared."""
        return f"{self.identity['reward']} {self.digests.get('reward', '')[:8]}".strip()

    @property
    def code(self) -> str | None:
        """The Python that its reward runs, for those who are told before it does."""
        return self.reward if "reward" in self.digests else None


@dataclass(frozen=True)
class OwnRow:
    """One prompt and its answer, "" for none; `values`: the whole row, these two as text; `place`: file and line.

    `turns`: of a conversation, those before the answer, of which `prompt` is the plain form.
    """

    prompt: str
    completion: str
    values: dict[str, Any]
    place: str
    turns: tuple[Turn, ...] = ()

    @property
    def document(self) -> dict[str, str]:
        """As lm-eval holds it: nothing of where the row lies, since it enters the items' digests."""
        row = json.dumps(self.values, default=str)  # Parquet has dates
        document = {"prompt": self.prompt, "completion": self.completion, "row": row}
        return {**document, TURNS: json.dumps(self.turns)} if self.turns else document

    @property
    def beginning(self) -> str:
        """What decides whether it is trained on or evaluated: the prompt, of a conversation its first question."""
        return first_asked(self.turns) if self.turns else self.prompt

    @property
    def needs_chat(self) -> bool:
        """Whether only a chat template can render it."""
        return bool(self.turns) and not is_plain(self.turns)


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
        if name and data.digests and digest_source(name)[""] != data.digests[key]:
            raise UsageError(f"data.{key}: {name} changed since the study was read; run the same command again")
    splits = _split(data, _rows(data, data.train))
    if len(splits["test"]) < MIN_TEST_ROWS:
        raise UsageError(
            f"{data.test or data.train}: {len(splits['test'])} test row; an interval needs {MIN_TEST_ROWS} or more"
        )
    return splits


def _split(data: DataSection, train: list[list[OwnRow]]) -> dict[str, list[OwnRow]]:
    """Training rows with all their examples; of a test row the last alone, since items are taken as independent."""
    if data.test is not None:
        return {"train": [*chain(*train)], "test": [one[-1] for one in _rows(data, data.test)]}
    kept = [_share_of(one[0].beginning) < (data.test_share or 0) for one in train]
    splits = {
        "train": [*chain(*(one for one, is_kept in zip(train, kept, strict=True) if not is_kept))],
        "test": [one[-1] for one, is_kept in zip(train, kept, strict=True) if is_kept],
    }
    for split, rows in splits.items():
        if not rows:
            raise UsageError(f"{data.train}: of its {len(train)} rows test_share {data.test_share:g} leaves no {split}")
    return splits


def overlap_note(data: DataSection, splits: Mapping[str, list[OwnRow]]) -> str:
    """What a reader must know of prompts that are both trained on and evaluated; "" where there are none."""
    trained = {row.beginning for row in splits["train"]}
    twice = [row for row in splits["test"] if row.beginning in trained]
    if not twice:
        return ""
    told = (
        "test conversations of {} begin as training conversations do"
        if data.messages
        else ("test prompts of {} are training prompts too")
    )
    return f"{len(twice)} of {len(splits['test'])} {told.format(repr(data.name))}, such as that of {twice[0].place}"


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """An error in here is one of this key."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"data.{key}: {error}", (key,)) from error


def _share_of(prompt: str) -> float:
    """A number in 0..1 that the prompt alone decides."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64


def _rows(data: DataSection, name: str) -> list[list[OwnRow]]:
    """The examples of every row: one, or of a conversation those of its turns."""
    rows = read_source(name)
    if data.messages:
        return [_conversation(data, row) for row in rows]
    column = data.completion
    prompts = _column(rows, data.prompt, "prompt")
    completions = _column(rows, column, "completion") if column else [""] * len(rows)
    return [
        [OwnRow(prompt, answer, {**row.values, data.prompt: prompt, **({column: answer} if column else {})}, row.place)]
        for row, prompt, answer in zip(rows, prompts, completions, strict=True)
    ]


def _conversation(data: DataSection, row: Row) -> list[OwnRow]:
    """The examples of a conversation. What a reward gets of it ends with the answer, which is none of its future."""
    turns = turns_of(row, data.messages, " (data.messages)")
    examples = []
    for before, answer in answers_of(turns, row.place, data.turns, has_answer=bool(data.completion)):
        place = row.place if data.turns == "last" else f"{row.place}, turn {len(before) + 1}"
        prompt, column = plain_text(before), data.completion
        if data.code and column and row.values.get(column, answer) != answer:
            raise UsageError(
                f"{row.place}: has a column {column!r} of its own, where a reward is given the answer of the "
                "conversation; give that column another name"
            )
        shown = {data.messages: turns[: len(before) + bool(column)], **({column: answer} if column else {})}
        values = {data.prompt: prompt, **row.values, **shown}
        examples.append(OwnRow(prompt, answer, values, place, tuple(before)))
    return examples


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
    if odd := odd_type(rows, column, told):
        raise UsageError(odd)
    return texts


def odd_type(rows: list[Row], column: str, told: str = "") -> str:
    """Where the values of a column, which all rows have, are of another type than in most; "" where they are not."""
    usual = Counter(type(row.values[column]) for row in rows).most_common(1)[0][0]
    odd = next((row for row in rows if type(row.values[column]) is not usual), None)
    if odd is None:
        return ""
    return (
        f"{odd.place}: column {column!r}{told} is of type {type(odd.values[column]).__name__}, in most rows "
        f"{usual.__name__}; make them all of one type"
    )
