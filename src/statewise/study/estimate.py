"""What a plan will cost before anything is computed: states, tokens and seconds of every node.

Token counts come from the first documents of the target's training file, tokenised; seconds from rates measured on one
core with the pocket model and scaled by parameters. An estimate orders the work and sets the expectation; it decides
nothing else.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from statewise.config import BudgetSection
from statewise.signals.continuation import Continuation
from statewise.states import Source
from statewise.states.log import Log
from statewise.states.mixture import Mixture
from statewise.states.prefix import Prefix
from statewise.states.rollout import ModelRollout
from statewise.study.catalog import task_folder
from statewise.study.plan import BASE, Node, Plan

# Measured on one core of a 2-core cloud machine with the 0.9 M pocket model: tokens a second.
TRAIN_RATE, GENERATE_RATE, SCORE_RATE = 7_000.0, 7_000.0, 100_000.0
RATE_PARAMETERS = 0.92e6
NODE_OVERHEAD_S = 1.5
WORKER_START_S = 12.0
DOCUMENTS_READ = 200
# Of the allowed new tokens, the share that a rollout of the base model uses before it ends by itself.
ROLLOUT_FILL = 0.5
GUESSED_TRAJECTORIES = 32.0  # an update of a record that another study made


@dataclass(frozen=True)
class ArmEstimate:
    """One arm and seed, before it runs; counts are totals, named as in the realised budget.

    `num_states` that the source yields, `num_loss_tokens` with a loss, `num_tokens` through the learner with gradient,
    `generated` tokens by writer; `flops_forward`, `flops_backward` of the method (`loop.account`).
    """

    num_updates: int
    num_trajectories: int
    num_states: int
    num_loss_tokens: int
    num_tokens: int
    generated: dict[str, int]
    flops_forward: float
    flops_backward: float
    train_s: float

    @property
    def num_generated(self) -> int:
        return sum(self.generated.values())

    @property
    def budget(self) -> dict[str, float]:
        """Under the keys of a realised budget (docs/metrics.md)."""
        named = {key: float(value) for key, value in asdict(self).items() if key != "generated"}
        return named | {f"num_generated_{writer}": float(count) for writer, count in self.generated.items()}


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
    seconds = {}
    for node in plan.nodes:
        work_s = arms[node.arm].train_s if node.action == "train" else scale * _evaluation_s(plan, node, lengths)
        seconds[node.id] = NODE_OVERHEAD_S + work_s
    wall = max(sum(seconds.values()) / num_workers, _longest_chain(plan.nodes, seconds))
    return PlanEstimate(arms, seconds, WORKER_START_S + wall)


def plan_budgets(plan: Plan) -> dict[str, dict[str, float]]:
    """What every arm is planned to use per seed, by the keys of its realised budget.

    Updates and trajectories are exact; the latter are left out where they are not known before the run: for states
    that another study recorded, and for mixtures by state, which end where a part does. All else is an estimate, and
    left out where the lengths of texts are not known: then, and without the training documents.
    """
    lengths, budgets = _measure_lengths(plan), {}
    scale = (plan.num_parameters or RATE_PARAMETERS) / RATE_PARAMETERS
    for name in plan.config.arms:
        budget = _estimate_arm(plan, name, lengths, scale).budget
        is_open = _is_open(plan.sources[name], plan.sources)
        known = ["num_updates", *([] if is_open else ["num_trajectories"])]
        is_known = lengths.is_measured and not is_open
        budgets[name] = budget if is_known else {key: budget[key] for key in known}
    return budgets


def _is_open(source: Source, sources: Mapping[str, Source]) -> bool:
    """Whether only a run tells how many trajectories `source` yields."""
    if isinstance(source, Log):
        return source.arm is None or source.num_trajectories is not None or _is_open(sources[source.arm], sources)
    return isinstance(source, Mixture) and source.per == "state"


def _longest_chain(nodes: tuple[Node, ...], seconds: dict[str, float]) -> float:
    ends: dict[str, float] = {}
    for node in nodes:
        ends[node.id] = seconds[node.id] + max((ends[need] for need in node.needs), default=0.0)
    return max(ends.values())


@dataclass(frozen=True)
class _Visit:
    """What a source yields in one update: trajectories, tokens of a response, and tokens written, by writer."""

    trajectories: float
    response: float
    written: dict[str, float]


def _visit(plan: Plan, source: Source, lengths: _Lengths) -> _Visit:
    """The mean over an arm's updates of what `source` yields in one."""
    count = float(source.trajectories_per_update)
    if isinstance(source, Log):
        recorded = plan.sources.get(source.arm or "")
        visit = _visit(plan, recorded, lengths) if recorded else _Visit(GUESSED_TRAJECTORIES, lengths.gold, {})
        return _Visit(source.num_trajectories or visit.trajectories, visit.response, {})
    if isinstance(source, ModelRollout):
        response = source.max_new_tokens * ROLLOUT_FILL
        return _Visit(count, response, {source.by: count * response})
    if isinstance(source, Prefix):
        rest = source.max_new_tokens * ROLLOUT_FILL / 2
        whole = lengths.gold if source.of == "dataset" else source.max_new_tokens * ROLLOUT_FILL
        by_teacher = {"teacher": count * whole} if source.of == "teacher" else {}
        return _Visit(count, whole / 2 + rest, {"learner": count * rest, **by_teacher})
    if isinstance(source, Mixture):
        return _visit_mixture(plan, source, lengths)
    return _Visit(count, lengths.gold, {})


