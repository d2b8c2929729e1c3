"""What a worker does for one node: train an arm, or evaluate it and measure its drift."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from statewise import records
from statewise.config import AdapterSection, ArmSection
from statewise.drift.features import FeatureConfig
from statewise.drift.measure import DriftConfig, measure_drift
from statewise.drift.rollout_records import rollouts_to_rows, rows_to_rollouts
from statewise.errors import DivergedError, InterruptedTrainingError
from statewise.evals.evaluate import EvalProtocol, evaluate
from statewise.locality.adapter import ADAPTERS, Adapter
from statewise.loop.build import Recipe, build
from statewise.loop.train import Observer, train
from statewise.policy.device import choose_device, choose_dtype
from statewise.policy.load import NO_ADAPTER, Policy, chat_of, encode_prompt, load_policy
from statewise.policy.lora import load_adapter, num_parameters
from statewise.policy.sampler import Sampling, sample
from statewise.policy.samplers import SAMPLERS
from statewise.seeding import derive_key
from statewise.study.benchmarks import build_task
from statewise.study.plan import BASE, Node, Plan
from statewise.study.protocol import describe_device, describe_protocol, digest_items
from statewise.study.store import Store
from statewise.tasks.task import Task
from statewise.types import Rollout

TRAINED, DIVERGED, SKIPPED = "trained", "diverged", "skipped"


@dataclass(frozen=True)
class Workplace:
    """A plan and the folder it runs in, with the tasks loaded so far."""

    plan: Plan
    store: Store
    tasks: dict[str, Task]

    def task(self, name: str) -> Task:
        if name not in self.tasks:
            self.tasks[name] = build_task(self.plan, name)
        return self.tasks[name]

    def key(self, node: Node, purpose: str) -> int:
        """The key of everything random in a node that serves `purpose`."""
        return derive_key("statewise", node.seed, node.arm, purpose)


def run_node(place: Workplace, node: Node, observer: Observer) -> dict[str, Any]:
    """Do `node` and write its record; returns what was written."""
    began = time.perf_counter()
    action: Callable[[Workplace, Node, Observer], dict[str, Any]] = {"train": _train, "evaluate": _evaluate}[
        node.action
    ]
    result = {**action(place, node, observer), "node_s": round(time.perf_counter() - began, 2)}
    place.store.finish(node, result)
    return result


def _train(place: Workplace, node: Node, observer: Observer) -> dict[str, Any]:
    arm, folder = place.plan.config.arms[node.arm], place.store.arm_folder(node.arm, node.seed)
    _start_afresh_if_changed(place, node)
    source, adapter = place.plan.sources[node.arm], adapter_of(arm.adapter)
    learner = _load(place, BASE, node.seed, "learner")
    shared = learner if adapter.keeps_base else None
    others: dict[str, Policy] = {}
    if arm.teacher is not None:
        if arm.teacher != BASE and not _is_trained(place, arm.teacher, node.seed):
            return {"status": SKIPPED, "reason": f"its teacher {arm.teacher} diverged"}
        others["teacher"] = _load(place, arm.teacher, node.seed, "teacher", shared)
    if source.needs_base:
        others["base"] = _load(place, BASE, node.seed, "base", shared)
    options = place.plan.config.shared
    recipe = Recipe(
        source, place.plan.signals[node.arm], adapter, arm.update, place.key(node, "train"),
        options.chat, SAMPLERS[options.sampler],
    )  # fmt: skip
    setup = build(recipe, learner, others, place.task(place.plan.config.shared.target))
    try:
        recorder = train(setup, folder, observer)
    except DivergedError as error:
        return {"status": DIVERGED, "reason": str(error), "budget": _budget(folder / "metrics.jsonl")}
    weights = adapter.save(learner, folder, place.plan.config.shared.model)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "status": TRAINED,
        "num_parameters": num_parameters(learner.model),
        "num_trainable": sum(p.numel() for p in setup.trainable.values()),
        "state_hash": recorder.state_hash,
        "weights_sha256": records.digest_file(weights),
        "budget": _budget(folder / "metrics.jsonl"),
    }


def _start_afresh_if_changed(place: Workplace, node: Node) -> None:
    """Keep what an interrupted run of the same node left; remove what another configuration left."""
    folder = place.store.arm_folder(node.arm, node.seed)
    marker = folder / "started.json"
    if marker.exists() and records.read_json(marker).get("fingerprint") == node.fingerprint:
        return
    shutil.rmtree(folder, ignore_errors=True)
    arm: ArmSection = place.plan.config.arms[node.arm]
    config = {"seed": node.seed, "arm": arm.model_dump(mode="json", exclude_none=True)}
    records.write_bytes(folder / "config.toml", tomli_w.dumps(config).encode())
    records.write_json(marker, {"fingerprint": node.fingerprint})


def adapter_of(section: AdapterSection) -> Adapter:
    """The adapter that an `adapter` table describes."""
    settings = {} if section.kind == "full" else {"rank": section.rank, "alpha": section.alpha}
    return ADAPTERS[section.kind](**settings)


def _is_trained(place: Workplace, arm: str, seed: int) -> bool:
    folder = place.store.arm_folder(arm, seed)
    return (folder / "model").exists() or (folder / "adapter").exists()


def _load(place: Workplace, arm: str, seed: int, name: str, shared: Policy | None = None) -> Policy:
    """The policy of an arm; on the base weights of `shared`, without a copy, where it is the base or its adapter."""
    folder = place.store.arm_folder(arm, seed)
    if arm != BASE and (folder / "model").exists():
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


def _budget(metrics: Any) -> dict[str, float]:
    """Totals over the updates of an arm."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    totals = {
        "num_updates": float(len(lines)),
        "num_trajectories": float(sum(line["states/num_trajectories"] for line in lines)),
        "num_states": float(sum(line["states/num_states"] for line in lines)),
        "num_tokens": float(sum(line["states/num_tokens"] for line in lines)),
    }
    if lines:
        totals |= {k.removeprefix("states/"): float(v) for k, v in lines[-1].items() if "num_generated" in k}
    return totals


