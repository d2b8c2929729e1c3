"""`statewise` and `python -m statewise`: light, so that Ctrl-C while all else is imported is one line, no traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType

from statewise.console.interruption import INTERRUPTION, heard


def end(number: int, frame: FrameType | None) -> None:
    """End this process, which has nothing to keep yet."""
    os.write(2, f"{INTERRUPTION}\n".encode())
    os._exit(128 + number)


def main() -> None:
    """Entry point."""
    before = {number: signal.signal(number, end) for number in heard()}
    from statewise.cli import main as call

    for number, handler in before.items():
        signal.signal(number, handler)
    try:
        call()
    finally:
        for number in before:  # a traceback would be of the interpreter's own end
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
