"""A tracker that keeps what it is told in a file, as a service would: and is asked what it holds at each start."""

from __future__ import annotations

import json
import os
import time
from typing import ClassVar

from statewise.trackers import Tracker


class FakeTracker(Tracker):
    """Writes a line a call to a file beside the run folder."""

    place = "a file"
    fails: ClassVar[dict[str, list[Exception]]] = {}  # what a method raises, first to last

    def start(self, run):
        self._act("start", run, config=run.config)
        return 1 + max((said["step"] for said in told(file_of(run), run.name) if said["call"] == "log"), default=-1)

    def log(self, run, step, metrics):
        self._act("log", run, step=step, metrics=dict(metrics))

    def finish(self, run, is_done):
        self._act("finish", run, is_done=is_done)

    def _act(self, call, run, **what):
        if self.fails.get(call):
            raise self.fails[call].pop(0)
        with file_of(run).open("a") as stream:
            stream.write(json.dumps({"call": call, "run": run.name, "id": run.id, **what}) + "\n")


class DyingTracker(FakeTracker):
    """Takes its process along when it begins."""

    def start(self, run):
        os._exit(9)


class HangingTracker(FakeTracker):
    """Never comes back from its second point."""

    def log(self, run, step, metrics):
        super().log(run, step, metrics)
        if step:
            time.sleep(60)


def file_of(run):
    return run.folder.parent / "told.jsonl"


def told(file, name=None):
    """What the tracker was told, of one run or of all."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if name in (None, line["run"])]


def points(file):
    """Run → the points of it, in the order in which they came."""
    found = {}
    for line in told(file):
        if line["call"] == "log":
            found.setdefault(line["run"], []).append((line["step"], line["metrics"]))
    return found
