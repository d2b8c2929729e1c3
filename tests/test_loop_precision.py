"""Training a model in bfloat16: what is trained is float32, and nothing of it is lost on the way to a folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_arm import losses_of, make_setup, make_source, supervised_states

from statewise.locality.adapter import Full, Lora
from statewise.loop.train import Observer, train
from statewise.policy.device import choose_dtype
from statewise.policy.load import copy_policy, load_policy, save_weights
from statewise.policy.lora import load_adapter, merge_adapters
from statewise.policy.sampler import Sampling, sample
from statewise.signals import SIGNALS

ADAPTERS = {"full": Full(), "lora": Lora(rank=4)}
SIGNAL_NAMES = ["imitate", "continuation", "forward_kl", "reverse_kl", "jsd", "reward"]
IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def half_policy(toy_policy):
    policy = copy_policy(toy_policy, "half")
    policy.model.bfloat16()
    return policy


@pytest.mark.parametrize("signal", SIGNAL_NAMES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_loss_in_bfloat16_is_near_the_one_in_float32(toy_policy, half_policy, signal, adapter):
    losses = []
    for policy in (toy_policy, half_policy):
        setup = make_setup(policy, make_source("dataset"), SIGNALS[signal](), adapter=ADAPTERS[adapter])
        states = make_source("dataset").sample(setup.context, 0)  # the same states: rollouts would differ
        half, known = np.full_like(states.advantages, 0.5), np.full_like(states.behavior_logprobs, -5.0)
        states = replace(states, advantages=half, behavior_logprobs=known)
        losses.append(losses_of(setup, states).detach())
    assert losses[1].dtype == torch.float32
    # The toy's logits are about ±3 and bfloat16 keeps 8 bits: 1 / 256 of them, twice.
    torch.testing.assert_close(losses[1], losses[0], atol=0.1, rtol=0.05)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_trained_is_float32_whatever_the_model_computes_in(half_policy, adapter):
    setup = make_setup(half_policy, make_source(), SIGNALS["imitate"](), adapter=ADAPTERS[adapter])
    assert {parameter.dtype for parameter in setup.trainable.values()} == {torch.float32}
    frozen = [p.dtype for p in setup.learner.model.parameters() if not p.requires_grad]
    assert set(frozen) == ({torch.bfloat16} if adapter == "lora" else set())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_step_too_small_for_bfloat16_is_kept_and_saved(half_policy, tmp_path, adapter):
    # At lr 1e-6 AdamW moves a weight by about 1e-6; beside a weight of 0.3, bfloat16 has steps of 0.001.
    setup = make_setup(
        half_policy, make_source("dataset"), SIGNALS["imitate"](), adapter=ADAPTERS[adapter], lr=1e-6, num_updates=2
    )
    train(setup, tmp_path / "run", Observer())
    with torch.no_grad():
        trained = setup.learner.model(IDS).logits.float()
    setup.recipe.adapter.save(setup.learner, tmp_path, "base")
    if adapter == "lora":
        whole = copy_policy(half_policy, "whole")
        load_adapter(whole.model, tmp_path / "adapter", "again")
        merge_adapters(whole.model)
        save_weights(whole, tmp_path / "model")
    loaded = load_policy(tmp_path / "model", "again", dtype=torch.float32)
    base = half_policy.model.get_parameter("model.layers.0.mlp.up_proj.weight").float()
    moved = (loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight") - base).abs().max().item()
    assert 0 < moved < 1e-3
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits, trained, atol=0.2, rtol=0.05)
    assert choose_dtype("auto", torch.device("cuda"), tmp_path / "model") is torch.float32


@pytest.mark.parametrize(
    ("source", "signal"), [("rollout", "reward"), ("rollout", "reverse_kl"), ("dataset", "imitate")]
)
def test_a_bfloat16_arm_trains_and_repeats(half_policy, tmp_path, source, signal):
    weights = []
    for name in ("one", "two"):
        setup = make_setup(half_policy, make_source(source), SIGNALS[signal](), adapter=Lora(rank=2))
        train(setup, tmp_path / name, Observer())
        weights.append([parameter.detach().clone() for parameter in setup.trainable.values()])
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in weights[0])


def test_sampled_logprobs_are_float32_and_those_of_scoring(half_policy):
    setup = make_setup(half_policy, make_source(), SIGNALS["reward"](), adapter=Lora(rank=2))
    states = supervised_states(setup)
    assert states.behavior_logprobs.dtype.name == "float32"
    (rollout,) = sample(half_policy, [(1, 2, 3)], [0], Sampling(max_new_tokens=20))
    with torch.no_grad():
        logits = half_policy.model(torch.tensor([rollout.prompt_ids + rollout.token_ids])).logits[0, 2:-1, :257].float()
    scored = logits.log_softmax(-1).gather(-1, torch.tensor(rollout.token_ids)[:, None]).squeeze(-1)
    torch.testing.assert_close(torch.tensor(rollout.logprobs), scored, atol=0.15, rtol=0.02)
