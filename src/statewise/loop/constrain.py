"""An arm's localities at work: KL to base is a term, EWC adds to the gradient, (A-)GEM bends the step, EMA follows.

What they remember (base's weights, texts and Fisher information) is made before the first update, while the learner
still is the base model, and is made again, the same, when an interrupted run is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statewise.errors import DivergedError, UsageError
from statewise.locality import Locality, Remembering
from statewise.locality.ema import EMA, update_average
from statewise.locality.ewc import EWC, add_penalty, diagonal_fisher
from statewise.locality.gem import AGEM, GEM, project_agem, project_gem
from statewise.locality.kl_to_base import KLToBase
from statewise.loop.build import Setup
from statewise.loop.documents import remembered_prompts
from statewise.loop.fit import recomputed_activations
from statewise.loop.score import Term
from statewise.loop.tensors import write_tensors
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import action_logprobs, batch_tensors, micro_batches, state_hidden
from statewise.seeding import derive_key
from statewise.tasks.task import Task
from statewise.types import IntArray, States, Trajectory, collate, take_rows

FISHER = "fisher.safetensors"


class Constraints:
    """At most one locality of each kind, and what each remembers.

    `coefficient`: of KL to base in the next update. `average`: of the weights, by name; empty without `ema`.
    """

    def __init__(self, setup: Setup, folder: Path | None = None) -> None:
        self._setup = setup
        by_kind: dict[str, Locality] = {one.kind: one for one in setup.recipe.localities}
        kl, ewc, ema = by_kind.get("kl_to_base"), by_kind.get("ewc"), by_kind.get("ema")
        gems = [one for one in setup.recipe.localities if isinstance(one, GEM | AGEM)]
        self._kl = kl if isinstance(kl, KLToBase) else None
        self._ewc = ewc if isinstance(ewc, EWC) else None
        self._ema = ema if isinstance(ema, EMA) else None
        self._gems: list[GEM | AGEM] = gems
        self.coefficient = self._kl.coefficient if self._kl else 0.0
        self.average = _copy(setup.trainable) if self._ema else {}
        self._anchor = _copy(setup.trainable) if self._ewc else {}
        self._fisher = _fisher_of(setup, self._ewc, folder) if self._ewc else {}
        self._memories = [_memories(setup, gem) for gem in gems]

    def terms(self, states: States) -> list[Term]:
        """What the localities add to the loss of an update on `states`."""
        if self._kl is None:
            return []
        # The actions themselves, whatever labels a signal set, so that its states are those of the signal's term.
        return [Term(self._kl, self.coefficient, replace(states, label_ids=None))]

    def pull(self) -> dict[str, float | int]:
        """Add EWC's to the gradient that lies in the weights; returns metrics."""
        if not self._ewc:
            return {}
        penalty = add_penalty(self._setup.trainable, self._anchor, self._fisher, self._ewc.strength)
        return {"locality/ewc_penalty_nats": penalty}

    def move(self, optimizer: torch.optim.Optimizer, lr: float) -> dict[str, float | int]:
        """Take the optimizer's step, or the nearest one that no memory objects to; returns metrics."""
        trainable = self._setup.trainable
        before = _copy(trainable) if self._gems else {}
        remembered = [
            torch.stack([_flat(memory_gradient(self._setup, states)) for states in memories])
            for memories in self._memories
        ]
        if not all(bool(gradients.isfinite().all()) for gradients in remembered):
            raise DivergedError("the gradient of the loss on a memory is not finite; lower the learning rate")
        optimizer.step()
        metrics: dict[str, float | int] = {}
        for gem, gradients in zip(self._gems, remembered, strict=True):
            metrics[f"locality/{gem.kind}_projected_rate"] = int(_project(gem, gradients, trainable, before, lr))
        if self._ema:
            update_average(self.average, trainable, self._ema.decay)
        return metrics

    def end_update(self, mean_losses: Sequence[float | None]) -> dict[str, float | int]:
        """Set the coefficient of the next update by what this one measured; returns metrics.

        `mean_losses`: of every term, nats per state; None for a term without a state, which measures nothing.
        """
        if self._kl is None:
            return {}
        measured, used = mean_losses[-1], self.coefficient  # the penalty's term is the last
        if measured is None:
            return {"locality/kl_coefficient": used}
        self.coefficient = self._kl.next_coefficient(used, measured)
        return {"locality/kl_to_base_nats": measured, "locality/kl_coefficient": used}

    def load_average(self) -> None:
        """Make the average, where there is one, the weights that are saved and evaluated."""
        with torch.no_grad():
            for name, value in self.average.items():
                self._setup.trainable[name].copy_(value)


