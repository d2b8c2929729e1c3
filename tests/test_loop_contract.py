"""The one contract: every source × signal × adapter trains, repeats byte for byte, and resumes as if uninterrupted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from contract_cells import (
    ADAPTER_VARIANTS,
    CELLS,
    FALLING,
    LOCALITY_VARIANTS,
    PAIRS,
    SIGNAL_VARIANTS,
    SOURCE_VARIANTS,
    arm,
    assert_resumes,
    refused,
)
from toy_arm import (
    losses_of,
    make_setup,
    supervised_states,
    supervised_terms,
    terms_of,
    weighted,
)

from statewise.locality import LOCALITIES
from statewise.locality.adapter import ADAPTERS
from statewise.loop.score import score_terms
from statewise.loop.train import Observer, train
from statewise.loop.update import Updater
from statewise.policy.score import action_logprobs, batch_tensors, state_hidden
from statewise.signals import SIGNALS
from statewise.states import SOURCES

SINGLE = [name for name in SIGNAL_VARIANTS if "+" not in name]
# Not those whose loss of a state looks at its whole trajectory.
STATE_BY_STATE = [name for name in SINGLE if name not in ("dpo", "ipo", "dr_grpo-sequence")]
FALLING_PAIRS = [pair for pair in PAIRS if pair[1] in FALLING]


def test_the_contract_covers_every_source_signal_adapter_and_locality():
    assert {leaf.kind for source in SOURCE_VARIANTS.values() for leaf in [source, *source.leaves]} == set(SOURCES)
    assert {one.signal.kind for signal in SIGNAL_VARIANTS.values() for one in weighted(signal)} == set(SIGNALS)
    assert set(ADAPTER_VARIANTS) == set(ADAPTERS)
    assert set(LOCALITY_VARIANTS) == set(LOCALITIES)


def test_cells_are_refused_only_where_their_loss_is_not_defined():
    no_groups = {"dataset", "mixture", "state-mixture"}
    grouped = {"grpo", "rloo-token", "dr_grpo-sequence", "dpo", "ipo"}
    weighted_by_law = {"rloo-token", "dr_grpo-sequence"}
    expected = set(itertools.product(no_groups, grouped))
    expected |= set(itertools.product({"prefix"}, weighted_by_law))  # the law of data is not known
    expected |= set(itertools.product({"base"}, weighted_by_law))  # top_p < 1
    expected |= {("base", "expert-sampled")}  # an expert that acts at another temperature than the source's
    assert {pair for pair in itertools.product(SOURCE_VARIANTS, SIGNAL_VARIANTS) if refused(*pair)} == expected


@pytest.mark.parametrize(("source", "signal", "adapter"), CELLS)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(toy_policy, tmp_path, source, signal, adapter):
    assert_resumes(lambda: arm(toy_policy, source, signal, adapter), tmp_path)


LOCALITY_SIGNALS = ["imitate", "continuation", "expert", "reverse_kl", "grpo", "dpo", "reward+reverse_kl"]
LOCALITY_CELLS = list(itertools.product(LOCALITY_VARIANTS, LOCALITY_SIGNALS, ADAPTER_VARIANTS))
# Where no gradient of the four updates points away from that on the memory, so that nothing is held back.
NEVER_PROJECTED = set(itertools.product(["gem", "a_gem"], ["expert", "reverse_kl"], ["lora"]))


def test_how_many_cases_of_each_property_compare_something():
    """As many as there are, but for four localities: each case asserts that it has states or gradients to compare."""
    assert len(PAIRS) == 11 * 21 - 20  # sources × signals, less what is refused
    assert len(CELLS) == 2 * 211
    assert len(FALLING_PAIRS) == 11 * 12 - 7  # less what is refused
    assert len(SINGLE) == 21 - 2  # less the sums
    assert len(STATE_BY_STATE) == 19 - 3  # less those of whole trajectories
    assert len(LOCALITY_CELLS) - len(NEVER_PROJECTED) == 5 * 7 * 2 - 4


@pytest.fixture(scope="module")
def free_arm(toy_policy, tmp_path_factory):
    """Arms that nothing holds, trained once each: what those with a locality are compared with."""

    @cache
    def trained(signal, adapter):
        setup = arm(toy_policy, "learner", signal, adapter, lr=1e-2)
        train(setup, tmp_path_factory.mktemp("free"), Observer())
        return setup

    return trained


@pytest.mark.parametrize(("locality", "signal", "adapter"), LOCALITY_CELLS)
def test_every_locality_holds_any_cell_and_resumes(toy_policy, free_arm, tmp_path, locality, signal, adapter):
    kept = LOCALITY_VARIANTS[locality]
    bound, lines = assert_resumes(
        lambda: arm(toy_policy, "learner", signal, adapter, localities=(kept,), lr=1e-2), tmp_path
    )
    free = free_arm(signal, adapter)
    is_changed = any(not torch.equal(free.trainable[name], bound.trainable[name]) for name in free.trainable)
    assert is_changed == ((locality, signal, adapter) not in NEVER_PROJECTED)
    if locality in ("gem", "a_gem"):
        assert is_changed == any(line[f"locality/{locality}_projected_rate"] for line in lines)


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("signal", ["grpo", "reinforce", "dpo", "imitate", "reverse_kl-k1"])
def test_several_gradient_steps_on_a_batch_resume_too(toy_policy, tmp_path, signal, epochs):
    assert_resumes(lambda: arm(toy_policy, "learner", signal, num_epochs=epochs, reduction="trajectories"), tmp_path)


@pytest.mark.parametrize(("source", "signal"), PAIRS)
def test_the_states_of_a_cell_are_well_formed(toy_policy, source, signal):
    setup = arm(toy_policy, source, signal)
    setup.writers.history.remember(1)
    setup.writers.history.remember(0)
    for term in supervised_terms(setup, 1 if source != "stale" else 0):
        states = term.states
        assert states.num_states
        batch, time = states.token_ids.shape
        assert 1 <= batch <= (8 if source == "state-mixture" else 4)
        assert time == states.lengths.max() <= toy_policy.context_length
        assert states.action_mask.shape == states.behavior_logprobs.shape == states.labels.shape == (batch, time)
        positions = np.arange(time)
        after_prompt = (positions >= states.prompt_lengths[:, None]) & (positions < states.lengths[:, None])
        assert not (states.action_mask & ~after_prompt).any()
        assert (states.token_ids[positions >= states.lengths[:, None]] == 0).all()
        if signal != "imitate-correct":  # which leaves the log-probabilities of what it masks
            assert np.isnan(states.behavior_logprobs[~states.action_mask]).all()
        is_law_known = np.isfinite(states.behavior_logprobs[states.action_mask]).all()
        assert is_law_known or not setup.recipe.source.is_law_known
        assert set(states.sources) <= {leaf.kind for leaf in setup.recipe.source.leaves} | {"rollout"}
        assert ((states.writer_updates >= 0) == np.array(["learner" in w for w in states.writers])).all()
        losses = score_terms(setup, [term])[0].losses
        assert losses.shape == (states.num_states,)
        assert losses.dtype == torch.float32
        assert torch.isfinite(losses).all()
        if term.what.kind != "reward" and not signal.endswith("k1"):
            assert (losses >= -1e-6).all()


@pytest.mark.parametrize("signal", SINGLE)
def test_gradient_flows_into_training_states_only(toy_policy, signal):
    setup = arm(toy_policy, "learner", signal, key=31)  # two answers are wrong, two are of a group without spread
    states = supervised_states(setup)
    assert states.action_mask.any(axis=1).all() == (signal != "imitate-correct")
    kept = []

    def keep(module, inputs, output):
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    handle = setup.learner.model.get_decoder().register_forward_hook(keep)
    losses_of(setup, states).sum().backward()
    handle.remove()
    # The state of action t is position t - 1; the last column is an action only.
    has_gradient = (kept[0].grad != 0).any(-1).numpy()
    assert not (has_gradient & ~states.action_mask[:, 1:]).any()
    rows_with_signal = states.advantages != 0  # nan where the signal has none; a group without spread gives none
    assert (has_gradient == states.action_mask[:, 1:])[rows_with_signal].all()
    assert has_gradient[rows_with_signal].any()


@pytest.mark.parametrize("signal", SINGLE)
def test_what_lies_outside_the_mask_does_not_change_a_loss(toy_policy, signal):
    setup = arm(toy_policy, "learner", signal, key=29)  # the answers of a pair differ in length
    states = supervised_states(setup)
    is_padding = np.arange(states.token_ids.shape[1]) >= states.lengths[:, None]
    assert is_padding.any() and states.num_states
    states = replace(states, token_ids=states.token_ids.copy(), behavior_logprobs=states.behavior_logprobs.copy())
    with torch.no_grad():
        before = losses_of(setup, states)
        # Padding, and log-probabilities that belong to no action.
        states.token_ids[is_padding] = 200
        states.behavior_logprobs[~states.action_mask] = -3.0
        states.rewards[:] = 0.5
        assert torch.equal(losses_of(setup, states), before)


@pytest.mark.parametrize("signal", STATE_BY_STATE)
def test_a_masked_position_drops_its_own_loss_and_no_other(toy_policy, signal):
    setup = arm(toy_policy, "learner", signal)
    states = supervised_states(setup)
    with torch.no_grad():
        before = losses_of(setup, states)
        assert len(before) > 2
        states.action_mask[0, np.flatnonzero(states.action_mask[0])[1]] = False
        after = losses_of(setup, states)
    torch.testing.assert_close(after, torch.cat([before[:1], before[2:]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTER_VARIANTS)
@pytest.mark.parametrize(("source", "signal"), FALLING_PAIRS)
def test_a_cell_lowers_its_own_loss_on_a_fixed_batch(toy_policy, source, signal, adapter):
    setup = arm(toy_policy, source, signal, adapter, num_updates=20, lr=1e-2)
    # In update 0 of `prefix` all of the text is given, and equal answers make no pair.
    terms, updater = supervised_terms(setup, int(source == "prefix")), Updater(setup)
    losses = [updater.apply(terms, step).loss for step in range(20)]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "reinforce"])
def test_reward_makes_the_better_answers_of_a_group_more_likely(toy_policy, advantage):
    signal = SIGNALS["reward"](advantage=advantage)
    setup = make_setup(toy_policy, SOURCE_VARIANTS["learner"], signal, num_updates=5, lr=3e-3)
    states = supervised_states(setup)
    advantages = torch.from_numpy(np.repeat(states.advantages, states.action_mask.sum(1)))
    updater = Updater(setup)
    for step in range(5):
        updater.apply(terms_of(setup, states), step)
    tensors = batch_tensors(states)
    with torch.no_grad():
        logprobs = action_logprobs(setup.learner, state_hidden(setup.learner, states), tensors.labels, 1.0)
    # log π = log μ before the first update, so the sum was 0.
    assert (advantages * (logprobs - tensors.inputs.behavior_logprobs)).sum() > 0.1


@pytest.mark.parametrize("change", ["key", "source"])
def test_another_seed_or_source_gives_other_states(toy_policy, change):
    one = arm(toy_policy, "learner", "imitate", key=1)
    other = arm(toy_policy, "learner" if change == "key" else "base", "imitate", key=2 if change == "key" else 1)
    first, second = (setup.recipe.source.sample(setup.context, 0) for setup in (one, other))
    assert first.token_ids.tobytes() != second.token_ids.tobytes()
