"""The localities of an arm at work: KL to base as a term, EWC and (A-)GEM on the gradient, an average of the weights.

What they remember (base's weights, texts and Fisher information) is made before the first update, while the learner
still is the base model, and is made again, the same, when an interrupted run is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statewise.errors import UsageError
from statewise.locality import Locality
from statewise.locality.ema import EMA, update_average
from statewise.locality.ewc import EWC, add_penalty, diagonal_fisher
from statewise.locality.gem import AGEM, GEM, project_agem, project_gem
from statewise.locality.kl_to_base import KLToBase
from statewise.loop.build import Setup
from statewise.loop.score import Term
from statewise.loop.tensors import write_tensors
from statewise.policy.load import chat_of, encode_prompt
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import action_logprobs, batch_tensors, micro_batches, state_hidden
from statewise.seeding import derive_key
from statewise.tasks.task import Task
from statewise.types import States, Trajectory, collate, take_rows

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

    def bend(self) -> dict[str, float | int]:
        """Change the gradient that lies in the weights; returns metrics."""
        metrics: dict[str, float | int] = {}
        for gem, memories in zip(self._gems, self._memories, strict=True):
            metrics[f"locality/{gem.kind}_projected_rate"] = int(self._project(gem, memories))
        if self._ewc:
            metrics["locality/ewc_penalty_nats"] = add_penalty(
                self._setup.trainable, self._anchor, self._fisher, self._ewc.strength
            )
        return metrics

    def follow(self) -> None:
        """Take in the weights after a gradient step."""
        if self._ema:
            update_average(self.average, self._setup.trainable, self._ema.decay)

    def end_update(self, term_losses: tuple[float, ...]) -> dict[str, float | int]:
        """Set the coefficient of the next update by what this one measured; returns metrics."""
        if self._kl is None:
            return {}
        measured, used = term_losses[-1], self.coefficient  # the penalty's term is the last
        self.coefficient = self._kl.next_coefficient(used, measured)
        return {"locality/kl_to_base_nats": measured, "locality/kl_coefficient": used}

    def load_average(self) -> None:
        """Make the average, where there is one, the weights that are saved and evaluated."""
        with torch.no_grad():
            for name, value in self.average.items():
                self._setup.trainable[name].copy_(value)

    def _project(self, gem: GEM | AGEM, memories: list[States]) -> bool:
        """Replace the gradient by the nearest one that no memory objects to; returns whether it changed."""
        trainable = self._setup.trainable
        gradient = _flat({name: _gradient(p) for name, p in trainable.items()})
        remembered = torch.stack([_flat(_memory_gradient(self._setup, states)) for states in memories])
        if isinstance(gem, AGEM):
            projected = project_agem(gradient, remembered.mean(dim=0))
        else:
            projected = project_gem(gradient, remembered, gem.margin)
        start = 0
        for parameter in trainable.values():
            parameter.grad = projected[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return projected is not gradient


def _copy(trainable: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainable.items()}


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def _memories(setup: Setup, locality: EWC | GEM | AGEM) -> list[States]:
    """What the base model writes on prompts of each retention task; the learner still is the base model.

    Raises:
        UsageError: there is no retention task to remember.
    """
    if not setup.material.retention:
        raise UsageError(f"locality {locality.kind!r} remembers the retention tasks, and the study has none")
    return [_write_memory(setup, task, locality) for task in setup.material.retention]


def _write_memory(setup: Setup, task: Task, locality: EWC | GEM | AGEM) -> States:
    learner = setup.learner
    chat = chat_of(learner) if setup.recipe.is_chat else None
    prompts = [encode_prompt(learner, text) for text in task.memory_prompts(locality.num_prompts, chat)]
    keys = [derive_key(setup.recipe.key, "memory", task.name, row) for row in range(len(prompts))]
    written = sample(learner, prompts, keys, Sampling(max_new_tokens=locality.max_new_tokens))
    setup.engine.account.write("base", learner.model, sum(map(len, prompts)), sum(len(r.token_ids) for r in written))
    return collate(
        [
            Trajectory(r.prompt_ids + r.token_ids, len(r.prompt_ids), row, "memory", "base", r.logprobs, r.is_finished)
            for row, r in enumerate(written)
        ]
    )


def _memory_gradient(setup: Setup, states: States) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of the states' actions, by name of the weight; `.grad` is left alone."""
    names, parameters = [*setup.trainable], [*setup.trainable.values()]
    total = {name: torch.zeros_like(p) for name, p in setup.trainable.items()}
    for rows in micro_batches(states, setup.recipe.update.max_tokens):
        micro = take_rows(states, rows)
        loss = -_logprobs(setup, micro).sum() / states.num_states
        for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            total[name] += gradient
    num_trainable = sum(p.numel() for p in parameters)
    setup.engine.account.train(setup.learner.model, num_trainable, int(states.lengths.sum()))
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
            logprob = _logprobs(setup, take_rows(states, np.array([row]))).sum()
            yield dict(zip(setup.trainable, torch.autograd.grad(logprob, parameters), strict=True))
        setup.engine.account.train(setup.learner.model, sum(p.numel() for p in parameters), int(states.lengths.sum()))
