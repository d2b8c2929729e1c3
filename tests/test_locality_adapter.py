import re

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import Qwen3Config, Qwen3ForCausalLM

from statewise.batch import Trajectory, collate
from statewise.config.refusals import read_kind
from statewise.errors import UsageError
from statewise.locality.adapter import Adapter, Full, Lora
from statewise.policy.load import Policy, copy_policy, load_policy, save_weights
from statewise.policy.lora import merge_adapters
from statewise.policy.score import state_hidden

IDS = torch.arange(40).reshape(2, 20)


def logits(policy):
    with torch.no_grad():
        return policy.model(IDS).logits


@pytest.fixture
def learner(toy_policy):
    return copy_policy(toy_policy, "learner")


def moved(trainable):
    """Move every trainable weight, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_a_fresh_adapter_changes_nothing(learner):
    before = logits(learner)
    Lora(rank=4).attach(learner.model, 1)
    assert torch.equal(logits(learner), before)


def test_an_adapter_trains_its_own_weights_alone(learner):
    names = {name for name, _ in learner.model.named_parameters()}
    trainable = Lora(rank=4).attach(learner.model, 1)
    assert all(re.search(r"\.lora_[AB]\.", name) for name in trainable)
    assert {name for name, p in learner.model.named_parameters() if p.requires_grad} == set(trainable)
    # 2 layers × 7 linear layers (q, k, v, o, gate, up, down), A and B each.
    assert len(trainable) == 2 * 7 * 2
    assert not names & set(trainable)
    assert not any("lm_head" in name or "embed" in name for name in trainable)


def test_the_rank_sets_the_number_of_trained_weights(learner):
    # Per layer r · (in + out): q 32+32, k and v 32+16, o 32+32, gate, up and down 32+64 = 512; 2 layers, r = 3: 3072.
    trainable = Lora(rank=3).attach(learner.model, 1)
    assert sum(parameter.numel() for parameter in trainable.values()) == 3072


def test_alpha_over_rank_scales_the_update(learner):
    base = dict(learner.model.named_parameters())["model.layers.0.mlp.up_proj.weight"].clone()
    trainable = Lora(rank=2, alpha=6.0).attach(learner.model, 1)
    moved(trainable)
    name = "model.layers.0.mlp.up_proj.lora_{}.learner.weight"
    expected = base + 6.0 / 2 * trainable[name.format("B")] @ trainable[name.format("A")]
    merge_adapters(learner.model)
    torch.testing.assert_close(learner.model.model.layers[0].mlp.up_proj.weight, expected)


def test_the_same_seed_gives_the_same_adapter_and_touches_no_global_generator(toy_policy):
    state = torch.random.get_rng_state()
    first, again, other = (Lora(rank=4).attach(copy_policy(toy_policy, "x").model, seed) for seed in (1, 1, 2**64 - 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == ("lora_B" in name) for name in first)


def test_a_merged_adapter_computes_the_same_in_a_plain_model(learner):
    trainable = Lora(rank=4).attach(learner.model, 1)
    before = logits(learner)
    moved(trainable)
    after = logits(learner)
    merge_adapters(learner.model)
    torch.testing.assert_close(logits(learner), after, atol=1e-4, rtol=1e-5)
    assert (after - before).abs().max() > 0.1
    assert not any(isinstance(module, LoraLayer) for module in learner.model.modules())


def test_a_merged_model_has_the_names_and_shapes_it_had(toy_policy, learner):
    adapter = Lora(rank=4)
    moved(adapter.attach(learner.model, 1))
    merge_adapters(learner.model)
    shapes = [{name: p.shape for name, p in policy.model.named_parameters()} for policy in (toy_policy, learner)]
    assert shapes[0] == shapes[1]


def test_a_merged_model_is_saved_and_loaded_as_any_other(learner, tmp_path):
    adapter = Lora(rank=4)
    moved(adapter.attach(learner.model, 1))
    with pytest.raises(UsageError, match="carries an adapter; merge it"):
        save_weights(learner, tmp_path / "model")
    merge_adapters(learner.model)
    save_weights(learner, tmp_path / "model")
    assert not list((tmp_path / "model").glob("adapter*"))
    loaded = load_policy(tmp_path / "model", "learner")
    assert torch.equal(logits(loaded), logits(learner))


def test_a_tied_model_takes_an_adapter_without_a_warning(toy_policy):
    config = Qwen3Config(**{**toy_policy.model.config.to_dict(), "tie_word_embeddings": True})
    policy = Policy(Qwen3ForCausalLM(config).eval(), toy_policy.tokenizer, "tied", 256)
    before = logits(policy)
    adapter = Lora(rank=2)
    trainable = adapter.attach(policy.model, 1)
    assert len(trainable) == 28
    merge_adapters(policy.model)
    torch.testing.assert_close(logits(policy), before)
    assert policy.model.get_output_embeddings().weight is policy.model.get_input_embeddings().weight


def test_full_trains_every_weight_once(toy_policy):
    config = Qwen3Config(**{**toy_policy.model.config.to_dict(), "tie_word_embeddings": True})
    model = Qwen3ForCausalLM(config).requires_grad_(False)
    trainable = Full().attach(model, 1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "lm_head.weight" not in trainable
    assert "model.embed_tokens.weight" in trainable


def test_the_gradient_of_an_adapter_reaches_b_first(learner):
    # B is zero, so A has no gradient until B has moved.
    trainable = Lora(rank=2).attach(learner.model, 1)
    states = collate([Trajectory(tuple(range(9)), 3, 0, "dataset", "data")])
    state_hidden(learner, states).square().sum().backward()
    for name, parameter in trainable.items():
        assert (parameter.grad.abs().max() > 0) == ("lora_B" in name), name


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0}])
def test_an_adapter_setting_out_of_range_is_refused(settings):
    with pytest.raises(UsageError, match=r"study\.toml:1: (rank|alpha): Input should be greater"):
        read_kind(Adapter, {"kind": "lora", **settings}, "study.toml:1")
