"""Rewards of a user's own data: by name, or a Python function `(prompt, completion, row) -> float` in 0..1.

A function that raises, takes too long or returns no number could not be scored: nan, which is counted, and never 0.
A model that rewards (`model:NAME`) is made where models are; what it must answer is a `ManyRewards`.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol

from statewise.errors import UsageError
from statewise.tasks.conversations import Turn

LIMIT_S = 5.0  # of one answer; a function that asks a server may need a second
AGAIN_S = 0.2  # then it is stopped again and again, should it catch that
REGEX, MODEL = "regex", "model"
NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")
# Of a prompt, an answer and its row: 0..1.
Function = Callable[[str, str, Mapping[str, Any]], Any]
Asked = str | Sequence[Turn]  # a prompt, or the turns of a conversation before an answer


def file_of_reward(reward: str) -> str | None:
    """The Python file that a reward names, as it is written; None of one by name."""
    path, _, function = reward.rpartition(":")
    return path if path.endswith(".py") and function.isidentifier() else None


def model_of_reward(reward: str) -> str | None:
    """The name below `[models]` that a reward names, "" if it leaves it out; None where no model rewards."""
    kind, separator, name = reward.partition(":")
    return name if separator and kind == MODEL else None


class ManyRewards(Protocol):
    """A reward that reads many answers at once."""

    @property
    def told(self) -> str:
        """How it makes a number of an answer, for a report."""

    def score_all(self, asked: Sequence[tuple[Asked, str]]) -> tuple[list[float], float]:
        """Of prompts and answers: the rewards 0..1, nan where one could not be scored; and the FLOPs that it took."""


@dataclass(frozen=True)
class RewardFunction:
    """How an answer is rewarded; `told`: what it is called in errors."""

    told: str
    function: Function

    def __call__(self, prompt: str, answer: str, row: Mapping[str, Any]) -> float:
        """The reward 0..1 of an answer; nan if it could not be scored.

        Raises:
            UsageError: it is a number outside of 0..1.
        """
        try:
            return self.checked(prompt, answer, row)
        except _Unscored:
            return math.nan

    def checked(self, prompt: str, answer: str, row: Mapping[str, Any]) -> float:
        """As a call, but an answer that could not be scored is an error, which says why.

        Raises:
            _Unscored: it could not be scored.
            UsageError: a number outside of 0..1.
        """
        began = time.monotonic()
        try:
            with _limited(), _silent():
                value = self.function(prompt, answer, dict(row))
        except (Exception, SystemExit) as error:
            raise _Unscored(f"raised {type(error).__name__}: {error}") from error
        except _TooLong:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise _Unscored(f"took more than {LIMIT_S:g} s") from None
        if time.monotonic() - began > LIMIT_S:  # it caught what should have ended it
            raise _Unscored(f"took more than {LIMIT_S:g} s")
        if hasattr(value, "item"):  # NumPy's and torch's numbers
            with suppress(Exception):
                value = value.item()
        if isinstance(value, bool):
            return float(value)
        if not isinstance(value, Real) or math.isnan(float(value)):
            raise _Unscored(f"returned {value!r}, which is no number")
        if not 0 <= float(value) <= 1:
            raise UsageError(f"reward {self.told}: returned {value!r}; a reward is a number from 0 to 1")
        return float(value)

    def problem(self, prompt: str, answer: str, row: Mapping[str, Any]) -> str:
        """Why an answer could not be scored; "" if it could. Raises as a call."""
        try:
            self.checked(prompt, answer, row)
        except _Unscored as error:
            return str(error)
        return ""


class _Unscored(Exception):
    """A function gave no reward."""


class _TooLong(BaseException):
    """Ends a function; no `Exception`, which it may catch."""


class _Nowhere(io.TextIOWrapper):
    """Text and bytes that are written to it are thrown away."""

    def __init__(self) -> None:
        super().__init__(io.BufferedWriter(_NoBytes()), encoding="utf-8", write_through=True)


class _NoBytes(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


@contextmanager
def _silent() -> Iterator[None]:
    """What is printed inside is not kept: an answer at a time, it could fill memory and screen."""
    with redirect_stdout(_Nowhere()), redirect_stderr(_Nowhere()):
        yield


@contextmanager
def _limited() -> Iterator[None]:
    """At most `LIMIT_S` seconds of Python inside, in the main thread, in which workers and commands run."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only a main thread can be interrupted
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def make_reward(reward: str, completion: str, digest: str | None = None) -> RewardFunction:
    """The reward that `[data]` names.

    Args:
        reward: as `[data]` names it, a file by its path.
        completion: column of the right answer.
        digest: SHA-256 that the file must have; None: any.

    Raises:
        UsageError: a file that changed, cannot be imported or has no such function, or a pattern that is none.
    """
    if (path := file_of_reward(reward)) is not None:
        name = reward.rpartition(":")[2]
        return RewardFunction(f"{Path(path).name}:{name}", _import(Path(path), name, digest))
    kind, _, argument = reward.partition(":")
    if kind == MODEL:
        raise UsageError(f"data.reward {reward!r}: a reward model is asked by the runs of its study alone", ("reward",))
    compare = NAMED[kind]
    pattern = None
    if kind == REGEX:
        try:
            pattern = re.compile(argument)
        except re.error as error:
            raise UsageError(f"data.reward {reward!r}: no regular expression: {error}", ("reward",)) from None
        if not argument:
            raise UsageError(f"data.reward {reward!r}: needs a pattern after the colon", ("reward",))
    return RewardFunction(reward, lambda prompt, answer, row: compare(answer, str(row[completion]), pattern))