def _evaluate(place: Workplace, node: Node, observer: Observer) -> dict[str, Any]:
    folder, shared = place.store.arm_folder(node.arm, node.seed), place.plan.config.shared
    if node.arm != BASE and not _is_trained(place, node.arm, node.seed):
        return {"status": SKIPPED, "reason": "there is no trained model"}
    # An adapter's name is part of a module's, which an arm's name need not be fit for.
    policy = replace(_load(place, node.arm, node.seed, "evaluated"), name=node.arm)
    protocol = EvalProtocol(
        limit=shared.evaluation.limit,
        seed=place.key(node, "evaluate"),
        max_new_tokens=shared.evaluation.max_new_tokens,
        is_chat=shared.chat,
    )
    protocols, items = {}, {}
    for done, name in enumerate([shared.target, *shared.retention]):
        if observer.should_stop():
            raise InterruptedTrainingError(f"stopped before task {name}")
        rows = evaluate(policy, place.task(name), protocol)
        records.write_table(folder / "evals" / f"{name}.parquet", rows, records.ITEM_SCHEMA)
        protocols[name] = describe_protocol(place.task(name), protocol)
        items[name] = digest_items(place.task(name), protocol.limit)
        observer.progress(done + 1)
    _measure(place, node, policy)
    observer.progress(len(shared.retention) + 2)
    return {
        "status": "evaluated", "protocols": protocols, "items_sha256": items, "device": describe_device(policy),
    }  # fmt: skip


def _measure(place: Workplace, node: Node, policy: Policy) -> None:
    """Roll the policy out on the fixed prompts; a trained arm is compared with two samples of the base model."""
    folder = place.store.arm_folder(node.arm, node.seed)
    rollouts = _roll_out(place, node, policy, "drift")
    records.write_table(
        folder / "rollouts.parquet", rollouts_to_rows(rollouts, list(range(len(rollouts)))), records.ROLLOUT_SCHEMA
    )
    if node.arm == BASE:
        again = _roll_out(place, node, policy, "drift-again")
        records.write_table(
            folder / "rollouts_again.parquet", rollouts_to_rows(again, list(range(len(again)))), records.ROLLOUT_SCHEMA
        )
        return
    section, base = place.plan.config.shared.drift, place.store.arm_folder(BASE, node.seed)
    measured = measure_drift(
        rows_to_rollouts(records.read_table(base / "rollouts.parquet")),
        rows_to_rollouts(records.read_table(base / "rollouts_again.parquet")),
        rollouts,
        DriftConfig(
            FeatureConfig(states_per_rollout=section.states_per_rollout), num_permutations=section.num_permutations
        ),
        place.key(node, "permutations"),
    )
    records.write_json(folder / "drift.json", {name: asdict(value) for name, value in measured.items()})


def _roll_out(place: Workplace, node: Node, policy: Policy, purpose: str) -> list[Rollout]:
    """One rollout at temperature 1 on each of the first prompts of the target's test split."""
    section = place.plan.config.shared.drift
    chat = chat_of(policy) if place.plan.config.shared.chat else None
    examples = place.task(place.plan.config.shared.target).examples("test", chat)[: section.num_prompts]
    prompts = [encode_prompt(policy, example.prompt) for example in examples]
    key = place.key(node, purpose)
    keys = [derive_key(key, row) for row in range(len(prompts))]
    return sample(policy, prompts, keys, Sampling(max_new_tokens=section.max_new_tokens))
