"""What becomes of a command: its exit code, one line about what went wrong, and no traceback of what is no defect.

Exit codes: 0 everything is done, 1 the run failed, 2 the input cannot be used, 3 partly done (interrupted, or some
jobs failed; the same command continues), 130 interrupted outside of a run's work (143 by SIGTERM, 129 by SIGHUP), 141
nobody read all that a command printed which does nothing else, as of any program before `| head`.

With `--json` what went wrong is also an object on standard output, {"error": {"type": …, "message": …}}, in the place
of the answer: who reads that stream finds JSON there. Standard error is for people, with `--json` or without.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import typer

from statewise.console.interruption import INTERRUPTION, heard
from statewise.console.printing import clean_streams
from statewise.console.streams import outlive_readers
from statewise.errors import StatewiseError, UsageError

FAILED, USAGE, PARTIAL, INTERRUPTED, UNREAD = 1, 2, 3, 130, 141
# A place that the user named and that cannot be read or written, as against a disk that is full.
NO_SUCH_PLACE = (errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
# A mistyped option or value: click's `UsageError`, of which typer has a copy of its own without a public name.
MISUSE: Any = typer.BadParameter.__mro__[1]
# Commands that leave something behind: their exit code is of that, whether or not somebody reads what they print.
WORKING = (["run"], ["eval"], ["export"], ["samples"], ["pretrain"])


def answer(command: Callable[[], None]) -> NoReturn:
    """Run `command`, the command line, and end this process with its exit code.

    What nobody reads is dropped: a training does not end because a pager is closed.
    """
    outputs = outlive_readers()
    clean_streams()
    with _Interrupt() as interrupt:
        code = _call(command, interrupt)
        for stream in (one for one in (sys.stdout, sys.stderr) if one is not None):
            stream.flush()
    for output in outputs:
        if output.error is None:
            continue
        if not output.has_lost_its_reader:
            typer.echo(f"statewise: {output.label}: {output.error.strerror}; not all was printed", err=True)
            code = code or FAILED
        elif sys.argv[1:2] not in WORKING:
            code = code or UNREAD
    sys.exit(code)


class _Interrupt:
    """Knows of a signal that asked to end, whatever became of its exception: a library that is being imported may make
    another of it. `number`: of the signal, 0 where none has come.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> _Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in heard()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        raise KeyboardInterrupt


def _call(command: Callable[[], None], interrupt: _Interrupt) -> int:
    """Run the command; returns its exit code, after one line about what went wrong."""
    try:
        command()
    except SystemExit as left:
        if left.code != INTERRUPTED:  # what typer makes of Ctrl-C
            if isinstance(left.__context__, MISUSE):  # which typer has told, with the usage
                _tell_json("UsageError", left.__context__.format_message())
            return left.code if isinstance(left.code, int) else 0
    except (StatewiseError, OSError) as error:
        if not interrupt.number:
            return _tell(error)
    except BaseException:
        if not interrupt.number:
            raise
    _say("KeyboardInterrupt", INTERRUPTION)
    return 128 + interrupt.number if interrupt.number else INTERRUPTED


def _tell(error: StatewiseError | OSError) -> int:
    """One line about an error that is no defect of statewise; the exit code that goes with it."""
    name = type(error).__name__
    if isinstance(error, StatewiseError):
        _say(name, f"statewise: {error}")
        return USAGE if isinstance(error, UsageError) else FAILED
    is_usage = error.errno in NO_SUCH_PLACE
    advice = "give another place" if is_usage else "what was written before is still readable"
    told = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    _say(name, f"statewise: {told}; {advice}")
    return USAGE if is_usage else FAILED


def _say(name: str, line: str) -> None:
    typer.echo(line, err=True)
    _tell_json(name, line.removeprefix("statewise: "))


def _tell_json(name: str, message: str) -> None:
    """Print what went wrong in the place of an answer in JSON, if that was asked for."""
    if "--json" in sys.argv[1:]:
        typer.echo(json.dumps({"error": {"type": name, "message": message}}, indent=2))
