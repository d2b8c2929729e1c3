"""A pool whose one worker is a thread of the test process, which has torch and lm-eval imported: no process starts."""

from __future__ import annotations

import queue
import threading


class ThreadPool:
    """As `run.pool.Pool`, for jobs that neither die nor hang."""

    def __init__(self, count, begin):
        self._begin, self._work, self._stop = begin, None, threading.Event()
        self._said = queue.Queue()
        self.jobs = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert not self.jobs or any(error)

    @property
    def num_free(self):
        return 1 - len(self.jobs)

    def submit(self, job):
        self.jobs.append(job)
        threading.Thread(target=self._serve, args=(job,), daemon=True).start()

    def _serve(self, job):
        self._work = self._work or self._begin()
        self._said.put((job, self._work(job, lambda said: self._said.put((job, said)), self._stop.is_set)))

    def events(self, timeout_s):
        try:
            job, message = self._said.get(timeout=timeout_s)
        except queue.Empty:
            return []
        if isinstance(message, dict):
            self.jobs.remove(job)
        return [(job, message)]

    def stop(self):
        self._stop.set()
