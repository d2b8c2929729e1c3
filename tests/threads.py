"""A pool whose one worker is a thread of the test process, which has torch and lm-eval imported: no process starts."""

from __future__ import annotations

import queue
import threading


class ThreadPool:
    """As `run.pool.Pool`, for nodes that neither die nor hang."""

    def __init__(self, count, begin):
        self._begin, self._work, self._stop = begin, None, threading.Event()
        self._said = queue.Queue()
        self.nodes = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert not self.nodes or any(error)

    @property
    def num_free(self):
        return 1 - len(self.nodes)

    def submit(self, node):
        self.nodes.append(node)
        threading.Thread(target=self._serve, args=(node,), daemon=True).start()

    def _serve(self, node):
        self._work = self._work or self._begin()
        self._said.put((node, self._work(node, lambda said: self._said.put((node, said)), self._stop.is_set)))

    def events(self, timeout_s):
        try:
            node, message = self._said.get(timeout=timeout_s)
        except queue.Empty:
            return []
        if isinstance(message, dict):
            self.nodes.remove(node)
        return [(node, message)]

    def stop(self):
        self._stop.set()
