"""An arm's localities at work, whatever their kinds: what they may use of the arm, and when each is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statewise.batch import IntArray, States, Trajectory, collate, take_rows
from statewise.errors import UsageError
from statewise.locality import LocalityContext, Memory
from statewise.locality.locality import Constraint, Metrics
from statewise.loop.build import Setup
from statewise.loop.documents import remembered_prompts
from statewise.loop.oom import recomputed_activations
from statewise.loop.score import Term
from statewise.loop.tensors import write_tensors
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import action_logprobs, batch_tensors, micro_batches, state_hidden
from statewise.seeding import derive_key
from statewise.tasks.task import Task


class Constraints:
    """The localities of an arm; `held`: each at work, by kind."""

    def __init__(self, setup: Setup, folder: Path | None = None) -> None:
        context = LocalityContext(
            setup.trainable,
            partial(_memories, setup),
            partial(memory_gradient, setup),
            partial(_sample_gradients, setup),
            partial(_keep, folder),
        )
        self.held: dict[str, Constraint] = {one.kind: one.start(context) for one in setup.recipe.localities}

    def terms(self, states: States) -> list[Term]:
        """What the localities add to the loss of an update on `states`.

        The actions themselves, whatever labels a signal set, so that its states are those of the signal's term.
        """
        penalties = [one.penalty for one in self.held.values()]
        return [Term(*penalty, replace(states, label_ids=None)) for penalty in penalties if penalty]

    def on_gradient(self) -> Metrics:
        """Ask those that add to the gradient that lies in the weights."""
        return _joined([one.on_gradient() for one in self.held.values()])

    def move(self, optimizer: torch.optim.Optimizer, lr: float) -> Metrics:
        """Take the optimizer's step, which they may bend."""
        for one in self.held.values():
            one.before_step()
        optimizer.step()
        metrics = _joined([one.on_step(lr) for one in self.held.values()])
        for one in self.held.values():
            one.after_step()
        return metrics

    def end_update(self, mean_losses: Sequence[float | None]) -> Metrics:
        """Tell each what its term of this update measured: `mean_losses` of `terms`, in their order."""
        measured = iter(mean_losses)
        return _joined([one.on_update(next(measured) if one.penalty else None) for one in self.held.values()])

    def at_end(self) -> None:
        """Make the weights those that are saved and evaluated."""
        for one in self.held.values():
            one.at_end()


def _keep(folder: Path | None, name: str, tensors: Mapping[str, Tensor]) -> None:
    if folder:
        write_tensors(folder / "locality" / name, tensors)


def _joined(metrics: Sequence[Metrics]) -> Metrics:
    return {name: value for one in metrics for name, value in one.items()}


def _memories(setup: Setup, kind: str, memory: Memory) -> list[States]:
    """What the base model writes on prompts of each retention task; the learner still is the base model.

    Raises:
        UsageError: there is no retention task to remember.
    """
    if not setup.material.retention:
        raise UsageError(f"locality {kind!r} remembers the retention tasks, and the study has none")
    return [_write_memory(setup, task, kind, memory) for task in setup.material.retention]


def _write_memory(setup: Setup, task: Task, kind: str, memory: Memory) -> States:
    learner = setup.learner
    prompts = remembered_prompts(learner, task, kind, memory, setup.documents.rule)
    keys = [derive_key(setup.recipe.key, "memory", task.name, row) for row in range(len(prompts))]
    written = sample(learner, prompts, keys, Sampling(max_new_tokens=memory.max_new_tokens))
    setup.writers.account.write("base", learner.model, sum(map(len, prompts)), sum(len(r.token_ids) for r in written))
    return collate(
        [
            Trajectory(r.prompt_ids + r.token_ids, len(r.prompt_ids), row, "memory", "base", r.logprobs, r.is_finished)
            for row, r in enumerate(written)
        ]
    )


def memory_gradient(setup: Setup, states: States) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of the states' actions, by name of the weight; `.grad` is left alone."""

    def accumulate(batches: Sequence[list[IntArray]]) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(p) for name, p in setup.trainable.items()}
        for rows in batches[0]:
            with recomputed_activations(setup.learner.model):
                loss = -_logprobs(setup, take_rows(states, rows)).sum() / states.num_states
                gradients = torch.autograd.grad(loss, [*setup.trainable.values()], materialize_grads=True)
            for name, gradient in zip(setup.trainable, gradients, strict=True):
                total[name] += gradient
        return total

    total = setup.limit.within([states], lambda max_tokens: [micro_batches(states, max_tokens)], accumulate)
    setup.writers.account.train(setup.learner.model, setup.num_adapted, int(states.lengths.sum()))
    return total


def _logprobs(setup: Setup, states: States) -> Tensor:
    labels = batch_tensors(states, device=setup.learner.device).labels
    return action_logprobs(setup.learner, state_hidden(setup.learner, states), labels, 1.0)


def _sample_gradients(setup: Setup, states: States) -> Iterator[dict[str, Tensor]]:
    """Gradient of log π(y|x), one remembered text at a time."""
    parameters = [*setup.trainable.values()]
    for row in range(len(states.lengths)):
        with recomputed_activations(setup.learner.model):
            logprob = _logprobs(setup, take_rows(states, np.array([row]))).sum()
            gradients = torch.autograd.grad(logprob, parameters, materialize_grads=True)
        yield dict(zip(setup.trainable, gradients, strict=True))
    setup.writers.account.train(setup.learner.model, setup.num_adapted, int(states.lengths.sum()))
