"""Processes forked from a server that has imported what takes seconds: one server a test process, whoever asks first.

What it imports and which signals are blocked is settled when it starts. Were it started by a pool, which blocks the
signals that ask a run to stop, no process that is forked from it would ever hear Ctrl-C.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "pytest", "statewise.cli", "statewise.progress", "statewise.report.page", "statewise.report.terminal",
    "statewise.run.run", "statewise.run.jobs", "torch", "transformers", "lm_eval",
    "transformers.models.qwen3.modeling_qwen3",
]  # fmt: skip


def start_server() -> None:
    """Start the server, if it does not run yet."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def command(arguments, log, has_workers=True):
    """`statewise <arguments>` with its output in the file `log`: the target of a process."""
    stream = log.open("w")
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    # A test run that was itself started in the background inherits SIGINT as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda kind: get_context("fork") if has_workers else None
    sys.argv = ["statewise", *map(str, arguments)]
    from statewise import cli

    cli.main()


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # a zombie waits for init, and writes nothing
