"""Processes that this one starts and that belong to it: they leave Ctrl-C to it, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from statewise.console.interruption import ASKING


def start_child(name: str, target: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
    """A new process that calls `target` with its end of a pipe and `args`; returns it and the other end."""
    resource_tracker.ensure_running()  # or the first start would run it, and it unblocks signals
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *args), name=name)
    with _asked_later(), _without_main():
        process.start()
    there.close()  # so that it is closed when its process ends
    return process, here


def belong_to_parent() -> None:
    """What such a process calls first: signals that ask a run to stop are its parent's to answer, and it ends with it.

    The folder's lock goes with the parent; a process that went on would write beside those of the next run.
    """
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _asked_later() -> Iterator[None]:
    """Processes started in here do not hear what asks a run to stop: they cannot ignore it before they have begun.

    Blocked rather than ignored, so that one which comes now reaches this process a moment later.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes started in here do not run the caller's script once more: they need nothing of it, and it no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
