"""What a worker process does: it imports what is slow once, and then a job at a time."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from statewise.errors import InterruptedTrainingError, StatewiseError
from statewise.folder.store import Store
from statewise.plan.dag import Job, Plan
from statewise.plan.request import Workers
from statewise.run.executor import POLL_S, Answer, JobEvent
from statewise.storage import records

if TYPE_CHECKING:
    from statewise.run.jobs import Workplace

# Given a job, where to say what happens on the way, and what asks whether to stop: does the job.
Work = Callable[[Job, Callable[[JobEvent], None], Callable[[], bool]], Answer]


def begin(plan: Plan, store: Store, workers: Workers) -> Work:
    """Once per process: fix the thread count, import what is slow."""
    os.environ["OMP_NUM_THREADS"] = str(workers.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers.utils import logging as transformers_logging

    from statewise.run.jobs import Workplace

    torch.set_num_threads(workers.threads)
    transformers_logging.disable_progress_bar()
    return partial(work, Workplace(plan, store))


def work(workplace: Workplace, job: Job, tell: Callable[[JobEvent], None], should_stop: Callable[[], bool]) -> Answer:
    """Do one job in this process; every failure becomes an answer, so that the study can go on."""
    from statewise.loop.train import Observer
    from statewise.run.jobs import run_job

    last_sent = 0.0

    def progress(done: int) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > POLL_S:
            last_sent = time.monotonic()
            tell(JobEvent("progress", job, done=done))

    observer = Observer(progress, should_stop, lambda message: tell(JobEvent("warning", job, message=message)))
    try:
        return run_job(workplace, job, observer)
    except InterruptedTrainingError:
        return {"status": "interrupted"}
    except (StatewiseError, OSError) as error:
        return {"status": "failed", "reason": str(error)}
    except Exception:  # noqa: BLE001  (a defect in one job must not end the others; its traceback is kept)
        path = workplace.store.arm_folder(job.arm, job.seed) / "traceback.txt"
        reason = traceback.format_exc(limit=0).splitlines()[-1]
        try:
            records.write_bytes(path, traceback.format_exc().encode())
        except OSError as error:
            return {"status": "failed", "reason": f"{reason} (and no traceback: {error})"}
        return {"status": "failed", "reason": f"{reason} (see {path})"}
