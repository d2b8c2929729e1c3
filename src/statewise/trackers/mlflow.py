"""MLflow, where its own variable says (`MLFLOW_TRACKING_URI`; else `mlflow.db`); the experiment is the study."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import ClassVar

from statewise.plan.contract import flatten
from statewise.trackers.tracker import TrackedRun, Tracker

TAG = "statewise.id"
STEPS = "statewise.steps"  # how many it has whole: one that was cut off between two calls is sent again
REFUSED = re.compile(r"[^\w\-. /]")  # of MLflow's names
METRICS, PARAMETERS = 1000, 100  # in one call, at most
PARAMETER_CHARACTERS = 500  # of a value, for stores of every version


class MLflow(Tracker):
    """One MLflow run for each, found again by its tag; goes on after the last step that it has."""

    requires: ClassVar[tuple[str, ...]] = ("mlflow",)

    def __init__(self) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._ids: dict[str, str] = {}

    def start(self, run: TrackedRun) -> int:
        experiment = self._experiment(run.study)
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'")
        self.place = f"experiment {run.study}: mlflow ui --backend-store-uri {self._client.tracking_uri}"
        if found:
            self._ids[run.id] = found[0].info.run_id
            self._client.update_run(self._ids[run.id], status="RUNNING")
            if not found[0].data.params:  # it was cut off before
                self._describe(run)
            return int(found[0].data.tags.get(STEPS, 0))
        begun = self._client.create_run(experiment, run_name=run.name, tags={TAG: run.id})
        self._ids[run.id] = begun.info.run_id
        self._describe(run)
        return 0

    def log(self, run: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        told = [Metric(REFUSED.sub("_", key), value, now_ms, step) for key, value in metrics.items()]
        for first in range(0, len(told), METRICS):
            self._client.log_batch(self._ids[run.id], metrics=told[first : first + METRICS])
        self._client.set_tag(self._ids[run.id], STEPS, step + 1)

    def finish(self, run: TrackedRun, is_done: bool) -> None:
        self._client.set_terminated(self._ids[run.id], "FINISHED" if is_done else "KILLED")

    def _experiment(self, study: str) -> str:
        found = self._client.get_experiment_by_name(study)
        return str(found.experiment_id if found else self._client.create_experiment(study))

    def _describe(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        settings = flatten(run.config).items()
        params = [Param(REFUSED.sub("_", key), str(value)[:PARAMETER_CHARACTERS]) for key, value in settings]
        for first in range(0, len(params), PARAMETERS):
            self._client.log_batch(self._ids[run.id], params=params[first : first + PARAMETERS])
