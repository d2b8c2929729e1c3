"""How an arm is built: what is refused, who writes with which weights, what is counted."""

from __future__ import annotations

import pytest
import torch
from conftest import byte_tokenizer
from toy_arm import ToyTask, gold_states, make_setup, make_source, terms_of, weighted

from statewise.config.study import UpdateSection
from statewise.errors import UsageError
from statewise.locality.adapter import Full
from statewise.loop.build import Material, Recipe, build
from statewise.loop.update import Updater
from statewise.policy.load import Policy, copy_policy
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
    assert setup.engine.account.num_generated == {"base": int((states.lengths - states.prompt_lengths).sum())}
    continued = setup.recipe.signals[0].signal.supervise(states, setup.supervision(0))
    assert setup.engine.account.num_generated["teacher"] == continued.num_states


def test_each_writer_writes_with_its_own_weights(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["imitate"]())
    texts = {
        writer: setup.engine.roll_out(RolloutRequest(writer, [(1, 2, 3)], [9], 1.0, 1.0, 4))[0].token_ids
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
