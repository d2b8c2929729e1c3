"""The toy arm that the tests of the loop train: a copy of the toy policy, five documents, a teacher and a base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

from statewise.config.study import UpdateSection
from statewise.locality.adapter import Full
from statewise.loop.build import Material, Recipe, build
from statewise.loop.score import Term, score_terms
from statewise.loop.train import Observer, supervise
from statewise.policy.load import Policy, copy_policy
from statewise.signals import WeightedSignal
from statewise.states import SOURCES
from statewise.types import Example


@dataclass(frozen=True)
class ToyTask:
    """Documents of unequal length; the reward is the share of even letters, nan for an answer that starts with `!`.

    With a `pass_mark` an answer of that share is right and has reward 1, any other is wrong and has 0.
    """

    documents: tuple[tuple[str, str], ...] = (
        ("Q: 1+1", " 2"),
        ("Q: 12+30", " 42 apples"),
        ("Q:", " none"),
        ("Q: 7*6?", " 42"),
        ("Question: 0", " 0."),
    )
    name: str = "toy"
    pass_mark: float = 0.0

    def examples(self, split, chat=None):
        assert split == "train"
        return tuple(Example(i, prompt, gold) for i, (prompt, gold) in enumerate(self.documents))

    def memory_prompts(self, count, chat=None):
        return tuple(prompt for prompt, _ in self.documents)[:count]

    def reward(self, index, text):
        assert 0 <= index < len(self.documents)
        if text.startswith("!"):
            return math.nan
        share = sum(ord(letter) % 2 == 0 for letter in text) / max(1, len(text))
        return float(share >= self.pass_mark) if self.pass_mark else share

    def rewards(self, indices, texts):
        return [self.reward(index, text) for index, text in zip(indices, texts, strict=True)], 0.0


@cache
def other_policy(policy: Policy, name: str, seed: int) -> Policy:
    """The same architecture with other weights; shared by all arms, since nobody may change it."""
    other = copy_policy(policy, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
    return other


def weighted(signal):
    """An arm's sum of signals: one signal, or several that carry their weights already."""
    return signal if isinstance(signal, tuple) else (WeightedSignal(signal=signal),)


def make_setup(policy, source, signal, *, adapter=None, key=7, task=None, localities=(), recorded=None, **update):
    """A fresh toy arm: a copy of `policy` learns, with a teacher and a base of other weights."""
    section = UpdateSection(**{"num_updates": 4, "lr": 1e-3, "checkpoint_every": 2, **update})
    others = {"teacher": other_policy(policy, "teacher", 1), "base": other_policy(policy, "base", 2)}
    recipe = Recipe(source, weighted(signal), adapter or Full(), section, key, localities)
    material = Material(task or ToyTask(), (ToyTask(name="memory"),), recorded or {})
    return build(recipe, copy_policy(policy, "learner"), others, material)


def make_source(kind="rollout", **settings):
    if kind == "dataset":
        return SOURCES[kind](**{"num_trajectories": 4, **settings})
    return SOURCES[kind](**{"num_prompts": 2, "samples_per_prompt": 2, "max_new_tokens": 4, **settings})


def supervised_terms(setup, step=0):
    """What the signals make of the states of an update."""
    setup.writers.history.remember(step)
    return supervise(setup, setup.recipe.source.sample(setup.context, step), step)


def supervised_states(setup, step=0):
    """The states of an update, with what the first signal attached to them."""
    return supervised_terms(setup, step)[0].states


def terms_of(setup, states):
    """What an update takes, with `states` as what every signal of the arm made."""
    return [Term(one.signal, one.weight, states, one.signal.skips_zero_advantages) for one in setup.recipe.signals]


def losses_of(setup, states):
    """The losses per state of the arm's first signal."""
    return score_terms(setup, terms_of(setup, states)[:1])[0].losses


def gold_states(setup):
    """The gold trajectories of the toy arm, all in one batch."""
    return make_source("dataset", num_trajectories=5).sample(setup.context, 0)


def stop_before(update):
    """An observer that asks to stop before `update` (counted from 0)."""
    done = [0]

    def progress(count):
        done[0] = count

    return Observer(progress=progress, should_stop=lambda: done[0] == update)


def written(folder, setup):
    """Every byte of a run that must repeat: all its files but wall-clock times, and the weights in memory."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timing.jsonl"
    }
    return files | {name: parameter.numpy(force=True).tobytes() for name, parameter in setup.trainable.items()}
