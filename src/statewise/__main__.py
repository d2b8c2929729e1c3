"""`statewise` and `python -m statewise`: light, so that Ctrl-C while all else is imported is one line, no traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType

from statewise.interruption import ASKING, INTERRUPTION


def end(number: int, frame: FrameType | None) -> None:
    """End this process, which has nothing to keep yet."""
    os.write(2, f"{INTERRUPTION}\n".encode())
    os._exit(128 + number)


def main() -> None:
    """Entry point."""
    before = {number: signal.getsignal(number) for number in ASKING}
    # Not where one is ignored, as Ctrl-C in the background of a shell and SIGHUP under nohup.
    heard = [number for number in ASKING if before[number] in (signal.default_int_handler, signal.SIG_DFL)]
    for number in heard:
        signal.signal(number, end)
    from statewise.cli import main as call

    for number in heard:
        signal.signal(number, before[number])
    try:
        call()
    finally:
        for number in heard:  # a traceback would be of the interpreter's own end
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
