"""The toy arm that the tests of the loop train, and the tests of how an arm is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from conftest import byte_tokenizer

from statewise.config.study import UpdateSection
from statewise.errors import UsageError
from statewise.locality.adapter import Full
from statewise.loop.build import Material, Recipe, build
from statewise.loop.score import Term, score_terms
from statewise.loop.train import supervise
from statewise.loop.update import Updater
from statewise.policy.load import Policy, copy_policy
from statewise.signals import SIGNALS, WeightedSignal
from statewise.states import SOURCES
from statewise.states.source import RolloutRequest
from statewise.types import Example


@dataclass(frozen=True)
class ToyTask:
    """Documents of unequal length; the reward is the share of even letters, nan for an answer that starts with `!`."""

    documents: tuple[tuple[str, str], ...] = (
        ("Q: 1+1", " 2"),
        ("Q: 12+30", " 42 apples"),
        ("Q:", " none"),
        ("Q: 7*6?", " 42"),
        ("Question: 0", " 0."),
    )
    name: str = "toy"

    def examples(self, split, chat=None):
        assert split == "train"
        return tuple(Example(i, prompt, gold) for i, (prompt, gold) in enumerate(self.documents))

    def memory_prompts(self, count, chat=None):
        return tuple(prompt for prompt, _ in self.documents)[:count]

    def reward(self, index, text):
        assert 0 <= index < len(self.documents)
        if text.startswith("!"):
            return math.nan
        return sum(ord(letter) % 2 == 0 for letter in text) / max(1, len(text))


@cache
def other_policy(policy: Policy, name: str, seed: int) -> Policy:
    """The same architecture with other weights; shared by all arms, since nobody may change it."""
    other = copy_policy(policy, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
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
    setup.engine.history.remember(step)
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


@pytest.mark.parametrize(
    ("source", "signal"),
    [(make_source(by="teacher"), SIGNALS["imitate"]()), (make_source("dataset"), SIGNALS["forward_kl"]())],
)
def test_an_arm_that_needs_a_teacher_and_has_none_is_refused(toy_policy, source, signal):
    recipe = Recipe(source, weighted(signal), Full(), UpdateSection(num_updates=1, lr=1e-3), 0)
    with pytest.raises(UsageError, match="needs a teacher"):
        build(recipe, copy_policy(toy_policy, "learner"), {}, Material(ToyTask()))


def test_a_teacher_with_another_tokenizer_is_refused(toy_policy):
    recipe = Recipe(make_source(), weighted(SIGNALS["forward_kl"]()), Full(), UpdateSection(num_updates=1, lr=1e-3), 0)
    foreign = Policy(toy_policy.model, byte_tokenizer("<eos>"), "teacher", 256)
    with pytest.raises(UsageError, match="different tokenizers"):
        build(recipe, copy_policy(toy_policy, "learner"), {"teacher": foreign}, Material(ToyTask()))


def test_a_task_without_training_documents_is_refused(toy_policy):
    with pytest.raises(UsageError, match="no training documents"):
        make_setup(toy_policy, make_source(), SIGNALS["imitate"](), task=ToyTask(()))


def test_the_engine_counts_the_tokens_that_each_writer_wrote(toy_policy):
    setup = make_setup(toy_policy, make_source(by="base"), SIGNALS["continuation"](num_tokens=3))
    states = setup.recipe.source.sample(setup.context, 0)
    assert setup.engine.account.num_generated == {"base": int((states.lengths - states.prompt_lengths).sum())}
    continued = setup.recipe.signals[0].signal.supervise(states, setup.supervision(0))
    assert setup.engine.account.num_generated["teacher"] == continued.num_states


def test_each_writer_writes_with_its_own_weights(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["imitate"]())
    texts = {
        writer: setup.engine.roll_out(RolloutRequest(writer, [(1, 2, 3)], [9], 1.0, 1.0, 20))[0].token_ids
        for writer in ("learner", "teacher", "base")
    }
    assert len(set(texts.values())) == 3


def test_the_supervision_of_every_update_has_another_key(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["imitate"]())
    assert len({setup.supervision(step).key for step in range(20)}) == 20


def test_a_response_is_graded_as_the_task_grades_its_text(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["reward"]())
    ids = [*toy_policy.tokenizer.encode("abb", add_special_tokens=False), toy_policy.end_token_id]
    # a = 97 is odd, b = 98 is even: 2 of 3; the end of text is no letter.
    assert setup.grade(0, ids) == pytest.approx(2 / 3)


def test_building_an_arm_changes_neither_teacher_nor_base(toy_policy):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["reverse_kl"](), lr=1e-2)
    before = {name: [p.clone() for p in setup.engine.policies[name].model.parameters()] for name in ("teacher", "base")}
    Updater(setup).apply(terms_of(setup, gold_states(setup)), 0)
    for name, parameters in before.items():
        for old, new in zip(parameters, setup.engine.policies[name].model.parameters(), strict=True):
            assert torch.equal(old, new)
            assert new.grad is None