def _visit_mixture(plan: Plan, source: Mixture, lengths: _Lengths) -> _Visit:
    """The mean of the parts by their mean weights; drawn by state, every part writes as many trajectories."""
    parts = [_visit(plan, part.source.sized(source.num_trajectories), lengths) for part in source.parts]
    halves = (source.weights_at(0, 2), source.weights_at(1, 2))
    weights = [(first + last) / 2 for first, last in zip(*halves, strict=True)]
    written: dict[str, float] = {}
    for part, weight in zip(parts, weights, strict=True):
        for writer, tokens in part.written.items():
            written[writer] = written.get(writer, 0.0) + tokens * (1.0 if source.per == "state" else weight)
    response = sum(weight * part.response for part, weight in zip(parts, weights, strict=True))
    return _Visit(source.num_trajectories, response, written)


def _estimate_arm(plan: Plan, name: str, lengths: _Lengths, scale: float) -> ArmEstimate:
    arm, signals = plan.config.arms[name], [one.signal for one in plan.signals[name]]
    visit = _visit(plan, plan.sources[name], lengths)
    updates, epochs = arm.update.num_updates, arm.update.num_epochs
    trained, passed, written = visit.response, lengths.prompt + visit.response, dict(visit.written)
    if continued := [signal for signal in signals if isinstance(signal, Continuation)]:
        trained = min(continued[0].num_tokens, visit.response)
        passed = lengths.prompt + visit.response / 2 + trained
        written["teacher"] = written.get("teacher", 0.0) + visit.trajectories * trained
    wants = {need.partition("_")[0] for signal in signals for need in signal.needs}
    wants |= {"base" for one in plan.localities[name] if one.needs_base}
    num_tokens = updates * epochs * visit.trajectories * passed
    generated = {writer: int(updates * tokens) for writer, tokens in written.items()}
    size = plan.num_parameters or RATE_PARAMETERS
    read = sum(generated.values()) + updates * visit.trajectories * lengths.prompt * len(generated)
    # Each other model that is scored makes a forward pass of its own, a third of a training pass.
    others = len(wants & {"teacher", "base"})
    train_s = scale * (num_tokens * (1 + others / 3) / TRAIN_RATE + sum(generated.values()) / GENERATE_RATE)
    whole = ArmEstimate(
        num_updates=updates,
        num_trajectories=int(updates * visit.trajectories),
        num_states=int(updates * visit.trajectories * visit.response),
        num_loss_tokens=int(updates * visit.trajectories * trained),
        num_tokens=int(num_tokens),
        generated=generated,
        flops_forward=2 * size * (num_tokens * (1 + others) + read),
        flops_backward=(4 if arm.adapter.kind == "full" else 2) * size * num_tokens,
        train_s=train_s,
    )
    return whole if arm.update.budget is None else _within(whole, arm.update.budget)


def _within(whole: ArmEstimate, budget: BudgetSection) -> ArmEstimate:
    """The part of an arm's updates that uses up its budget."""
    flops = whole.flops_forward + whole.flops_backward
    used = {"states": whole.num_states, "loss_tokens": whole.num_loss_tokens, "flops": flops}[budget.unit]
    updates = math.ceil(whole.num_updates * min(1.0, budget.amount / max(used, 1)))
    share = updates / whole.num_updates
    counts = ("num_trajectories", "num_states", "num_loss_tokens", "num_tokens")
    return replace(
        whole,
        num_updates=updates,
        generated={writer: int(share * count) for writer, count in whole.generated.items()},
        flops_forward=share * whole.flops_forward,
        flops_backward=share * whole.flops_backward,
        train_s=share * whole.train_s,
        **{name: int(share * getattr(whole, name)) for name in counts},
    )


def _evaluation_s(plan: Plan, node: Node, lengths: _Lengths) -> float:
    """Seconds to evaluate one arm and to roll it out, on the reference model."""
    shared = plan.config.shared
    items = shared.evaluation.limit or 600
    num_answers = 1 + (shared.evaluation.samples or 1)
    generated = num_answers * items * min(lengths.gold, shared.evaluation.max_new_tokens)
    num_samples = 2 if node.arm == BASE else 1
    generated += num_samples * shared.drift.num_rollouts * min(lengths.gold, shared.drift.max_new_tokens)
    scored = len(shared.retention) * items * 4 * lengths.prompt
    return generated / GENERATE_RATE + scored / SCORE_RATE


def _measure_lengths(plan: Plan) -> _Lengths:
    """Token counts of the first training documents; a guess of 100 + 100 where there are none of these columns."""
    folder, target = task_folder(plan.model), plan.config.shared.target
    path = folder / f"{target}_train.jsonl" if folder else None
    if path is None or not path.exists():
        return _Lengths(100.0, 100.0)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(plan.model / "tokenizer.json"))
    with path.open(encoding="utf-8") as stream:
        documents = [json.loads(line) for line in itertools.islice(stream, DOCUMENTS_READ)]
    texts = [(document.get("question"), document.get("answer")) for document in documents]
    if not all(isinstance(text, str) for pair in texts for text in pair):
        return _Lengths(100.0, 100.0)
    prompts, golds = (sum(len(tokenizer.encode(text).ids) for text in column) for column in zip(*texts, strict=True))
    return _Lengths(prompts / len(texts), golds / len(texts), is_measured=True)
