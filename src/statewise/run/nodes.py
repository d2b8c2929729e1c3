"""What a worker does for one node: train an arm, or evaluate it and measure its drift."""

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
from statewise.evals.evaluate import EvalProtocol
from statewise.folder.protocol import describe_device, drift_config, evaluate_into, permutation_key
from statewise.folder.store import ADVICE, LEFT, RESULT_NAMES, Store
from statewise.loop.build import Material, Recipe, Setup, build
from statewise.loop.documents import DocumentRule, Documents, add_pairs, encode_documents
from statewise.loop.train import MISMATCH, Observer, mismatch_problem, train
from statewise.plan.benchmarks import build_task, document_rule, drift_prompts
from statewise.plan.dag import BASE, Node, Plan
from statewise.plan.digest import digest_weights
from statewise.plan.replay import folder_of, open_record
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
        """The result of a node that another one reads, after all its files were checked.

        Raises:
            DamagedError: one of them is not what was recorded.
        """
        node = next(one for one in self.plan.nodes if (one.action, one.arm, one.seed) == (action, arm, seed))
        result = self.store.checked_result(node)
        if result is None:
            raise DamagedError(f"{self.store.result_path(node)} is gone; {ADVICE}")
        return result

    def key(self, node: Node, purpose: str) -> int:
        """The key of everything random in a node that serves `purpose`."""
        return derive_key("statewise", node.seed, node.arm, purpose)


def run_node(place: Workplace, node: Node, observer: Observer) -> dict[str, Any]:
    """Do `node` and write its record; returns what was written."""
    began = time.perf_counter()
    action: Callable[[Workplace, Node, Observer], dict[str, Any]] = {"train": _train, "evaluate": _evaluate}[
        node.action
    ]
    try:
        done = action(place, node, observer)
    except DivergedError as error:  # of a model that was trained to its end, and whose answers are no numbers
        done = {"status": DIVERGED, "reason": str(error)}
    result = place.store.finish(node, {**done, "node_s": round(time.perf_counter() - began, 2)})
    if node.action == "train":  # only now: until its end is written, a training continues from its checkpoints
        shutil.rmtree(place.store.arm_folder(node.arm, node.seed) / "checkpoints", ignore_errors=True)
    return result


def _train(place: Workplace, node: Node, observer: Observer) -> dict[str, Any]:
    arm, folder = place.plan.arms[node.arm], place.store.arm_folder(node.arm, node.seed)
    _start_afresh_if_changed(place, node)
    learner = _load(place, BASE, node.seed, "learner")
    shared = learner if arm.adapter.keeps_base else None
    others: dict[str, Policy] = {}
    for other in [arm.teacher, *arm.source.replayed_arms]:
        if other not in (None, BASE) and not _is_trained(place, str(other), node.seed):
            return {"status": SKIPPED, "reason": f"{other}, which it needs, diverged"}
    if arm.teacher is not None:
        others["teacher"] = _load(place, arm.teacher, node.seed, "teacher", shared)
    if arm.needs_base:
        others["base"] = _load(place, BASE, node.seed, "base", shared)
    with closing(ENGINES[place.plan.config.shared.sampler]()) as engine:
        setup = build(_recipe(place, node, engine), learner, others, _material(place, node, learner))
        try:
            recorder = train(setup, folder, observer)
        except DivergedError as error:
            return {"status": DIVERGED, "reason": str(error), **_told(place, node, setup, _lines(folder))}
    weights = arm.adapter.save(learner, folder, place.plan.config.shared.model)
    integrity.refuse(folder, integrity.faults_of(folder, recorder.table), ADVICE)
    return {
        "status": TRAINED,
        "num_parameters": num_parameters(learner.model),
        "num_trainable": sum(p.numel() for p in setup.trainable.values()),
        "state_hash": recorder.state_hash,
        "reward_hash": recorder.reward_hash,
        "weights_sha256": digest_weights(weights.parent),
        **_told(place, node, setup, _lines(folder)),
    }


def _recipe(place: Workplace, node: Node, engine: RolloutEngine) -> Recipe:
    arm = place.plan.arms[node.arm]
    return Recipe(arm.source, arm.signal, arm.adapter, arm.update, place.key(node, "train"), arm.locality, engine)


def _material(place: Workplace, node: Node, learner: Policy) -> Material:
    """Target, remembered tasks, the records that are replayed, and the documents."""
    arm, shared, recorded = place.plan.arms[node.arm], place.plan.config.shared, {}
    for other in arm.source.replayed_arms:
        place.needed("train", other, node.seed)
        recorded[other] = open_record(place.store.arm_folder(other, node.seed), learner.vocab_size)
    for path in arm.source.replayed_paths:
        recorded[path] = open_record(folder_of(path, node.seed), learner.vocab_size)
    is_remembering = any(one.memory for one in arm.locality)
    retention = tuple(place.task(name) for name in shared.retention) if is_remembering else ()
    documents = place.documents(learner, node.arm)
    return Material(place.task(shared.target), retention, recorded, documents)


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of an arm, a line an update."""
    metrics = folder / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []


def _told(place: Workplace, node: Node, setup: Setup, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What an arm used, what became of its answers, and what a reader must know of it.

    That is what was left out, a sampler that is off, and prompts that it remembered and is evaluated on.
    """
    notes, section = [*setup.documents.notes], place.plan.config.shared.evaluation
    if problem := mismatch_problem(setup.learner, [line[MISMATCH] for line in lines if MISMATCH in line]):
        notes.append(problem)
    for one in setup.recipe.localities:
        if memory := one.memory:
            tasks = [place.task(name) for name in place.plan.config.shared.retention]
            if shared := sum(task.num_remembered(memory.num_prompts, section.limit, section.items) for task in tasks):
                notes.append(f"{one.kind} remembers the prompts, not the answers, of {shared} evaluated items")
    told = {"budget": _budget(lines), "answers": _answers(lines)}
    return {**told, "notes": notes} if notes else told


