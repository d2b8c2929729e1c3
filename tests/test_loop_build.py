"""How an arm is built: what is refused, who writes with which weights, what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import byte_tokenizer
from toy_arm import ToyTask, gold_states, make_setup, make_source, terms_of, weighted

from statewise.config.study import UpdateSection
from statewise.errors import UsageError
from statewise.locality.adapter import Full
from statewise.loop.build import Material, Recipe, build
from statewise.loop.train import Observer, train
from statewise.loop.update import Updater
from statewise.policy.load import Policy, copy_policy
from statewise.policy.sampler import OwnEngine
from statewise.signals import SIGNALS
from statewise.states.source import RolloutRequest


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
    assert setup.writers.account.num_generated == {"base": int((states.lengths - states.prompt_lengths).sum())}
    continued = setup.recipe.signals[0].signal.supervise(states, setup.supervision(0))
    assert setup.writers.account.num_generated["teacher"] == continued.num_states


def test_each_writer_writes_with_its_own_weights(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["imitate"]())
    texts = {
        writer: setup.writers.roll_out(RolloutRequest(writer, [(1, 2, 3)], [9], 1.0, 1.0, 4))[0].token_ids
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
    assert setup.grade([0], [ids]) == pytest.approx([2 / 3])


def test_building_an_arm_changes_neither_teacher_nor_base(toy_policy):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["reverse_kl"](), lr=1e-2)
    before = {
        name: [p.clone() for p in setup.writers.policies[name].model.parameters()] for name in ("teacher", "base")
    }
    Updater(setup).apply(terms_of(setup, gold_states(setup)), 0)
    for name, parameters in before.items():
        for old, new in zip(parameters, setup.writers.policies[name].model.parameters(), strict=True):
            assert torch.equal(old, new)
            assert new.grad is None


class Watched(OwnEngine):
    """Notes when it is given weights, and of how many updates they are."""

    def __init__(self):
        self.seen = []

    def sync_weights(self, policy):
        self.seen.append((policy.name, [p.detach().clone() for p in policy.model.parameters()]))


@pytest.mark.parametrize(("lag", "of_updates"), [(0, [0, 1, 2, 3]), (2, [0, 1])])
def test_an_engine_is_given_the_weights_that_write_whenever_they_changed(toy_policy, tmp_path, lag, of_updates):
    engine, plain = Watched(), make_setup(toy_policy, make_source("dataset"), SIGNALS["continuation"](num_tokens=3))
    source = make_source(lag=lag)
    recipe = replace(plain.recipe, source=source, engine=engine)
    policies = plain.writers.policies
    setup = build(recipe, policies["learner"], {"teacher": policies["teacher"]}, plain.material)
    after = []
    train(setup, tmp_path, Observer(lambda done: after.append([p.detach().clone() for p in setup.trainable.values()])))
    before = [[p.detach() for p in toy_policy.model.parameters()], *after]
    learner = [weights for name, weights in engine.seen if name == "learner"]
    assert [name for name, _ in engine.seen].count("teacher") == 1
    assert len(learner) == len(of_updates)
    for weights, update in zip(learner, of_updates, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, before[update], strict=True))
