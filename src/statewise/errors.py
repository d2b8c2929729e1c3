"""The errors statewise raises on purpose: each says what failed, what was found, where, and what to do.

The command line turns a `UsageError` into exit code 2 and one message without a traceback.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# How Rust's standard library, and so safetensors and tokenizers, tell an error of the system.
RUST_ERROR = re.compile(r"\(os error (\d+)\)")


class StatewiseError(Exception):
    """Base of all errors that statewise raises on purpose."""


class UsageError(StatewiseError):
    """The user's input (study, key, task, folder, data file) cannot be used as it is.

    `keys`: the key that it is about, below the table at hand, for whoever knows where that table stands.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class NotHereError(UsageError):
    """What the input names is elsewhere (a hub that cannot be reached) and may be as good as any."""


class DamagedError(UsageError):
    """A file is not what was recorded of it: changed, cut off or gone."""


class DivergedError(StatewiseError):
    """A loss or gradient is not finite; the arm is a result marked diverged, the study goes on."""


class OutOfMemoryError(StatewiseError):
    """Even the smallest part of an update does not fit the memory of the device."""


class FailedRunError(StatewiseError):
    """Jobs of a run failed; what the others left is in its folder. `failed`: job → reason."""

    def __init__(self, message: str, failed: dict[str, str]) -> None:
        super().__init__(message)
        self.failed = failed


class InterruptedTrainingError(StatewiseError):
    """Training stopped at a checkpoint because the user asked for it; the same command continues it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A full or failing disk in here names `path`: Python's errors of a write name no file, Rust's are no `OSError`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = RUST_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def unknown(what: str, got: str, known: Iterable[str], where: str = "", keys: tuple[str, ...] = ()) -> UsageError:
    """The error for a mistyped name: lists the known names and the nearest one.

    Args:
        what: kind of thing, e.g. "signal".
        got: what the user typed.
        known: what could have been typed.
        where: place it was read from, e.g. "study.toml:12", or "".
        keys: as of `UsageError`.
    """
    names = sorted(set(known))
    nearest = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    place = f"{where}: " if where else ""
    return UsageError(f"{place}unknown {what} {got!r}. {hint}Known: {', '.join(names)}.", keys)