def _import(path: Path, name: str, digest: str | None) -> Function:
    """The function `name` of a Python file, which is run for it; what it prints is not kept."""
    source = path.read_bytes()
    if digest is not None and hashlib.sha256(source).hexdigest() != digest:
        raise UsageError(f"data.reward: {path} changed since the study was read; run the same command again")
    module = ModuleType(f"statewise_reward_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look it up
    try:
        with _silent():
            exec(compile(source, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise UsageError(f"data.reward: {path} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UsageError(f"data.reward: {path} has no function {name!r}; it has {known or 'none'}")
    return function  # type: ignore[no-any-return]


def exact_match(answer: str, right: str, pattern: re.Pattern[str] | None = None) -> bool:
    """The answer is the completion, but for white space around it."""
    return answer.strip() == right.strip()


def contains(answer: str, right: str, pattern: re.Pattern[str] | None = None) -> bool:
    """The answer holds the completion."""
    return right.strip() in answer


def math_equal(answer: str, right: str, pattern: re.Pattern[str] | None = None) -> bool:
    """The last number of the answer is that of the completion; commas between thousands do not count."""
    given, wanted = _last_number(answer), _last_number(right)
    if wanted is None:
        raise ValueError("the completion holds no number")
    return given == wanted


def _last_number(text: str) -> Decimal | None:
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def regex_equal(answer: str, right: str, pattern: re.Pattern[str] | None = None) -> bool:
    """What the pattern finds last in the answer (its first group, if it has one) is what it finds in the completion."""
    given, wanted = (_last_found(text, pattern) for text in (answer, right))
    if wanted is None:
        raise ValueError("the pattern finds nothing in the completion")
    return given == wanted


def _last_found(text: str, pattern: re.Pattern[str] | None) -> str | None:
    assert pattern is not None
    found = [match[1] if pattern.groups else match[0] for match in pattern.finditer(text)]
    return found[-1] if found else None


NAMED: dict[str, Callable[[str, str, re.Pattern[str] | None], bool]] = {
    "exact_match": exact_match, "contains": contains, "math": math_equal, REGEX: regex_equal,
}  # fmt: skip
