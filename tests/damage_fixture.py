"""A study that runs in milliseconds: its jobs write what real ones do, in one process, from nothing but their keys."""

from __future__ import annotations

import os

import numpy as np
from safetensors.numpy import save_file
from study_fixture import STUDY, fake_model, small_plan

from statewise.batch import Trajectory, collate
from statewise.folder.store import Store
from statewise.loop.recorder import Recorder
from statewise.run import executor, jobs, run, worker
from statewise.run.jobs import Workplace, run_job
from statewise.storage import records

TASKS = {
    "pocket_math": ("greedy", "exact_match,flexible-extract"),
    "pocket_facts": ("choices", "acc,none"),
    "pocket_myths": ("choices", "acc,none"),
}
SMALL = STUDY.replace("seeds = [0, 1]", "seeds = [0]").split("[arms.rl]")[0]


def numbers(*words) -> np.random.Generator:
    return np.random.default_rng(int(records.digest_json(list(map(str, words)))[:8], 16))


def fake_train(place, job, observer):
    folder, arm = place.store.arm_folder(job.arm, job.seed), place.plan.config.arms[job.arm]
    jobs._start_afresh_if_changed(place, job)
    teacher = b""
    if arm.teacher:
        place.needed("train", arm.teacher, job.seed)
        teacher = (place.store.arm_folder(arm.teacher, job.seed) / "model" / "model.safetensors").read_bytes()
    recorder = Recorder(folder)
    recorder.rewind(0, recorder.state_hash, recorder.reward_hash)
    for step in range(4):
        tokens = tuple(numbers(job.arm, step).integers(1, 9, 5).tolist())
        states = collate([Trajectory(tokens, 2, step, "dataset", "data")])
        recorder.states(step, states, [])
        recorder.step(step, {"loop/loss_nats": 1.0 + step}, {"loop/update_s": 0.1})
        if step % 2:
            recorder.flush(step + 1)
    weights = numbers(job.arm, records.digest_json([job.arm, teacher.hex()])).bytes(64)
    records.write_bytes(folder / "model" / "model.safetensors", weights)
    records.write_bytes(folder / "model" / "config.json", b"{}\n")
    hashes = {"state_hash": recorder.state_hash, "reward_hash": recorder.reward_hash}
    budget = {"num_updates": 4.0, "num_states": 12.0, "num_tokens": 20.0}
    return {"status": "trained", "num_parameters": 9, "num_trainable": 9, **hashes, "budget": budget}


def fake_evaluate(place, job, observer):
    folder, seed = place.store.arm_folder(job.arm, job.seed), job.seed
    weights = b""
    if job.arm != "base":
        place.needed("train", job.arm, seed)
        place.needed("evaluate", "base", seed)
        weights = (folder / "model" / "model.safetensors").read_bytes()
    for task, (decoding, metric) in TASKS.items():
        scores = numbers(task, weights.hex()).integers(0, 2, 12)
        rows = [
            {"task": task, "member": task, "item": i, "decoding": decoding, "metric": metric, "score": float(score)}
            for i, score in enumerate(scores)
        ]
        records.write_table(folder / "evals" / f"{task}.parquet", rows, records.ITEM_SCHEMA)
    row = {"prompt_index": 0, "prompt_ids": [1], "token_ids": [2], "logprobs": [-1.0], "is_finished": True}
    for name in ["rollouts"] + ["rollouts_again"] * (job.arm == "base"):
        records.write_table(folder / f"{name}.parquet", [row], records.ROLLOUT_SCHEMA)
    if job.arm != "base":
        value = {"value": 0.25, "floor": 0.05, "p_value": 0.05, "num_rollouts": 8, "num_states": 32}
        records.write_json(folder / "drift.json", {"mmd": value})
    protocols = dict.fromkeys(TASKS, "0-shot")
    return {"status": "evaluated", "protocols": protocols, "items_sha256": protocols, "device": "cpu"}


def execute_here(plan, store, costs, on_event, workers):
    """What is not done, one job after the other, in this process, as a worker does it."""
    outcome = executor.Outcome()
    for job in plan.jobs:
        if store.result(job) is not None:
            outcome.done.append(job.id)
        elif set(job.needs) & outcome.failed.keys():
            outcome.failed[job.id] = "a need failed"
        else:
            answer = worker.work(Workplace(plan, store), job, on_event, lambda: False)
            if answer["status"] == "failed":
                outcome.failed[job.id] = answer["reason"]
            else:
                outcome.done.append(job.id)
    return outcome


class FastStudy:
    """The study in `folder`, and a function to run it."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder / "run"
        self.trained = []

        def train(place, job, observer):
            self.trained.append(job.id)
            return fake_train(place, job, observer)

        def evaluate(place, job, observer):
            self.trained.append(job.id)
            return fake_evaluate(place, job, observer)

        monkeypatch.setattr(jobs, "_train", train)
        monkeypatch.setattr(jobs, "_evaluate", evaluate)
        monkeypatch.setattr(run, "execute", execute_here)
        monkeypatch.setattr(run, "environment", lambda workers, device: {"python": "3"})
        monkeypatch.setattr(run, "check_materials", lambda plan: None)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        save_file({"weight": np.zeros(4, dtype=np.float32)}, fake_model(folder) / "model.safetensors")
        self.plan = small_plan(folder, text=SMALL)

    def run(self):
        """Returns outcome, summary, and the warnings that were shown; `trained` are the jobs that were done."""
        self.trained.clear()
        events = []
        outcome, summary = run.run_study(self.plan, self.folder, events.append, 1)
        return outcome, summary, [event.message for event in events if event.kind == "warning"]

    def do(self, id_):
        """Do one job without a run."""
        job = next(job for job in self.plan.jobs if job.id == id_)
        return run_job(Workplace(self.plan, Store(self.folder)), job, jobs.Observer())
