"""What a worker does for one job: train an arm, or evaluate it and measure its drift."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from statewise.drift.measure import measure_drift
from statewise.drift.rollout_records import rollouts_to_rows, rows_to_rollouts
from statewise.errors import DamagedError, DivergedError, InterruptedTrainingError
from statewise.folder.protocol import describe_device, drift_config, eval_protocol, evaluate_into, permutation_key
from statewise.folder.store import ADVICE, LEFT, RESULT_NAMES, Store
from statewise.loop.build import Material, Recipe, Setup, build
from statewise.loop.documents import DocumentRule, Documents, add_pairs, encode_documents
from statewise.loop.train import MISMATCH, Observer, mismatch_problem, train
from statewise.plan.benchmarks import build_task, document_rule, drift_prompts
from statewise.plan.dag import BASE, Job, Plan
from statewise.plan.digest import digest_weights
from statewise.plan.replay import REWARDED_BY, folder_of, open_record
from statewise.policy.device import choose_device, choose_dtype
from statewise.policy.engine import ENGINES, RolloutEngine
from statewise.policy.load import NO_ADAPTER, Policy, load_policy
from statewise.policy.lora import load_adapter, num_parameters
from statewise.policy.sampler import Sampling, sample
from statewise.seeding import derive_key
from statewise.storage import integrity, records
from statewise.tasks.task import Task
from statewise.types import Rollout

REWARDED = ("num_rewarded", "num_rewarded_unfinished")
TRAINED, EVALUATED, DIVERGED, SKIPPED = "trained", "evaluated", "diverged", "skipped"


@dataclass(frozen=True)
class Workplace:
    """A plan and the folder it runs in, with the tasks loaded and the documents encoded so far."""

    plan: Plan
    store: Store
    tasks: dict[str, Task] = field(default_factory=dict)
    encoded: dict[DocumentRule, Documents] = field(default_factory=dict)

    def task(self, name: str) -> Task:
        if name not in self.tasks:
            self.tasks[name] = build_task(self.plan, name)
        return self.tasks[name]

    def documents(self, learner: Policy, arm: str) -> Documents:
        """What an arm trains on, in the tokens of the base model, from which all arms learn: encoded once."""
        rule, target = document_rule(self.plan), self.task(self.plan.config.shared.target)
        if rule not in self.encoded:
            self.encoded[rule] = encode_documents(learner, target, rule)
        return add_pairs(self.encoded[rule], learner, target, [self.plan.arms[arm].source])

    def needed(self, action: str, arm: str, seed: int) -> dict[str, Any]:
        """The result of a job that another one reads, after all its files were checked.

        Raises:
            DamagedError: one of them is not what was recorded.
        """
        job = next(one for one in self.plan.jobs if (one.action, one.arm, one.seed) == (action, arm, seed))
        result = self.store.checked_result(job)
        if result is None:
            raise DamagedError(f"{self.store.result_path(job)} is gone; {ADVICE}")
        return result

    def key(self, job: Job, purpose: str) -> int:
        """The key of everything random in a job that serves `purpose`."""
        return derive_key("statewise", job.seed, job.arm, purpose)


def run_job(workplace: Workplace, job: Job, observer: Observer) -> dict[str, Any]:
    """Do `job` and write its record; returns what was written."""
    began = time.perf_counter()
    action: Callable[[Workplace, Job, Observer], dict[str, Any]] = {"train": _train, "evaluate": _evaluate}[job.action]
    try:
        done = action(workplace, job, observer)
    except DivergedError as error:  # of a model that was trained to its end, and whose answers are no numbers
        done = {"status": DIVERGED, "reason": str(error)}
    result = workplace.store.finish(job, {**done, "node_s": round(time.perf_counter() - began, 2)})
    if job.action == "train":  # only now: until its end is written, a training continues from its checkpoints
        shutil.rmtree(workplace.store.arm_folder(job.arm, job.seed) / "checkpoints", ignore_errors=True)
    return result


def _train(workplace: Workplace, job: Job, observer: Observer) -> dict[str, Any]:
    arm, folder = workplace.plan.arms[job.arm], workplace.store.arm_folder(job.arm, job.seed)
    _start_afresh_if_changed(workplace, job)
    learner = _load(workplace, BASE, job.seed, "learner")
    shared = learner if arm.adapter.keeps_base else None
    others: dict[str, Policy] = {}
    for other in [arm.teacher, *arm.source.replayed_arms]:
        if other in workplace.plan.arms and not _is_trained(workplace, str(other), job.seed):
            return {"status": SKIPPED, "reason": f"{other}, which it needs, diverged"}
    if arm.teacher is not None:
        others["teacher"] = _load(workplace, arm.teacher, job.seed, "teacher", shared)
    if arm.needs_base:
        others["base"] = _load(workplace, BASE, job.seed, "base", shared)
    observer.progress(0)  # what comes before it is the loading of models
    with closing(ENGINES[workplace.plan.config.shared.sampler]()) as engine:
        setup = build(_recipe(workplace, job, engine), learner, others, _material(workplace, job, learner))
        try:
            recorder = train(setup, folder, observer)
        except DivergedError as error:
            return {"status": DIVERGED, "reason": str(error), **_told(workplace, job, setup, _lines(folder))}
    rewarded_by = workplace.plan.config.rewarded_by(workplace.plan.other_digests)
    weights = arm.adapter.save(learner, folder, workplace.plan.config.shared.model)
    integrity.refuse(folder, integrity.faults_of(folder, recorder.table), ADVICE)
    return {
        "status": TRAINED,
        "num_parameters": num_parameters(learner.model),
        "num_trainable": sum(p.numel() for p in setup.trainable.values()),
        "state_hash": recorder.state_hash,
        "reward_hash": recorder.reward_hash,
        "weights_sha256": digest_weights(weights.parent),
        **({REWARDED_BY: rewarded_by} if rewarded_by else {}),
        **_told(workplace, job, setup, _lines(folder)),
    }


def _recipe(workplace: Workplace, job: Job, engine: RolloutEngine) -> Recipe:
    arm = workplace.plan.arms[job.arm]
    return Recipe(arm.source, arm.signal, arm.adapter, arm.update, workplace.key(job, "train"), arm.locality, engine)


def _material(workplace: Workplace, job: Job, learner: Policy) -> Material:
    """Target, remembered tasks, the records that are replayed, and the documents."""
    arm, shared, recorded = workplace.plan.arms[job.arm], workplace.plan.config.shared, {}
    for other in arm.source.replayed_arms:
        workplace.needed("train", other, job.seed)
        recorded[other] = open_record(workplace.store.arm_folder(other, job.seed), learner.vocab_size)
    for path in arm.source.replayed_paths:
        recorded[path] = open_record(folder_of(path, job.seed), learner.vocab_size)
    is_remembering = any(one.memory for one in arm.locality)
    retention = tuple(workplace.task(name) for name in shared.retention) if is_remembering else ()
    documents = workplace.documents(learner, job.arm)
    return Material(workplace.task(shared.target), retention, recorded, documents)


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of an arm, a line an update."""
    metrics = folder / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []


def _told(workplace: Workplace, job: Job, setup: Setup, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What an arm used, what became of its answers, and what a reader must know of it.

    That is what was left out, a sampler that is off, and prompts that it remembered and is evaluated on.
    """
    notes, section = [*setup.documents.notes], workplace.plan.config.shared.evaluation
    if problem := mismatch_problem(setup.learner, [line[MISMATCH] for line in lines if MISMATCH in line]):
        notes.append(problem)
    for one in setup.recipe.localities:
        if memory := one.memory:
            tasks = [workplace.task(name) for name in workplace.plan.config.shared.retention]
            if shared := sum(task.num_remembered(memory.num_prompts, section.limit, section.items) for task in tasks):
                notes.append(f"{one.kind} remembers the prompts, not the answers, of {shared} evaluated items")
    told = {"budget": _budget(lines), "answers": _answers(lines)}
    return {**told, "notes": notes} if notes else told


def _start_afresh_if_changed(workplace: Workplace, job: Job) -> None:
    """Keep what an interrupted run of the same job left; remove what another configuration left."""
    folder = workplace.store.arm_folder(job.arm, job.seed)
    marker = folder / "started.json"
    with suppress(DamagedError):
        if integrity.read_sealed(marker).get("fingerprint") == job.fingerprint:
            return
    _remove(folder, (RESULT_NAMES["train"], *LEFT["train"], "checkpoints"))
    arm = workplace.plan.arms[job.arm]
    config = {"seed": job.seed, "arm": arm.model_dump(mode="json", exclude_none=True)}
    records.write_bytes(folder / "config.toml", tomli_w.dumps(config).encode())
    integrity.write_sealed(marker, {"fingerprint": job.fingerprint})


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files and folders at `names` below `folder`, where they are."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_trained(workplace: Workplace, arm: str, seed: int) -> bool:
    return bool(workplace.needed("train", arm, seed)["status"] == TRAINED)


def _load(workplace: Workplace, arm: str, seed: int, name: str, shared: Policy | None = None) -> Policy:
    """The policy of an arm; on the base weights of `shared`, without a copy, where it is the base or its adapter."""
    if arm in workplace.plan.others:
        return _load_folder(workplace, workplace.plan.others[arm], name)
    folder = workplace.store.arm_folder(arm, seed)
    files = {} if arm == BASE else workplace.needed("train", arm, seed)["files"]
    if any(file.startswith("model/") for file in files):
        return _load_folder(workplace, folder / "model", name)
    if shared is None:
        shared = _load_folder(workplace, workplace.plan.model, name)
        if arm == BASE:
            return shared
    if arm == BASE:
        return replace(shared, name=name, adapter=NO_ADAPTER)
    load_adapter(shared.model, folder / "adapter", name)
    return replace(shared, name=name, adapter=name)


def _load_folder(workplace: Workplace, folder: Path, name: str) -> Policy:
    """The model of a folder, in the base model's precision, so that all arms are compared in the same."""
    shared = workplace.plan.config.shared
    device = choose_device(shared.device)
    dtype = choose_dtype(shared.dtype, device, workplace.plan.model)
    return load_policy(folder, name, dtype=dtype, device=device, end_of_text=shared.end_of_text)


def _answers(lines: list[dict[str, Any]]) -> dict[str, int]:
    """Trajectories that an arm trained on, by what became of them."""
    drawn = [line["states/num_trajectories"] for line in lines]
    ended = [round(line["states/finished_rate"] * count) for line, count in zip(lines, drawn, strict=True)]
    graded = {name: [line[f"signals/{name}"] for line in lines if f"signals/{name}" in line] for name in REWARDED}
    totals = {name: sum(counts) for name, counts in graded.items() if counts}
    return {"num_trajectories": sum(drawn), "num_unfinished": sum(drawn) - sum(ended), **totals}


def _budget(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Totals over the updates of an arm."""
    totals = {"num_updates": float(len(lines))}
    for name in ("num_trajectories", "num_states", "num_loss_tokens", "num_tokens"):
        totals[name] = float(sum(line[f"states/{name}"] for line in lines))
    if lines:
        totals |= {k.partition("/")[2]: float(v) for k, v in lines[-1].items() if "num_generated" in k or "/flops" in k}
    return totals


def _evaluate(workplace: Workplace, job: Job, observer: Observer) -> dict[str, Any]:
    folder, shared = workplace.store.arm_folder(job.arm, job.seed), workplace.plan.config.shared
    _remove(folder, (RESULT_NAMES["evaluate"], *LEFT["evaluate"]))
    if job.arm != BASE and not _is_trained(workplace, job.arm, job.seed):
        return {"status": SKIPPED, "reason": "there is no trained model"}
    # An adapter's name is part of a module's, which an arm's name need not be fit for.
    policy = replace(_load(workplace, job.arm, job.seed, "evaluated"), name=job.arm)
    observer.progress(0)
    protocol = eval_protocol(shared, job.arm, job.seed)
    protocols, items = {}, {}
    for done, name in enumerate([shared.target, *shared.retention]):
        if observer.should_stop():
            raise InterruptedTrainingError(f"stopped before task {name}")
        recorded = evaluate_into(folder / "evals" / f"{name}.parquet", policy, workplace.task(name), protocol)
        protocols[name], items[name] = recorded["protocol"], recorded["items_sha256"]
        observer.progress(done + 1)
    _measure(workplace, job, policy)
    observer.progress(len(shared.retention) + 2)
    return {
        "status": EVALUATED, "protocols": protocols, "items_sha256": items, "device": describe_device(policy),
    }  # fmt: skip


def _measure(workplace: Workplace, job: Job, policy: Policy) -> None:
    """Roll the policy out on the fixed prompts; a trained arm is compared with two samples of the base model."""
    folder, section = workplace.store.arm_folder(job.arm, job.seed), workplace.plan.config.shared.drift
    samples = {"rollouts": "drift", "rollouts_again": "drift-again"} if job.arm == BASE else {"rollouts": "drift"}
    for name, purpose in samples.items():
        rollouts = _roll_out(workplace, job, policy, purpose)
        num_prompts = len(rollouts) // section.rollouts_per_prompt
        rows = rollouts_to_rows(rollouts, [row % num_prompts for row in range(len(rollouts))])
        records.write_table(folder / f"{name}.parquet", rows, records.ROLLOUT_SCHEMA)
    if job.arm == BASE:
        return
    if workplace.needed("evaluate", BASE, job.seed)["status"] != EVALUATED:
        return
    base = workplace.store.arm_folder(BASE, job.seed)
    measured = measure_drift(
        rows_to_rollouts(records.read_table(base / "rollouts.parquet")),
        rows_to_rollouts(records.read_table(base / "rollouts_again.parquet")),
        rollouts,
        drift_config(section),
        permutation_key(job.arm, job.seed),
    )
    records.write_json(folder / "drift.json", {name: asdict(value) for name, value in measured.items()})


def _roll_out(workplace: Workplace, job: Job, policy: Policy, purpose: str) -> list[Rollout]:
    """Rollouts at temperature 1 on the first prompts of the target's test split: one of each, then the next of each."""
    section = workplace.plan.config.shared.drift
    prompts = drift_prompts(workplace.plan, policy, workplace.task(workplace.plan.config.shared.target))
    prompts = prompts * section.rollouts_per_prompt
    key = workplace.key(job, purpose)
    keys = [derive_key(key, row) for row in range(len(prompts))]
    return sample(policy, prompts, keys, Sampling(max_new_tokens=section.max_new_tokens))
