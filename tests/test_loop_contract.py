"""The one contract: every source × signal × adapter trains, repeats byte for byte, and resumes as if uninterrupted."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from toy_arm import (
    ToyTask,
    losses_of,
    make_setup,
    make_source,
    stop_before,
    supervised_states,
    supervised_terms,
    terms_of,
    weighted,
    written,
)

from statewise.errors import InterruptedTrainingError
from statewise.locality import LOCALITIES
from statewise.locality.adapter import ADAPTERS
from statewise.loop.score import score_terms
from statewise.loop.train import Observer, train
from statewise.loop.update import Updater
from statewise.plan.cells import refusal
from statewise.policy.score import action_logprobs, batch_tensors, state_hidden
from statewise.signals import SIGNALS, WeightedSignal
from statewise.states import SOURCES, RecordedStates
from statewise.states.mixture import Part
from statewise.states.ramp import Ramp


def mixture(*parts, per="trajectory"):
    held = tuple(Part(source=source, weight=weight) for source, weight in parts)
    return SOURCES["mixture"](parts=held, per=per, num_trajectories=4)


SOURCE_VARIANTS = {
    "dataset": make_source("dataset"),
    "learner": make_source(by="learner"),
    "teacher": make_source(by="teacher"),
    "base": make_source(by="base", temperature=0.7, top_p=0.9),
    "stale": make_source(lag=2),
    "replay": make_source(buffer_size=8, max_age=2),
    "prefix": make_source("prefix", share=Ramp(start=1.0, end=0.0)),
    "teacher-prefix": make_source("prefix", of="teacher", share="uniform", trains_on="rest"),
    "log": SOURCES["log"](arm="recorded"),
    "mixture": mixture((make_source("dataset"), Ramp(start=1.0, end=0.0)), (make_source(), 0.5)),
    "state-mixture": mixture((make_source("dataset"), 0.3), (make_source(by="teacher"), 0.7), per="state"),
}
SIGNAL_VARIANTS = {
    "imitate": SIGNALS["imitate"](),
    "imitate-correct": SIGNALS["imitate"](only_correct=True),
    "continuation": SIGNALS["continuation"](num_tokens=3),
    "expert": SIGNALS["expert"](),
    "expert-sampled": SIGNALS["expert"](temperature=1.0),
    "forward_kl": SIGNALS["forward_kl"](),
    "forward_kl-k3": SIGNALS["forward_kl"](estimator="k3"),
    "reverse_kl": SIGNALS["reverse_kl"](),
    "reverse_kl-top_k": SIGNALS["reverse_kl"](estimator="top_k", top_k=5),
    "reverse_kl-k1": SIGNALS["reverse_kl"](estimator="k1"),
    "reverse_kl-k2": SIGNALS["reverse_kl"](estimator="k2"),
    "jsd": SIGNALS["jsd"](beta=0.3),
    "jsd-k3": SIGNALS["jsd"](beta=0.3, estimator="k3"),
    "reinforce": SIGNALS["reward"](advantage="reinforce"),
    "grpo": SIGNALS["reward"](),
    "rloo-token": SIGNALS["reward"](advantage="rloo", importance="token"),
    "dr_grpo-sequence": SIGNALS["reward"](advantage="dr_grpo", importance="sequence"),
    "dpo": SIGNALS["preference"](),
    "ipo": SIGNALS["preference"](loss_type="ipo", beta=0.5),
    "reward+reverse_kl": (WeightedSignal(signal=SIGNALS["reward"](advantage="reinforce")),
                          WeightedSignal(signal=SIGNALS["reverse_kl"](), weight=0.1)),
    "imitate+continuation": (WeightedSignal(signal=SIGNALS["imitate"](), weight=0.5),
                             WeightedSignal(signal=SIGNALS["continuation"](num_tokens=3))),
}  # fmt: skip
ADAPTER_VARIANTS = {"full": ADAPTERS["full"](), "lora": ADAPTERS["lora"](rank=2, alpha=4.0)}
SINGLE = [name for name in SIGNAL_VARIANTS if "+" not in name]
# Not those whose loss of a state looks at its whole trajectory.
STATE_BY_STATE = [name for name in SINGLE if name not in ("dpo", "ipo", "dr_grpo-sequence")]
# Losses of one token a state, or of rewards, need not fall from one draw to the next.
FALLING = [
    name
    for name in SIGNAL_VARIANTS
    if name not in ("reinforce", "grpo", "rloo-token", "dr_grpo-sequence", "reward+reverse_kl", "imitate-correct")
    and not name.endswith(("k1", "k3"))
]


def refused(source, signal):
    """Why the plan would refuse a cell, as `statewise list cells` says; a log has the groups of what it replays."""
    resolved = SOURCE_VARIANTS["learner"] if source == "log" else SOURCE_VARIANTS[source]
    return refusal(resolved, weighted(SIGNAL_VARIANTS[signal]))


PAIRS = [pair for pair in itertools.product(SOURCE_VARIANTS, SIGNAL_VARIANTS) if not refused(*pair)]
FALLING_PAIRS = [pair for pair in PAIRS if pair[1] in FALLING]
CELLS = [(*pair, adapter) for pair, adapter in itertools.product(PAIRS, ADAPTER_VARIANTS)]


def recorded(policy):
    """What another arm, whose learner wrote, would have recorded in four updates."""
    setup = make_setup(policy, make_source(), SIGNALS["imitate"](), key=99)
    states = [setup.recipe.source.sample(setup.context, step) for step in range(4)]
    return {"recorded": RecordedStates(4, states.__getitem__)}


def arm(policy, source, signal, adapter="full", **options):
    records = recorded(policy) if source == "log" else None
    task = ToyTask(pass_mark=0.25) if signal == "imitate-correct" else None  # a share of 1 is too rare among answers
    return make_setup(
        policy, SOURCE_VARIANTS[source], SIGNAL_VARIANTS[signal], adapter=ADAPTER_VARIANTS[adapter], recorded=records,
        task=task, **options,
    )  # fmt: skip


def assert_resumes(make, tmp_path):
    """Training that is interrupted before update 3 and resumed writes the bytes of one that is not.

    Returns the uninterrupted arm, trained, and its lines of metrics.
    """
    whole, begun, resumed = (make() for _ in range(3))
    recorder = train(whole, tmp_path / "whole", Observer())
    with pytest.raises(InterruptedTrainingError, match="stopped before update 3"):
        train(begun, tmp_path / "parts", stop_before(3))
    again = train(resumed, tmp_path / "parts", Observer())
    expected = written(tmp_path / "whole", whole)
    assert written(tmp_path / "parts", resumed) == expected
    assert {"metrics.jsonl", "states/000002.parquet", "states/000004.parquet"} <= set(expected)
    assert recorder.state_hash == again.state_hash
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(np.isfinite(line["loop/loss_nats"]) for line in lines)
    assert any(line["loop/grad_norm"] for line in lines[2:])  # what was done after the last checkpoint moved something
    return whole, lines


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


LOCALITY_VARIANTS = {
    "kl_to_base": LOCALITIES["kl_to_base"](coefficient=0.5, target=0.01),
    "ewc": LOCALITIES["ewc"](strength=10.0, num_prompts=3, max_new_tokens=3),
    "gem": LOCALITIES["gem"](num_prompts=3, max_new_tokens=3),
    "a_gem": LOCALITIES["a_gem"](num_prompts=3, max_new_tokens=3),
    "ema": LOCALITIES["ema"](decay=0.5),
}
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
