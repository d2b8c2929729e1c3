"""What becomes of a command: its exit code, one line about what went wrong, and no traceback of what is no defect.

Exit codes: 0 everything is done, 1 the run failed, 2 the input cannot be used, 3 partly done (interrupted, or some
nodes failed; the same command continues), 130 interrupted outside of a run's work, 141 nobody read all that a command
printed which does nothing else, as of any program before `| head`.
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import typer

from statewise.errors import StatewiseError, UsageError
from statewise.printing import clean_streams
from statewise.streams import INTERRUPTION, outlive_readers

FAILED, USAGE, PARTIAL, INTERRUPTED, UNREAD = 1, 2, 3, 130, 141
# A place that the user named and that cannot be read or written, as against a disk that is full.
NO_SUCH_PLACE = (errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
# Commands that leave something behind: their exit code is of that, whether or not somebody reads what they print.
WORKING = (["run"], ["eval"], ["export"], ["pretrain"])


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
    """Knows of a Ctrl-C, whatever became of its exception: a library that is being imported may make another of it."""

    def __init__(self) -> None:
        self.has_come = False

    def __enter__(self) -> _Interrupt:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:  # not where it is ignored, as in the background of a shell
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True
        raise KeyboardInterrupt


def _call(command: Callable[[], None], interrupt: _Interrupt) -> int:
    """Run the command; returns its exit code, after one line about what went wrong."""
    try:
        command()
    except SystemExit as left:
        if left.code != INTERRUPTED:  # what typer makes of Ctrl-C
            return left.code if isinstance(left.code, int) else 0
    except (StatewiseError, OSError) as error:
        if not interrupt.has_come:
            return _tell(error)
    except BaseException:
        if not interrupt.has_come:
            raise
    typer.echo(INTERRUPTION, err=True)
    return INTERRUPTED


def _tell(error: StatewiseError | OSError) -> int:
    """One line about an error that is no defect of statewise; the exit code that goes with it."""
    if isinstance(error, StatewiseError):
        typer.echo(f"statewise: {error}", err=True)
        return USAGE if isinstance(error, UsageError) else FAILED
    is_usage = error.errno in NO_SUCH_PLACE
    advice = "give another place" if is_usage else "what was written before is still readable"
    told = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    typer.echo(f"statewise: {told}; {advice}", err=True)
    return USAGE if is_usage else FAILED
