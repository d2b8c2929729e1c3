"""Jobs that do nothing but what a test says, for real worker processes: they train nothing and import no torch."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path

from statewise.run.executor import JobEvent

DONE = {"status": "trained", "node_s": 0.0}
ALL = [  # of `study_fixture.STUDY` with one seed
    "evaluate:base:0",
    "train:sft:0",
    "evaluate:sft:0",
    "train:opd:0",
    "evaluate:opd:0",
    "train:rl:0",
    "evaluate:rl:0",
]


def begin(folder: Path, script: dict[str, list[str]], starts: list[str]):
    """What a worker calls once: the i-th process does `starts[i]` first, and `script[id][i]` in a job's i-th try."""
    number = count(folder, "starts")
    (folder / f"pid-{number}").write_text(str(os.getpid()))
    Finalize(None, (folder / f"ended-{number}").touch, exitpriority=1)
    act(starts, number)
    return partial(work, folder, script)


def work(folder, script, job, tell, should_stop):
    tell(JobEvent("progress", job))
    act(script.get(job.id, []), count(folder, job.id), should_stop)
    return {"status": "interrupted"} if should_stop() else {**DONE, "pid": os.getpid()}


def count(folder: Path, name: str) -> int:
    """How often this was called before with `name`."""
    for number in range(100):
        try:
            (folder / f"{name}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError(name)


def act(deeds: list[str], index: int, should_stop=lambda: False) -> None:
    deed, _, argument = (deeds[index] if index < len(deeds) else "").partition(" ")
    if deed == "die":
        os.kill(os.getpid(), signal.Signals[argument])
    elif deed == "exit":
        os._exit(int(argument))
    elif deed == "raise":
        raise ImportError(argument)
    elif deed == "hang":
        time.sleep(60)
    elif deed == "wait":
        deadline = time.monotonic() + float(argument)
        while time.monotonic() < deadline and not should_stop():
            time.sleep(0.01)


def kinds(events, kind):
    return [event.job.id for event in events if event.kind == kind]
