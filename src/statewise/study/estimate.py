"""What a plan will cost before anything is computed: states, tokens and seconds of every node.

Token counts come from the first documents of the target's training file, tokenised; seconds from rates measured on one
core with the pocket model and scaled by parameters. An estimate orders the work and sets the expectation; it decides
nothing else.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

from statewise.config import ArmSection
from statewise.study.catalog import task_folder
from statewise.study.plan import Node, Plan

# Measured on one core of a 2-core cloud machine with the 0.9 M pocket model: tokens a second.
TRAIN_RATE, GENERATE_RATE, SCORE_RATE = 7_000.0, 7_000.0, 100_000.0
RATE_PARAMETERS = 0.92e6
NODE_OVERHEAD_S = 1.5
WORKER_START_S = 12.0
DOCUMENTS_READ = 200
# Of the allowed new tokens, the share that a rollout of the base model uses before it ends by itself.
ROLLOUT_FILL = 0.5


@dataclass(frozen=True)
class ArmEstimate:
    """One arm and seed, before it runs. `num_tokens` pass the learner with gradient; counts are totals."""

    num_updates: int
    num_trajectories: int
    num_states: int
    num_tokens: int
    num_generated: int
    train_s: float


@dataclass(frozen=True)
class PlanEstimate:
    """`seconds` by node id; `wall_s` for `num_workers` processes."""

    arms: dict[str, ArmEstimate]
    seconds: dict[str, float]
    wall_s: float


@dataclass(frozen=True)
class _Lengths:
    """Mean tokens of a prompt and of a gold text of the target's training split; measured, or a guess."""

    prompt: float
    gold: float
    is_measured: bool = False


def estimate_plan(plan: Plan, num_workers: int) -> PlanEstimate:
    """Estimate every node of `plan`."""
    lengths = _measure_lengths(plan)
    scale = (plan.num_parameters or RATE_PARAMETERS) / RATE_PARAMETERS
    arms = {name: _estimate_arm(plan, name, lengths, scale) for name in plan.config.arms}
    evaluation_s = _estimate_evaluation(plan, lengths) * scale
    seconds = {
        node.id: NODE_OVERHEAD_S + (arms[node.arm].train_s if node.action == "train" else evaluation_s)
        for node in plan.nodes
    }
    wall = max(sum(seconds.values()) / num_workers, _longest_chain(plan.nodes, seconds))
    return PlanEstimate(arms, seconds, WORKER_START_S + wall)


def plan_budgets(plan: Plan) -> dict[str, dict[str, float]]:
    """What every arm is planned to use per seed, by the keys of its realised budget.

    Updates and trajectories are exact. States and tokens are estimates, and are left out where the lengths of texts are
    not known before the run: without the training documents, and for sources other than `dataset` and `rollout`.
    """
    lengths, budgets = _measure_lengths(plan), {}
    for name, arm in plan.config.arms.items():
        estimate = _estimate_arm(plan, name, lengths, 1.0)
        budgets[name] = {"num_updates": estimate.num_updates, "num_trajectories": estimate.num_trajectories}
        if lengths.is_measured and arm.source["kind"] in ("dataset", "rollout"):
            budgets[name] |= _plan_tokens(arm, estimate)
    return {name: {key: float(value) for key, value in budget.items()} for name, budget in budgets.items()}


def _plan_tokens(arm: ArmSection, estimate: ArmEstimate) -> dict[str, int]:
    continued = estimate.num_states if arm.signal["kind"] == "continuation" else 0
    rolled_out = estimate.num_generated - continued
    planned = {"num_loss_tokens": estimate.num_states, "num_tokens": estimate.num_tokens}
    if rolled_out or not continued:
        planned["num_states"] = rolled_out or estimate.num_states
    for writer, count in ((arm.source.get("by", "learner"), rolled_out), ("teacher", continued)):
        if count:
            planned[f"num_generated_{writer}"] = planned.get(f"num_generated_{writer}", 0) + count
    return planned


def _longest_chain(nodes: tuple[Node, ...], seconds: dict[str, float]) -> float:
    ends: dict[str, float] = {}
    for node in nodes:
        ends[node.id] = seconds[node.id] + max((ends[need] for need in node.needs), default=0.0)
    return max(ends.values())


def _estimate_arm(plan: Plan, name: str, lengths: _Lengths, scale: float) -> ArmEstimate:
    arm: ArmSection = plan.config.arms[name]
    trajectories = plan.sources[name].trajectories_per_update * arm.update.num_updates
    is_rollout = arm.source["kind"] == "rollout"
    response = arm.source.get("max_new_tokens", 96) * ROLLOUT_FILL if is_rollout else lengths.gold
    written = response if is_rollout else 0.0
    trained, passed = response, lengths.prompt + response
    if arm.signal["kind"] == "continuation":
        trained = min(arm.signal.get("num_tokens", 32), response)
        passed = lengths.prompt + response / 2 + trained
        written += trained
    num_tokens, num_generated = int(trajectories * passed), int(trajectories * written)
    # A teacher whose whole law is compared makes a forward pass of its own, a third of a training pass.
    passes = 1.33 if plan.signals[name].compares_laws else 1.0
    train_s = scale * (num_tokens * passes / TRAIN_RATE + num_generated / GENERATE_RATE)
    return ArmEstimate(
        arm.update.num_updates, trajectories, int(trajectories * trained), num_tokens, num_generated, train_s
    )


def _estimate_evaluation(plan: Plan, lengths: _Lengths) -> float:
    """Seconds to evaluate one arm and to roll it out, on the reference model."""
    shared = plan.config.shared
    items = shared.evaluation.limit or 600
    generated = 2 * items * min(lengths.gold, shared.evaluation.max_new_tokens)
    generated += shared.drift.num_prompts * lengths.gold
    scored = len(shared.retention) * items * 4 * lengths.prompt
    return generated / GENERATE_RATE + scored / SCORE_RATE


def _measure_lengths(plan: Plan) -> _Lengths:
    """Token counts of the first training documents; a guess of 100 + 100 where the data are not beside the model."""
    folder, target = task_folder(plan.model), plan.config.shared.target
    path = folder / f"{target}_train.jsonl" if folder else None
    if path is None or not path.exists():
        return _Lengths(100.0, 100.0)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(plan.model / "tokenizer.json"))
    with path.open(encoding="utf-8") as stream:
        documents = [json.loads(line) for line in itertools.islice(stream, DOCUMENTS_READ)]
    prompts = sum(len(tokenizer.encode(d["question"]).ids) for d in documents)
    golds = sum(len(tokenizer.encode(d["answer"]).ids) for d in documents)
    return _Lengths(prompts / len(documents), golds / len(documents), is_measured=True)
