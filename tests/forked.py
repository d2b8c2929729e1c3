"""Processes forked from a server that has imported what takes seconds: one server a test process, whoever asks first.

What it imports and which signals are blocked is settled when it starts. Were it started by a pool, which blocks the
signals that ask a run to stop, no process that is forked from it would ever hear Ctrl-C.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "pytest", "statewise.cli", "statewise.progress", "statewise.report.page", "statewise.report.terminal",
    "statewise.run.run", "statewise.run.nodes", "torch", "transformers", "lm_eval",
    "transformers.models.qwen3.modeling_qwen3",
]  # fmt: skip


def start_server() -> None:
    """Start the server, if it does not run yet."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
