"""What a worker process does: it imports what is slow once, and then a node at a time."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from statewise.errors import InterruptedTrainingError, StatewiseError
from statewise.folder.store import Store
from statewise.plan.dag import Node, Plan
from statewise.plan.request import Workers
from statewise.run.executor import POLL_S, Answer, NodeEvent
from statewise.storage import records

if TYPE_CHECKING:
    from statewise.run.nodes import Workplace

# Given a node, where to say what happens on the way, and what asks whether to stop: does the node.
Work = Callable[[Node, Callable[[NodeEvent], None], Callable[[], bool]], Answer]


def begin(plan: Plan, store: Store, workers: Workers) -> Work:
    """Once per process: fix the thread count, import what is slow."""
    os.environ["OMP_NUM_THREADS"] = str(workers.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers.utils import logging as transformers_logging

    from statewise.run.nodes import Workplace

    torch.set_num_threads(workers.threads)
    transformers_logging.disable_progress_bar()
    return partial(work, Workplace(plan, store))


def work(place: Workplace, node: Node, tell: Callable[[NodeEvent], None], should_stop: Callable[[], bool]) -> Answer:
    """Do one node in this process; every failure becomes an answer, so that the study can go on."""
    from statewise.loop.train import Observer
    from statewise.run.nodes import run_node

    last_sent = 0.0

    def progress(done: int) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > POLL_S:
            last_sent = time.monotonic()
            tell(NodeEvent("progress", node, done=done))

    observer = Observer(progress, should_stop, lambda message: tell(NodeEvent("warning", node, message=message)))
    try:
        return run_node(place, node, observer)
    except InterruptedTrainingError:
        return {"status": "interrupted"}
    except (StatewiseError, OSError) as error:
        return {"status": "failed", "reason": str(error)}
    except Exception:  # noqa: BLE001  (a defect in one node must not end the others; its traceback is kept)
        path = place.store.arm_folder(node.arm, node.seed) / "traceback.txt"
        reason = traceback.format_exc(limit=0).splitlines()[-1]
        try:
            records.write_bytes(path, traceback.format_exc().encode())
        except OSError as error:
            return {"status": "failed", "reason": f"{reason} (and no traceback: {error})"}
        return {"status": "failed", "reason": f"{reason} (see {path})"}
