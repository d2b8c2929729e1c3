"""Adapters that peft wrote: the same logits as peft's, or refused by name."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from families_fixture import GPT, LLAMA, build_model
from transformers import AutoModelForCausalLM

from statewise.errors import UsageError
from statewise.models.model_folder import check_adapter
from statewise.policy.load import load_policy, save_weights
from statewise.policy.lora import add_adapter, load_adapter, merge_adapters, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's, of its own kinds
IDS = torch.arange(40).reshape(2, 20)
READ = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "with dropout": {"lora_dropout": 0.1},
    "layers by a pattern": {"target_modules": r".*\.(q|down)_proj"},
}
REFUSED = {
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not plain LoRA"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    "rslora": ({"use_rslora": True}, "use_rslora = True"),
    "dora": ({"use_dora": True}, "use_dora = True"),
    "bias": ({"bias": "lora_only"}, "bias = 'lora_only'"),
    "bias of B": ({"lora_bias": True}, "lora_bias = True"),
    "trained head": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "ranks": ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    "one layer": ({"layers_to_transform": [0]}, "layers_to_transform"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("base"), "llama", LLAMA)


def stored(base, folder, options):
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **options}
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def logits_of_peft(base, folder):
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", READ)
def test_an_adapter_that_is_read_has_the_logits_that_peft_gives_it(base, tmp_path, kind):
    folder = stored(base, tmp_path, READ[kind])
    check_adapter(folder)
    policy = load_policy(base, "policy")
    load_adapter(policy.model, folder, "read")
    with torch.no_grad():
        torch.testing.assert_close(policy.model(IDS).logits, logits_of_peft(base, folder), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_is_more_than_plain_lora_is_refused_by_name(base, tmp_path, kind):
    options, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message):
        check_adapter(stored(base, tmp_path, options))


def test_a_setting_that_peft_may_add_is_refused_where_it_is_set(base, tmp_path):
    folder = stored(base, tmp_path, {})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_tomorrow": False}))
    check_adapter(folder)
    path.write_text(json.dumps({**config, "use_tomorrow": 2}))
    with pytest.raises(UsageError, match="use_tomorrow = 2 is not plain LoRA"):
        check_adapter(folder)


def test_another_kind_of_adapter_is_refused(base, tmp_path):
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.IA3Config(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="IA3 is not LoRA"):
        check_adapter(tmp_path)


def test_an_adapter_of_gpt2_is_what_peft_reads_and_merges(tmp_path):
    base = build_model(tmp_path / "base", "gpt2", GPT)
    policy = load_policy(base, "policy")
    added = add_adapter(policy.model, "learner", rank=4, alpha=8.0, seed=0)
    assert len(added) == 2 * 4 * 2  # two layers of four `Conv1D`, A and B each
    with torch.no_grad():
        for parameter in added.values():
            parameter.add_(0.1)
        expected = policy.model(IDS).logits
    save_adapter(policy, "learner", tmp_path / "adapter", str(base))
    torch.testing.assert_close(logits_of_peft(base, tmp_path / "adapter"), expected, atol=1e-3, rtol=1e-4)
    again = load_policy(base, "again")
    load_adapter(again.model, tmp_path / "adapter", "read")
    merge_adapters(policy.model)
    save_weights(policy, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged", "merged")
    for one in (again, merged):
        with torch.no_grad():
            torch.testing.assert_close(one.model(IDS).logits, expected, atol=1e-3, rtol=1e-4)