def _start_afresh_if_changed(place: Workplace, node: Node) -> None:
    """Keep what an interrupted run of the same node left; remove what another configuration left."""
    folder = place.store.arm_folder(node.arm, node.seed)
    marker = folder / "started.json"
    with suppress(DamagedError):
        if integrity.read_sealed(marker).get("fingerprint") == node.fingerprint:
            return
    _remove(folder, (RESULT_NAMES["train"], *LEFT["train"], "checkpoints"))
    arm = place.plan.arms[node.arm]
    config = {"seed": node.seed, "arm": arm.model_dump(mode="json", exclude_none=True)}
    records.write_bytes(folder / "config.toml", tomli_w.dumps(config).encode())
    integrity.write_sealed(marker, {"fingerprint": node.fingerprint})


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files and folders at `names` below `folder`, where they are."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_trained(place: Workplace, arm: str, seed: int) -> bool:
    return bool(place.needed("train", arm, seed)["status"] == TRAINED)


def _load(place: Workplace, arm: str, seed: int, name: str, shared: Policy | None = None) -> Policy:
    """The policy of an arm; on the base weights of `shared`, without a copy, where it is the base or its adapter."""
    folder = place.store.arm_folder(arm, seed)
    files = {} if arm == BASE else place.needed("train", arm, seed)["files"]
    if any(file.startswith("model/") for file in files):
        return _load_folder(place, folder / "model", name)
    if shared is None:
        shared = _load_folder(place, place.plan.model, name)
        if arm == BASE:
            return shared
    if arm == BASE:
        return replace(shared, name=name, adapter=NO_ADAPTER)
    load_adapter(shared.model, folder / "adapter", name)
    return replace(shared, name=name, adapter=name)


def _load_folder(place: Workplace, folder: Path, name: str) -> Policy:
    """The model of a folder, in the base model's precision, so that all arms are compared in the same."""
    shared = place.plan.config.shared
    device = choose_device(shared.device)
    dtype = choose_dtype(shared.dtype, device, place.plan.model)
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


def _evaluate(place: Workplace, node: Node, observer: Observer) -> dict[str, Any]:
    folder, shared = place.store.arm_folder(node.arm, node.seed), place.plan.config.shared
    _remove(folder, (RESULT_NAMES["evaluate"], *LEFT["evaluate"]))
    if node.arm != BASE and not _is_trained(place, node.arm, node.seed):
        return {"status": SKIPPED, "reason": "there is no trained model"}
    # An adapter's name is part of a module's, which an arm's name need not be fit for.
    policy = replace(_load(place, node.arm, node.seed, "evaluated"), name=node.arm)
    protocol = EvalProtocol(
        limit=shared.evaluation.limit,
        seed=place.key(node, "evaluate"),
        max_new_tokens=shared.evaluation.max_new_tokens,
        is_chat=shared.chat,
        items=shared.evaluation.items,
        samples=shared.evaluation.samples,
    )
    protocols, items = {}, {}
    for done, name in enumerate([shared.target, *shared.retention]):
        if observer.should_stop():
            raise InterruptedTrainingError(f"stopped before task {name}")
        recorded = evaluate_into(folder / "evals" / f"{name}.parquet", policy, place.task(name), protocol)
        protocols[name], items[name] = recorded["protocol"], recorded["items_sha256"]
        observer.progress(done + 1)
    _measure(place, node, policy)
    observer.progress(len(shared.retention) + 2)
    return {
        "status": EVALUATED, "protocols": protocols, "items_sha256": items, "device": describe_device(policy),
    }  # fmt: skip


def _measure(place: Workplace, node: Node, policy: Policy) -> None:
    """Roll the policy out on the fixed prompts; a trained arm is compared with two samples of the base model."""
    folder, section = place.store.arm_folder(node.arm, node.seed), place.plan.config.shared.drift
    samples = {"rollouts": "drift", "rollouts_again": "drift-again"} if node.arm == BASE else {"rollouts": "drift"}
    for name, purpose in samples.items():
        rollouts = _roll_out(place, node, policy, purpose)
        num_prompts = len(rollouts) // section.rollouts_per_prompt
        rows = rollouts_to_rows(rollouts, [row % num_prompts for row in range(len(rollouts))])
        records.write_table(folder / f"{name}.parquet", rows, records.ROLLOUT_SCHEMA)
    if node.arm == BASE:
        return
    if place.needed("evaluate", BASE, node.seed)["status"] != EVALUATED:
        return
    base = place.store.arm_folder(BASE, node.seed)
    measured = measure_drift(
        rows_to_rollouts(records.read_table(base / "rollouts.parquet")),
        rows_to_rollouts(records.read_table(base / "rollouts_again.parquet")),
        rollouts,
        drift_config(section),
        permutation_key(node.arm, node.seed),
    )
    records.write_json(folder / "drift.json", {name: asdict(value) for name, value in measured.items()})


def _roll_out(place: Workplace, node: Node, policy: Policy, purpose: str) -> list[Rollout]:
    """Rollouts at temperature 1 on the first prompts of the target's test split: one of each, then the next of each."""
    section = place.plan.config.shared.drift
    prompts = drift_prompts(place.plan, policy, place.task(place.plan.config.shared.target))
    prompts = prompts * section.rollouts_per_prompt
    key = place.key(node, purpose)
    keys = [derive_key(key, row) for row in range(len(prompts))]
    return sample(policy, prompts, keys, Sampling(max_new_tokens=section.max_new_tokens))
