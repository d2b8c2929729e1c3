"""The one training loop: s ~ q_k(s); z ~ S(s); θ ← θ − η ∇ ℓ(π_θ(·|s), z) (arXiv:2605.22731, eq. 9–11)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from statewise.batch import BoolArray, States
from statewise.errors import DivergedError, InterruptedTrainingError
from statewise.loop import checkpoint
from statewise.loop.build import Setup
from statewise.loop.constrain import Constraints
from statewise.loop.promises import check_supervised, check_visited
from statewise.loop.recorder import Recorder
from statewise.loop.score import Term, group_terms
from statewise.loop.update import Updater, UpdateResult
from statewise.policy.load import Policy

LOCALITY = "locality-"  # before the name of a locality's tensors in a checkpoint
MISMATCH = "policy/sampler_mismatch_nats"
# The mean over an update's states that rounding may reach, by precision (how they come about: docs/metrics.md).
BOUNDS_NATS = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Observer:
    """How a caller follows and stops a training: `progress(done)` after each update, `should_stop()` before each."""

    progress: Callable[[int], None] = lambda done: None
    should_stop: Callable[[], bool] = lambda: False
    warn: Callable[[str], None] = lambda message: None


def train(setup: Setup, folder: Path, observer: Observer) -> Recorder:
    """Train the learner of `setup`, from the last checkpoint in `folder` if there is one.

    Raises:
        DivergedError: a loss or gradient is not finite.
        InterruptedTrainingError: `observer.should_stop()` said so; the last checkpoint stands.
    """
    recorder = Recorder(folder)
    updater = Updater(setup, Constraints(setup, folder))
    is_warned = False
    step, num_updates = _resume(setup, recorder, updater, observer), setup.recipe.update.num_updates
    while step < num_updates and _share_used(setup) < 1:
        if observer.should_stop():
            raise InterruptedTrainingError(f"stopped before update {step}")
        mismatch = _update(setup, recorder, updater, step).sampler_mismatch
        if not is_warned and (problem := mismatch_problem(setup.learner, [mismatch or 0.0])):
            observer.warn(f"{problem} ({recorder.folder}, update {step})")
            is_warned = True
        step += 1
        is_last = step == num_updates or _share_used(setup) >= 1
        if step % setup.recipe.update.checkpoint_every == 0 or is_last:
            _save(setup, recorder, updater, step)
        observer.progress(step)
    updater.constraints.at_end()
    return recorder


def mismatch_problem(learner: Policy, mismatches: Sequence[float]) -> str | None:
    """What a reader must know of an arm's sampler; None where it agrees with the loop.

    Args:
        learner: by its precision, how far two computations of one log-probability may be apart.
        mismatches: `policy/sampler_mismatch_nats` of updates. The largest counts: a fault that begins with the first
            long text is not to be averaged away.
    """
    # Under an adapter the model itself may be in half precision, while what is trained never is.
    name = max((str(p.dtype).removeprefix("torch.") for p in learner.model.parameters()), key=BOUNDS_NATS.__getitem__)
    worst = max(mismatches, default=0.0)
    if worst <= BOUNDS_NATS[name]:
        return None
    return (
        f"the sampler's log-probabilities are {worst:.2g} nats from those that the policy is trained with, where "
        f"{BOUNDS_NATS[name]:g} are rounding in {name}: what is trained may not be what wrote; see {MISMATCH}"
    )


def _update(setup: Setup, recorder: Recorder, updater: Updater, step: int) -> UpdateResult:
    """One update, recorded."""
    began = time.perf_counter()
    share = _share_used(setup) if setup.recipe.update.budget else None  # before the update, whose rollouts count too
    setup.writers.begin(step)
    try:
        visited = setup.recipe.source.sample(setup.context, step)  # where
        check_visited(setup, visited)
        sampled = time.perf_counter()
        terms = supervise(setup, visited, step)  # what
        check_supervised(setup, [term.states for term in terms])
        supervised = time.perf_counter()
        result = updater.apply(terms, step, share)  # how far
    except DivergedError:
        recorder.flush(step)  # the arm is a result: the states up to its end are part of it
        raise
    seconds = {
        "states/sample_s": sampled - began,
        "signals/supervise_s": supervised - sampled,
        "loop/update_s": time.perf_counter() - supervised,
    }
    account = setup.writers.account
    account.num_states += visited.num_states
    account.num_loss_tokens += sum(group[0].states.num_states for group in group_terms(terms))
    recorder.states(step, visited, [term.states for term in terms])
    recorder.step(step, {**_metrics(visited, terms, result), **_used(setup)}, seconds)
    return result


def supervise(setup: Setup, visited: States, step: int) -> list[Term]:
    """What the arm's signals make of the states of an update."""
    terms = []
    for place, one in enumerate(setup.recipe.signals):
        states = one.signal.supervise(visited, setup.supervision(step, place))
        if not setup.recipe.update.trains_end_of_text:
            # Of a teacher's whole law a label is but a draw, by which a state must not leave the mean over draws.
            is_law = any(need.startswith("teacher") for need in one.signal.needs)
            taken = states.token_ids if is_law else states.labels
            states = _without_ends(states, np.isin(taken, setup.learner.end_token_ids))
        terms.append(Term(one.signal, one.weight, states, one.signal.skips_zero_advantages))
    return terms


