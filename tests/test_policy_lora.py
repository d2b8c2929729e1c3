"""Several policies on one set of base weights, and adapters as peft stores and reads them."""

from __future__ import annotations

import dataclasses
import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from statewise.batch import Trajectory, collate
from statewise.errors import UsageError
from statewise.policy.load import NO_ADAPTER, copy_policy, load_policy, save_weights
from statewise.policy.lora import active, add_adapter, load_adapter, merge_adapters, save_adapter
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import state_hidden

STATES = collate([Trajectory(tuple(range(40, 60)), 5, 0, "dataset", "data")])


def hidden(policy):
    with torch.no_grad():
        return state_hidden(policy, STATES)


def trained(model, name, seed):
    """An adapter with random weights, as if trained."""
    parameters = add_adapter(model, name, rank=3, alpha=6.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return parameters


@pytest.fixture
def base(toy_policy):
    return copy_policy(toy_policy, "base")


@pytest.fixture
def teacher_folder(toy_policy, tmp_path):
    teacher = copy_policy(toy_policy, "teacher")
    trained(teacher.model, "learner", 1)
    save_adapter(teacher, "learner", tmp_path / "adapter", "org/base")
    return tmp_path / "adapter"


def test_policies_on_shared_weights_compute_what_copies_would(base, toy_policy, teacher_folder):
    alone = copy_policy(toy_policy, "teacher")
    load_adapter(alone.model, teacher_folder, "teacher")
    load_adapter(base.model, teacher_folder, "teacher")
    teacher = dataclasses.replace(base, name="teacher", adapter="teacher")
    nobody = dataclasses.replace(base, name="base", adapter=NO_ADAPTER)
    trained(base.model, "learner", 2)
    learner = hidden(base)
    assert torch.equal(hidden(teacher), hidden(alone))
    assert torch.equal(hidden(nobody), hidden(toy_policy))
    assert torch.equal(hidden(base), learner)  # the learner rests in its own adapter again
    distances = [(hidden(one) - hidden(other)).abs().max() for one, other in [(base, teacher), (base, nobody)]]
    assert min(distances) > 0.1


def test_a_rollout_is_that_of_the_policy_that_was_asked(base, toy_policy, teacher_folder):
    alone = copy_policy(toy_policy, "teacher")
    load_adapter(alone.model, teacher_folder, "teacher")
    load_adapter(base.model, teacher_folder, "teacher")
    trained(base.model, "learner", 2)
    teacher = dataclasses.replace(base, name="teacher", adapter="teacher")
    prompts, sampling = [(50, 51), (60, 61, 62)], Sampling(max_new_tokens=12)
    assert sample(teacher, prompts, [1, 2], sampling) == sample(alone, prompts, [1, 2], sampling)
    assert sample(base, prompts, [1, 2], sampling) != sample(alone, prompts, [1, 2], sampling)


def test_only_the_adapter_that_is_trained_has_gradients(base, teacher_folder):
    load_adapter(base.model, teacher_folder, "teacher")
    added = add_adapter(base.model, "learner", rank=2, alpha=4.0, seed=0)
    assert {name for name, p in base.model.named_parameters() if p.requires_grad} == set(added)
    assert all(".learner." in name for name in added)
    with active(dataclasses.replace(base, adapter="teacher")):
        assert {name for name, p in base.model.named_parameters() if p.requires_grad} == set(added)


def test_a_failure_inside_leaves_the_model_resting_as_before(base, teacher_folder):
    trained(base.model, "learner", 2)
    before = hidden(base)
    with pytest.raises(RuntimeError, match="inside"), active(dataclasses.replace(base, adapter=NO_ADAPTER)):
        raise RuntimeError("inside")
    assert torch.equal(hidden(base), before)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft calls it
def test_peft_reads_what_was_saved_and_computes_the_same(base, toy_policy, tmp_path):
    save_weights(toy_policy, tmp_path / "base")
    trained(base.model, "learner", 3)
    save_adapter(base, "learner", tmp_path / "adapter", str(tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, base.model(ids).logits)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft calls it
def test_what_peft_saved_is_read(toy_policy, tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(copy_policy(toy_policy, "x").model, config)
    model.save_pretrained(tmp_path)
    ours = copy_policy(toy_policy, "ours")
    load_adapter(ours.model, tmp_path, "other")
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids).logits, model(ids).logits)


def test_the_same_adapter_is_saved_as_the_same_bytes(base, tmp_path):
    trained(base.model, "learner", 3)
    for folder in ("one", "two"):
        save_adapter(base, "learner", tmp_path / folder, "org/base")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["peft_type"], config["r"]) == ("org/base", "LORA", 3)


def test_a_loaded_adapter_equals_the_one_that_was_saved(base, toy_policy, tmp_path):
    trained(base.model, "learner", 3)
    save_adapter(base, "learner", tmp_path / "adapter", "org/base")
    again = copy_policy(toy_policy, "again")
    load_adapter(again.model, tmp_path / "adapter", "loaded")
    assert torch.equal(hidden(again), hidden(base))


def test_an_adapter_of_another_model_is_refused(base, tmp_path, teacher_folder):
    config = base.model.config
    smaller = type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "layer_types": config.layer_types[:1]})
    with pytest.raises((UsageError, ValueError), match="adapter"):
        load_adapter(type(base.model)(smaller), teacher_folder, "teacher")


def test_an_adapter_of_other_widths_is_refused(base, teacher_folder):
    config = base.model.config
    wider = type(config)(**{**config.to_dict(), "intermediate_size": 2 * config.intermediate_size})
    with pytest.raises(UsageError, match=r"stored, .* expected\); its base model is org/base"):
        load_adapter(type(base.model)(wider), teacher_folder, "teacher")


def test_a_damaged_adapter_is_refused(base, teacher_folder):
    (teacher_folder / "adapter_model.safetensors").write_bytes(b"12345678")
    with pytest.raises(UsageError, match="cannot be read"):
        load_adapter(base.model, teacher_folder, "teacher")


def test_an_adapter_on_a_bfloat16_model_is_float32_and_learns(toy_policy, tmp_path):
    save_weights(toy_policy, tmp_path / "base")
    policy = load_policy(tmp_path / "base", "learner", dtype=torch.bfloat16)
    added = add_adapter(policy.model, "learner", rank=2, alpha=4.0, seed=0)
    assert {p.dtype for p in added.values()} == {torch.float32}
    loss = state_hidden(policy, STATES).float().pow(2).mean()
    loss.backward()
    gradients = [p.grad for name, p in added.items() if ".lora_B." in name]
    assert all(g.dtype == torch.float32 and g.abs().max() > 0 for g in gradients)


def test_merging_takes_the_active_adapter(base, teacher_folder):
    load_adapter(base.model, teacher_folder, "teacher")
    trained(base.model, "learner", 2)
    before = hidden(base)
    merge_adapters(base.model)
    torch.testing.assert_close(hidden(base), before, atol=1e-4, rtol=1e-4)