def _copy(trainable: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainable.items()}


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def _project(
    gem: GEM | AGEM,
    gradients: Tensor,
    trainable: Mapping[str, torch.nn.Parameter],
    before: Mapping[str, Tensor],
    lr: float,
) -> bool:
    """Replace the step since `before` by the nearest one that no memory objects to; returns whether it changed.

    `gradients`: of the loss on every memory at `before`, [memories, weights]. What is projected is the step per unit of
    the learning rate, -Δθ / lr, which under plain gradient descent is the gradient.
    """
    step = _flat({name: (before[name] - parameter.detach()) / lr for name, parameter in trainable.items()})
    if isinstance(gem, AGEM):
        projected = project_agem(step, gradients.mean(dim=0))
    else:
        projected = project_gem(step, gradients, gem.margin)
    if projected is step:
        return False
    parts = torch.split(projected, [parameter.numel() for parameter in trainable.values()])
    with torch.no_grad():
        for (name, parameter), part in zip(trainable.items(), parts, strict=True):
            parameter.copy_(before[name] - lr * part.view_as(parameter))
    return True


def _memories(setup: Setup, locality: Remembering) -> list[States]:
    """What the base model writes on prompts of each retention task; the learner still is the base model.

    Raises:
        UsageError: there is no retention task to remember.
    """
    if not setup.material.retention:
        raise UsageError(f"locality {locality.kind!r} remembers the retention tasks, and the study has none")
    return [_write_memory(setup, task, locality) for task in setup.material.retention]


def _write_memory(setup: Setup, task: Task, locality: Remembering) -> States:
    learner = setup.learner
    prompts = remembered_prompts(learner, task, locality, setup.documents.rule)
    keys = [derive_key(setup.recipe.key, "memory", task.name, row) for row in range(len(prompts))]
    written = sample(learner, prompts, keys, Sampling(max_new_tokens=locality.max_new_tokens))
    setup.engine.account.write("base", learner.model, sum(map(len, prompts)), sum(len(r.token_ids) for r in written))
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
    setup.engine.account.train(setup.learner.model, setup.num_adapted, int(states.lengths.sum()))
    return total


def _logprobs(setup: Setup, states: States) -> Tensor:
    labels = batch_tensors(states, device=setup.learner.device).labels
    return action_logprobs(setup.learner, state_hidden(setup.learner, states), labels, 1.0)


def _fisher_of(setup: Setup, ewc: EWC, folder: Path | None) -> dict[str, Tensor]:
    """The diagonal Fisher information on the memories; saved to the arm's folder for those who look at it later."""
    fisher = diagonal_fisher(_sample_gradients(setup, _memories(setup, ewc)))
    if folder:
        write_tensors(folder / FISHER, fisher)
    return fisher


def _sample_gradients(setup: Setup, memories: list[States]) -> Iterator[dict[str, Tensor]]:
    """Gradient of log π(y|x), one remembered text at a time."""
    parameters = [*setup.trainable.values()]
    for states in memories:
        for row in range(len(states.lengths)):
            with recomputed_activations(setup.learner.model):
                logprob = _logprobs(setup, take_rows(states, np.array([row]))).sum()
                gradients = torch.autograd.grad(logprob, parameters, materialize_grads=True)
            yield dict(zip(setup.trainable, gradients, strict=True))
        setup.engine.account.train(setup.learner.model, setup.num_adapted, int(states.lengths.sum()))