def _without_ends(states: States, is_end: BoolArray) -> States:
    """The states without those that end the text; a preference that loses all of one answer loses the other."""
    mask = states.action_mask & ~is_end
    if states.pair_ids is not None:
        is_empty = ~mask.any(axis=1)
        mask &= ~np.isin(states.pair_ids, states.pair_ids[is_empty])[:, None]
    return replace(states, action_mask=mask)


def _share_used(setup: Setup) -> float:
    """Of the arm's budget, 0 where it has none; 1 and more: it is used up."""
    budget = setup.recipe.update.budget
    return setup.writers.account.used(budget.unit) / budget.amount if budget else 0.0


def _save(setup: Setup, recorder: Recorder, updater: Updater, step: int) -> None:
    recorder.flush(step)
    progress = checkpoint.Progress(
        step, recorder.state_hash, setup.writers.account.totals(),
        {kind: one.numbers for kind, one in updater.constraints.held.items()}, recorder.reward_hash, recorder.table,
    )  # fmt: skip
    held = {LOCALITY + kind: one.tensors for kind, one in updater.constraints.held.items()}
    memory = checkpoint.Memory({"history": setup.writers.history.tensors(), **held}, setup.context.buffers)
    checkpoint.save(recorder.folder / "checkpoints", progress, setup.trainable, updater.optimizer, memory)


def _resume(setup: Setup, recorder: Recorder, updater: Updater, observer: Observer) -> int:
    """Restore the last sound checkpoint, if any; returns the number of updates that are done."""
    fresh_hash = recorder.state_hash, recorder.reward_hash
    progress, memory, damaged = checkpoint.load_last(
        recorder.folder / "checkpoints", setup.trainable, updater.optimizer
    )
    for name in damaged:
        observer.warn(
            f"checkpoint {name} in {recorder.folder}, or a record that it stands on, is damaged and was passed over"
        )
    if progress is None:
        recorder.rewind(0, *fresh_hash)
        return 0
    recorder.rewind(progress.step, progress.state_hash, progress.reward_hash)
    setup.writers.account.restore(progress.account)
    setup.writers.history.restore(memory.tensors.get("history", {}))
    setup.context.buffers.update(memory.buffers)
    for kind, one in updater.constraints.held.items():
        one.numbers = dict(progress.localities[kind])
        for name, value in memory.tensors.get(LOCALITY + kind, {}).items():
            if name in one.tensors:
                one.tensors[name].copy_(value)  # others may hold the same tensor
            else:
                one.tensors[name] = value.to(setup.learner.device)
    observer.progress(progress.step)
    return progress.step


def _metrics(visited: States, terms: Sequence[Term], result: UpdateResult) -> dict[str, float | int | str]:
    """One line of metrics; each key is explained in docs/metrics.md.

    Lengths and stops are those of the trajectories that the source `visited`; loss tokens and tokens are those trained
    on, which a signal such as `continuation` makes from them.
    """
    responses = visited.lengths - visited.prompt_lengths
    trained = [group[0].states for group in group_terms(terms)]
    metrics: dict[str, float | int | str] = {
        "loop/loss_nats": result.loss,
        "loop/grad_norm": result.grad_norm,
        "loop/lr": result.lr,
        "loop/num_micro_batches": result.num_micro_batches,
        "loop/padding_rate": result.padding_share,
        "states/num_states": visited.num_states,
        "states/num_loss_tokens": sum(states.num_states for states in trained),
        "states/num_trajectories": len(visited.lengths),
        "states/num_tokens": sum(int(states.lengths.sum()) for states in trained),
        "states/response_tokens_mean": float(responses.mean()),
        "states/finished_rate": float(visited.is_finished.mean()),
        **result.constraints,
    }
    if len(terms) > 1:
        for place, term in enumerate(terms):
            metrics[f"signals/loss_nats_{place}_{term.what.kind}"] = result.term_losses[place]
    if result.sampler_mismatch is not None:
        metrics[MISMATCH] = result.sampler_mismatch
    return metrics | _of_writers(visited) | _of_rewards(terms)


def _of_writers(visited: States) -> dict[str, float | int | str]:
    """How many updates ago the learner wrote, on average, where it did."""
    written = visited.writer_updates[visited.writer_updates >= 0]
    return {"states/writer_update_mean": float(written.mean())} if len(written) else {}


def _of_rewards(terms: Sequence[Term]) -> dict[str, float | int | str]:
    """Of the first signal that grades."""
    graded = next((t.states for t in terms if t.skips_zero_advantages or not np.isnan(t.states.rewards).all()), None)
    if graded is None:
        return {}
    metrics: dict[str, float | int | str] = {}
    is_graded = ~np.isnan(graded.rewards)
    if not np.isnan(graded.advantages).all():
        metrics["signals/num_unscored"] = int((~is_graded).sum())
        metrics["signals/advantage_zero_rate"] = float((graded.advantages == 0).mean())
    if is_graded.any():
        metrics["signals/reward_mean"] = float(graded.rewards[is_graded].mean())
        is_rewarded = graded.rewards > 0
        metrics["signals/num_rewarded"] = int(is_rewarded.sum())
        metrics["signals/num_rewarded_unfinished"] = int((is_rewarded & ~graded.is_finished).sum())
    return metrics


def _used(setup: Setup) -> dict[str, float | int | str]:
    """Since the start of the arm: tokens written, by writer, and FLOPs."""
    account = setup.writers.account
    written = {f"states/num_generated_{writer}": count for writer, count in sorted(account.num_generated.items())}
    return {
        **written, "loop/flops_forward": account.flops_forward, "loop/flops_backward": account.flops_backward,
    }  # fmt: skip
