"""The one contract: every source × signal × adapter trains, repeats byte for byte, and resumes as if uninterrupted."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from test_loop_build import make_setup, make_source, supervised_states

from statewise.errors import InterruptedTrainingError
from statewise.locality.adapter import ADAPTERS
from statewise.loop.score import score_states
from statewise.loop.train import Observer, train
from statewise.loop.update import Updater
from statewise.policy.score import action_logprobs, batch_tensors, state_hidden
from statewise.signals import SIGNALS
from statewise.states import SOURCES

SOURCE_VARIANTS = {
    "dataset": make_source("dataset"),
    "learner": make_source(by="learner"),
    "teacher": make_source(by="teacher"),
    "base": make_source(by="base", temperature=0.7, top_p=0.9),
}
SIGNAL_SETTINGS = {"continuation": {"num_tokens": 3}, "jsd": {"beta": 0.3}}
SIGNAL_VARIANTS = {name: signal(**SIGNAL_SETTINGS.get(name, {})) for name, signal in SIGNALS.items()}
ADAPTER_VARIANTS = {"full": ADAPTERS["full"](), "lora": ADAPTERS["lora"](rank=2, alpha=4.0)}
CELLS = list(itertools.product(SOURCE_VARIANTS, SIGNAL_VARIANTS, ADAPTER_VARIANTS))


def arm(policy, source, signal, adapter="full", **options):
    return make_setup(
        policy, SOURCE_VARIANTS[source], SIGNAL_VARIANTS[signal], adapter=ADAPTER_VARIANTS[adapter], **options
    )


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
    return files | {name: parameter.detach().numpy().tobytes() for name, parameter in setup.trainable.items()}


def test_the_contract_covers_every_source_signal_and_adapter():
    assert {source.kind for source in SOURCE_VARIANTS.values()} == set(SOURCES)
    assert set(SIGNAL_VARIANTS) == set(SIGNALS)
    assert set(ADAPTER_VARIANTS) == set(ADAPTERS)


@pytest.mark.parametrize(("source", "signal", "adapter"), CELLS)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(toy_policy, tmp_path, source, signal, adapter):
    whole, begun, resumed = (arm(toy_policy, source, signal, adapter) for _ in range(3))
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


@pytest.mark.parametrize(("source", "signal"), list(itertools.product(SOURCE_VARIANTS, SIGNAL_VARIANTS)))
def test_the_states_of_a_cell_are_well_formed(toy_policy, source, signal):
    setup = arm(toy_policy, source, signal)
    states = supervised_states(setup)
    batch, time = states.token_ids.shape
    assert batch == setup.recipe.source.trajectories_per_update == 4
    assert time == states.lengths.max() <= toy_policy.context_length
    assert states.action_mask.shape == states.behavior_logprobs.shape == (batch, time)
    positions = np.arange(time)
    after_prompt = (positions >= states.prompt_lengths[:, None]) & (positions < states.lengths[:, None])
    assert not (states.action_mask & ~after_prompt).any()
    assert (states.action_mask.sum(1) >= 1).all()
    assert (states.token_ids[positions >= states.lengths[:, None]] == 0).all()
    assert set(states.sources) == {setup.recipe.source.kind}
    expected_writer = "teacher" if signal == "continuation" else {"dataset": "data"}.get(source, source)
    assert set(states.writers) == {expected_writer}
    is_law_known = expected_writer != "data"
    assert np.isnan(states.behavior_logprobs[~states.action_mask]).all()
    assert np.isfinite(states.behavior_logprobs[states.action_mask]).all() == is_law_known
    losses = score_states(setup, states).losses
    assert losses.shape == (states.num_states,)
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    if signal != "reward":
        assert (losses >= -1e-6).all()


@pytest.mark.parametrize("signal", SIGNAL_VARIANTS)
def test_gradient_flows_into_training_states_only(toy_policy, signal):
    setup = arm(toy_policy, "learner", signal)
    states = supervised_states(setup)
    kept = []

    def keep(module, inputs, output):
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    handle = setup.learner.model.get_decoder().register_forward_hook(keep)
    score_states(setup, states).losses.sum().backward()
    handle.remove()
    # The state of action t is position t - 1; the last column is an action only.
    has_gradient = (kept[0].grad != 0).any(-1).numpy()
    assert not (has_gradient & ~states.action_mask[:, 1:]).any()
    rows_with_signal = states.advantages != 0  # nan where the signal has none; a group without spread gives none
    assert (has_gradient == states.action_mask[:, 1:])[rows_with_signal].all()
    assert rows_with_signal.any()


@pytest.mark.parametrize("signal", SIGNAL_VARIANTS)
def test_what_lies_outside_the_mask_does_not_change_a_loss(toy_policy, signal):
    setup = arm(toy_policy, "dataset", signal)
    states = supervised_states(setup)
    with torch.no_grad():
        before = score_states(setup, states).losses
        # Padding, and log-probabilities that belong to no action.
        states.token_ids[np.arange(states.token_ids.shape[1]) >= states.lengths[:, None]] = 200
        states.behavior_logprobs[~states.action_mask] = -3.0
        states.rewards[:] = 0.5
        assert torch.equal(score_states(setup, states).losses, before)


@pytest.mark.parametrize("signal", SIGNAL_VARIANTS)
def test_a_masked_position_drops_its_own_loss_and_no_other(toy_policy, signal):
    setup = arm(toy_policy, "learner", signal)
    states = supervised_states(setup)
    with torch.no_grad():
        before = score_states(setup, states).losses
        states.action_mask[0, np.flatnonzero(states.action_mask[0])[1]] = False
        after = score_states(setup, states).losses
    torch.testing.assert_close(after, torch.cat([before[:1], before[2:]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTER_VARIANTS)
@pytest.mark.parametrize("signal", [name for name in SIGNAL_VARIANTS if name != "reward"])
def test_a_signal_lowers_its_own_loss_on_a_fixed_batch(toy_policy, signal, adapter):
    setup = arm(toy_policy, "learner", signal, adapter, num_updates=20, lr=1e-2)
    states = supervised_states(setup)
    updater = Updater(setup)
    losses = [updater.apply(states, step).loss for step in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_reward_makes_the_better_answers_of_a_group_more_likely(toy_policy):
    setup = arm(toy_policy, "learner", "reward", num_updates=5, lr=3e-3)
    states = supervised_states(setup)
    advantages = torch.from_numpy(np.repeat(states.advantages, states.action_mask.sum(1)))
    updater = Updater(setup)
    for step in range(5):
        updater.apply(states, step)
    tensors = batch_tensors(states)
    with torch.no_grad():
        logprobs = action_logprobs(setup.learner, state_hidden(setup.learner, states), tensors.actions, 1.0)
    # log π = log μ before the first update, so the sum was 0.
    assert (advantages * (logprobs - tensors.behavior_logprobs)).sum() > 0.1


@pytest.mark.parametrize("change", ["key", "source"])
def test_another_seed_or_source_gives_other_states(toy_policy, change):
    one = arm(toy_policy, "learner", "imitate", key=1)
    other = arm(toy_policy, "learner" if change == "key" else "base", "imitate", key=2 if change == "key" else 1)
    first, second = (setup.recipe.source.sample(setup.context, 0) for setup in (one, other))
    assert first.token_ids.tobytes() != second.token_ids.tobytes()
