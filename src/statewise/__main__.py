"""`statewise` and `python -m statewise`: light, so that Ctrl-C while all else is imported is one line, no traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType

from statewise.streams import INTERRUPTION

INTERRUPTED = 130


def end(number: int, frame: FrameType | None) -> None:
    """End this process, which has nothing to keep yet."""
    os.write(2, f"{INTERRUPTION}\n".encode())
    os._exit(INTERRUPTED)


def main() -> None:
    """Entry point."""
    before = signal.getsignal(signal.SIGINT)
    is_heard = before is signal.default_int_handler  # not where it is ignored, as in the background of a shell
    if is_heard:
        signal.signal(signal.SIGINT, end)
    from statewise.cli import main as call

    signal.signal(signal.SIGINT, before)
    try:
        call()
    finally:
        if is_heard:  # a traceback would be of the interpreter's own end
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
