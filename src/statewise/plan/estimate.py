"""What a plan will cost before anything is computed: states, tokens and seconds of every job.

Token counts come from the first documents of the target's training file, tokenised; seconds from rates measured on one
core with the pocket model and scaled by parameters. An estimate orders the work and sets the expectation; it decides
nothing else.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from statewise.config.study import BudgetSection
from statewise.plan.catalog import place_of_task
from statewise.plan.dag import BASE, Job, Plan
from statewise.states.source import Lengths, Visit
from statewise.tasks.own_data import read_own_data

# Measured on one core of a 2-core cloud machine with the 0.9 M pocket model: tokens a second.
TRAIN_RATE, GENERATE_RATE, SCORE_RATE = 7_000.0, 7_000.0, 100_000.0
RATE_PARAMETERS = 0.92e6
JOB_OVERHEAD_S = 1.5
WORKER_START_S = 12.0
DOCUMENTS_READ = 200


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
    """`seconds` by job id; `wall_s` for `num_workers` processes."""

    arms: dict[str, ArmEstimate]
    seconds: dict[str, float]
    wall_s: float


def estimate_plan(plan: Plan, num_workers: int) -> PlanEstimate:
    """Estimate every job of `plan`."""
    lengths = _measure_lengths(plan)
    scale = (plan.num_parameters or RATE_PARAMETERS) / RATE_PARAMETERS
    arms = {name: _estimate_arm(plan, name, lengths, scale) for name in plan.arms}
    seconds = {}
    for job in plan.jobs:
        work_s = arms[job.arm].train_s if job.action == "train" else scale * _evaluation_s(plan, job, lengths)
        seconds[job.id] = JOB_OVERHEAD_S + work_s
    wall = max(sum(seconds.values()) / num_workers, _longest_chain(plan.jobs, seconds))
    return PlanEstimate(arms, seconds, WORKER_START_S + wall)


def plan_budgets(plan: Plan) -> dict[str, dict[str, float]]:
    """What every arm is planned to use per seed, by the keys of its realised budget.

    Updates and trajectories are exact; the latter are left out where they are not known before the run: for states
    that another study recorded, and for mixtures by state, which end where a part does. All else is an estimate, and
    left out where the lengths of texts are not known: then, and without the training documents.
    """
    lengths, budgets = _measure_lengths(plan), {}
    scale = (plan.num_parameters or RATE_PARAMETERS) / RATE_PARAMETERS
    for name in plan.arms:
        budget = _estimate_arm(plan, name, lengths, scale).budget
        is_open = _is_open(plan, name)
        known = ["num_updates", *([] if is_open else ["num_trajectories"])]
        is_known = lengths.is_measured and not is_open
        budgets[name] = budget if is_known else {key: budget[key] for key in known}
    return budgets


def _is_open(plan: Plan, name: str) -> bool:
    """Whether only a run tells how many trajectories an arm has."""
    return plan.arms[name].source.is_open(lambda other: _is_open(plan, other))


def _longest_chain(jobs: tuple[Job, ...], seconds: dict[str, float]) -> float:
    ends: dict[str, float] = {}
    for job in jobs:
        ends[job.id] = seconds[job.id] + max((ends[need] for need in job.needs), default=0.0)
    return max(ends.values())


def _visit(plan: Plan, name: str, lengths: Lengths) -> Visit:
    """What the source of an arm is expected to yield in one update."""
    return plan.arms[name].source.expect(lengths, lambda other: _visit(plan, other, lengths))


def _estimate_arm(plan: Plan, name: str, lengths: Lengths, scale: float) -> ArmEstimate:
    arm = plan.arms[name]
    visit = _visit(plan, name, lengths)
    updates, epochs, written = arm.update.num_updates, arm.update.num_epochs, dict(visit.written)
    passes = {one.signal.expect(visit.response) for one in arm.signal}  # signals that look at the same share one
    passed = sum(lengths.prompt + one.passed for one in passes)
    trained = sum(one.trained for one in passes)
    if by_teacher := sum(one.written for one in passes):
        written["teacher"] = written.get("teacher", 0.0) + visit.trajectories * by_teacher
    wants = {need.partition("_")[0] for one in arm.signal for need in one.signal.needs}
    wants |= {"base" for one in arm.locality if one.needs_base}
    num_tokens = updates * epochs * visit.trajectories * passed
    generated = {writer: int(updates * tokens) for writer, tokens in written.items()}
    size = plan.num_parameters or RATE_PARAMETERS
    # Of each model, in sizes of the base model.
    sizes = dict.fromkeys((*generated, "teacher", "base"), 1.0)
    if arm.teacher in plan.others:
        sizes["teacher"] = plan.num_parameters_of(arm.teacher) / size
    prompts = updates * visit.trajectories * lengths.prompt
    read = sum(sizes[writer] * (tokens + prompts) for writer, tokens in generated.items())
    # Each other model that is scored makes a forward pass of its own, a third of a training pass.
    others = sum(sizes[one] for one in wants & {"teacher", "base"})
    # Tokens that a reward model reads, in sizes of the base model.
    graded = sum(one.signal.needs_reward for one in arm.signal) * plan.num_reward_parameters / size
    graded *= updates * visit.trajectories * (lengths.prompt + visit.response)
    written_s = sum(sizes[writer] * tokens for writer, tokens in generated.items()) / GENERATE_RATE
    train_s = scale * (num_tokens * (1 + others / 3) / TRAIN_RATE + written_s + graded / SCORE_RATE)
    whole = ArmEstimate(
        num_updates=updates,
        num_trajectories=int(updates * visit.trajectories),
        num_states=int(updates * visit.trajectories * visit.response),
        num_loss_tokens=int(updates * visit.trajectories * trained),
        num_tokens=int(num_tokens),
        generated=generated,
        flops_forward=2 * size * (num_tokens * (1 + others) + read + graded),
        flops_backward=(2 if arm.adapter.keeps_base else 4) * size * num_tokens,
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


def _evaluation_s(plan: Plan, job: Job, lengths: Lengths) -> float:
    """Seconds to evaluate one arm and to roll it out, on the reference model."""
    shared = plan.config.shared
    items = shared.evaluation.limit or 600
    num_answers = 1 + (shared.evaluation.samples or 1)
    generated = num_answers * items * min(lengths.gold, shared.evaluation.max_new_tokens)
    num_samples = 2 if job.arm == BASE else 1
    generated += num_samples * shared.drift.num_rollouts * min(lengths.gold, shared.drift.max_new_tokens)
    scored = len(shared.retention) * items * 4 * lengths.prompt
    rewarding = plan.num_reward_parameters / (plan.num_parameters or RATE_PARAMETERS)
    scored += rewarding * num_answers * items * (lengths.prompt + lengths.gold)
    return generated / GENERATE_RATE + scored / SCORE_RATE


def _measure_lengths(plan: Plan) -> Lengths:
    """Token counts of the first training documents; a guess of 100 + 100 where there are none of these columns."""
    texts, path = _first_texts(plan), plan.model / "tokenizer.json"
    if not texts or not path.exists() or not all(isinstance(text, str) for pair in texts for text in pair):
        return Lengths(100.0, 100.0)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    prompts, golds = (sum(len(tokenizer.encode(text).ids) for text in column) for column in zip(*texts, strict=True))
    return Lengths(prompts / len(texts), golds / len(texts), is_measured=True)


def _first_texts(plan: Plan) -> list[tuple[Any, Any]]:
    """Prompt and gold text of the first training documents, where they lie in a file."""
    if plan.config.data:
        rows = itertools.islice(read_own_data(plan.config.data)["train"], DOCUMENTS_READ)
        return [(row.prompt, row.completion) for row in rows]
    name_or_path, folder = place_of_task(plan.config.shared.target, plan.config, plan.model)
    path = folder / f"{name_or_path}_train.jsonl"  # which a task of the user's own has not
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as stream:
        documents = [json.loads(line) for line in itertools.islice(stream, DOCUMENTS_READ)]
    return [(document.get("question"), document.get("answer")) for document in documents]
