"""The one training loop: s ~ q_k(s); z ~ S(s); θ ← θ − η ∇ ℓ(π_θ(·|s), z) (arXiv:2605.22731, eq. 9–11)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statewise.errors import DivergedError, InterruptedTrainingError
from statewise.loop import checkpoint
from statewise.loop.build import Setup
from statewise.loop.recorder import Recorder
from statewise.loop.update import Updater, UpdateResult
from statewise.types import States


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
    recipe, recorder, updater = setup.recipe, Recorder(folder), Updater(setup)
    start = _resume(setup, recorder, updater, observer)
    for step in range(start, recipe.update.num_updates):
        if observer.should_stop():
            raise InterruptedTrainingError(f"stopped before update {step}")
        began = time.perf_counter()
        visited = recipe.source.sample(setup.context, step)  # where
        sampled = time.perf_counter()
        states = recipe.signal.supervise(visited, setup.supervision(step))  # what
        supervised = time.perf_counter()
        try:
            result = updater.apply(states, step)  # how far
        except DivergedError:
            recorder.flush(step)  # the arm is a result: the states up to its end are part of it
            raise
        seconds = {
            "states/sample_s": sampled - began,
            "signals/supervise_s": supervised - sampled,
            "loop/update_s": time.perf_counter() - supervised,
        }
        recorder.step(step, states, {**_metrics(visited, states, result), **_generated(setup)}, seconds)
        if (step + 1) % recipe.update.checkpoint_every == 0 or step + 1 == recipe.update.num_updates:
            recorder.flush(step + 1)
            progress = checkpoint.Progress(step + 1, recorder.state_hash, dict(setup.engine.num_generated))
            checkpoint.save(folder / "checkpoints", progress, setup.trainable, updater.optimizer)
        observer.progress(step + 1)
    return recorder


def _resume(setup: Setup, recorder: Recorder, updater: Updater, observer: Observer) -> int:
    """Restore the last sound checkpoint, if any; returns the number of updates that are done."""
    fresh_hash = recorder.state_hash
    progress, damaged = checkpoint.load_last(recorder.folder / "checkpoints", setup.trainable, updater.optimizer)
    for name in damaged:
        observer.warn(f"checkpoint {name} in {recorder.folder} is damaged and was passed over")
    if progress is None:
        recorder.rewind(0, fresh_hash)
        return 0
    recorder.rewind(progress.step, progress.state_hash)
    setup.engine.num_generated.update(progress.num_generated)
    observer.progress(progress.step)
    return progress.step


def _metrics(visited: States, states: States, result: UpdateResult) -> dict[str, float | int | str]:
    """One line of metrics; each key is explained in docs/metrics.md.

    Lengths and stops are those of the trajectories that the source `visited`; counts are of the `states` trained on,
    which a signal such as `continuation` makes from them.
    """
    responses = visited.lengths - visited.prompt_lengths
    metrics: dict[str, float | int | str] = {
        "loop/loss_nats": result.loss,
        "loop/grad_norm": result.grad_norm,
        "loop/lr": result.lr,
        "loop/num_micro_batches": result.num_micro_batches,
        "loop/padding_rate": result.padding_share,
        "states/num_states": states.num_states,
        "states/num_trajectories": len(states.lengths),
        "states/num_tokens": int(states.lengths.sum()),
        "states/response_tokens_mean": float(responses.mean()),
        "states/finished_rate": float(visited.is_finished.mean()),
    }
    if result.sampler_mismatch is not None:
        metrics["policy/sampler_mismatch_nats"] = result.sampler_mismatch
    is_graded = ~np.isnan(states.rewards)
    if not np.isnan(states.advantages).all():
        metrics["signals/num_unscored"] = int((~is_graded).sum())
        metrics["signals/advantage_zero_rate"] = float((states.advantages == 0).mean())
    if is_graded.any():
        metrics["signals/reward_mean"] = float(states.rewards[is_graded].mean())
    return metrics


def _generated(setup: Setup) -> dict[str, float | int | str]:
    """Tokens written since the start of the arm, by writer."""
    return {f"states/num_generated_{writer}": count for writer, count in sorted(setup.engine.num_generated.items())}
