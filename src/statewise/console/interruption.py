"""Signals that ask a command to end, and the line that says it has. Imported before anything slow."""

from __future__ import annotations

import signal

# A terminal or a cluster sends them to every process of a run; only the parent answers for them.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTION = "statewise: interrupted; `run` and `eval` keep what is done, the same command resumes"


def heard() -> list[int]:
    """Those that end this process: not what is ignored, as Ctrl-C in a shell's background and SIGHUP under nohup."""
    ending = (signal.default_int_handler, signal.SIG_DFL)
    return [number for number in ASKING if signal.getsignal(number) in ending]
