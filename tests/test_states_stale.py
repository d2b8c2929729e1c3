"""Sources whose writer is not the learner of this moment alone: prefixes, lag, replay buffers."""

import numpy as np
import pytest
import scipy.stats
import torch
from toy_arm import make_setup, make_source, supervised_terms

from statewise.loop.update import Updater
from statewise.policy.load import copy_policy
from statewise.policy.sampler import Sampling, sample
from statewise.signals import SIGNALS
from statewise.states.ramp import Ramp
from statewise.states.rollout import ModelRollout


def setup_of(policy, source, **options):
    return make_setup(policy, source, SIGNALS["imitate"](), **options)


@pytest.mark.parametrize("of", ["dataset", "teacher"])
def test_a_prefix_of_share_0_is_a_rollout_and_of_share_1_the_whole_given_text(toy_policy, of):
    none, whole = (
        setup_of(toy_policy, make_source("prefix", of=of, share=share, samples_per_prompt=1)) for share in (0.0, 1.0)
    )
    written = none.recipe.source.sample(none.context, 0)
    assert set(written.writers) == {"learner"}
    assert not written.num_given.any()
    given = whole.recipe.source.sample(whole.context, 0)
    finished = given.is_finished & np.array([writer == {"dataset": "data"}.get(of, of) for writer in given.writers])
    assert (given.num_given == given.lengths - given.prompt_lengths)[finished].all()
    if of == "dataset":
        assert finished.all()


def test_the_learner_writes_on_from_the_given_share(toy_policy):
    setup = setup_of(toy_policy, make_source("prefix", share=0.5, samples_per_prompt=1, num_prompts=4))
    states = setup.recipe.source.sample(setup.context, 0)
    golds = {example.index: example for example in setup.context.examples}
    for row in range(4):
        example = golds[int(states.prompt_indices[row])]
        count = int(0.5 * len(example.gold_ids) + 0.5)
        assert states.num_given[row] == count
        assert states.response_ids(row)[:count] == example.gold_ids[:count]
        start = int(states.prompt_lengths[row])
        # The law of data is not known, that of the learner is.
        assert np.isnan(states.behavior_logprobs[row, start : start + count]).all()
        assert np.isfinite(states.behavior_logprobs[row, start + count : states.lengths[row]]).all()
        assert states.action_mask[row, start : states.lengths[row]].all()
    rest = setup_of(toy_policy, make_source("prefix", share=0.5, samples_per_prompt=1, num_prompts=4, trains_on="rest"))
    later = rest.recipe.source.sample(rest.context, 0)
    assert (later.action_mask.sum(1) == later.lengths - later.prompt_lengths - later.num_given).all()


def test_a_share_may_be_drawn_or_follow_a_ramp(toy_policy):
    ramp = make_source("prefix", share=Ramp(start=1.0, end=0.0), num_prompts=4, samples_per_prompt=1)
    setup = setup_of(toy_policy, ramp, num_updates=3)
    assert ramp.sample(setup.context, 0).writers == ("data",) * 4
    assert set(ramp.sample(setup.context, 2).writers) == {"learner"}
    drawn = make_source("prefix", share="uniform", num_prompts=5, samples_per_prompt=6)
    states = drawn.sample(setup_of(toy_policy, drawn).context, 0)
    per_prompt = [states.num_given[states.prompt_indices == index] for index in np.unique(states.prompt_indices)]
    assert sum(len(set(given.tolist())) > 1 for given in per_prompt) >= 4


def test_a_lagging_learner_writes_what_a_copy_of_its_old_weights_writes(toy_policy):
    source = make_source(lag=2)
    setup = setup_of(toy_policy, source, num_updates=5, lr=1e-2)
    updater, copies = Updater(setup), []
    for step in range(5):
        copies.append(copy_policy(setup.learner, f"after {step}"))
        terms = supervised_terms(setup, step)
        before = {name: p.detach().clone() for name, p in setup.trainable.items()}
        states = terms[0].states
        old = max(0, step - 2)
        assert states.writer_updates.tolist() == [old] * 4
        prompts = [tuple(states.token_ids[row, : states.prompt_lengths[row]].tolist()) for row in range(4)]
        keys = [setup.context.row_key(step, row) for row in range(4)]
        expected = sample(copies[old], prompts, keys, Sampling(max_new_tokens=4))
        assert [states.response_ids(row) for row in range(4)] == [one.token_ids for one in expected]
        assert all(torch.equal(setup.trainable[name], value) for name, value in before.items())
        updater.apply(terms, step)


def test_a_buffer_keeps_its_size_and_age_and_whole_groups(toy_policy):
    source = make_source(num_prompts=2, samples_per_prompt=2, buffer_size=8, max_age=3)
    setup = setup_of(toy_policy, source, num_updates=8)
    ages = []
    for step in range(8):
        states = source.sample(setup.context, step)
        assert len(states.lengths) == 4
        assert sum(len(group.lengths) for _, group in setup.context.buffer.groups) == min(8, 4 * (step + 1))
        pairs = states.prompt_indices.reshape(2, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
        ages += (step - states.writer_updates).tolist()
    assert set(ages) == {0, 1}  # eight trajectories are those of two updates
    aged = make_source(num_prompts=2, samples_per_prompt=2, buffer_size=80, max_age=1)
    other = setup_of(toy_policy, aged, num_updates=6)
    assert max((step - aged.sample(other.context, step).writer_updates).max() for step in range(6)) <= 1


def test_a_buffer_draws_every_group_equally_often(toy_policy):
    source = make_source(num_prompts=1, samples_per_prompt=1, buffer_size=4)
    setup = setup_of(toy_policy, source, num_updates=200)
    ages = [step - int(source.sample(setup.context, step).writer_updates[0]) for step in range(200)][4:]
    assert scipy.stats.chisquare(np.bincount(ages, minlength=4)).pvalue > 0.01


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"by": "teacher", "lag": 1}, "lag is of a learner that moves on"),
        ({"max_age": 2}, "max_age is of a replay buffer; set buffer_size"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        ModelRollout(**settings)
