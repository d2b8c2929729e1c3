import json

import pytest
import torch
from conftest import byte_tokenizer
from transformers import GraniteConfig, GraniteForCausalLM, Qwen3Config, Qwen3ForCausalLM

from statewise.errors import UsageError
from statewise.policy.load import Policy, check_same_tokenizer, copy_policy, eval_mode, load_policy, save_weights
from statewise.policy.texts import decode, encode


@pytest.fixture
def folder(toy_policy, tmp_path):
    save_weights(toy_policy, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_policy_loads_with_the_same_logits(toy_policy, folder):
    loaded = load_policy(folder, "again")
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(loaded.model(ids).logits, toy_policy.model(ids).logits)
    assert (loaded.name, loaded.end_token_id, loaded.vocab_size, loaded.context_length) == ("again", 256, 257, 128)
    assert not loaded.model.training
    assert loaded.device == torch.device("cpu")
    check_same_tokenizer(toy_policy, loaded)


def test_the_same_weights_give_the_same_bytes_and_replace_an_older_folder(toy_policy, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "left_over").write_text("x")
    save_weights(load_policy(folder, "again"), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_an_unmerged_adapter_is_not_written_as_a_model(toy_policy, tmp_path):
    adapted = copy_policy(toy_policy, "adapted")
    linear = adapted.model.model.layers[0].mlp.up_proj
    linear.base_layer = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="merge it"):
        save_weights(adapted, tmp_path / "model")


def test_text_survives_encoding_and_end_of_text_is_not_shown(toy_policy):
    text = "Zwölf  apples, \n2 + 2 = 4 ."
    ids = encode(toy_policy, text)
    assert len(ids) == len(text.encode())  # one token a byte, no special token
    assert decode(toy_policy, [*ids, toy_policy.end_token_id]) == text


def test_a_copy_has_weights_of_its_own(toy_policy):
    copied = copy_policy(toy_policy, "teacher")
    with torch.no_grad():
        next(copied.model.parameters()).zero_()
    assert copied.name == "teacher"
    assert next(toy_policy.model.parameters()).abs().sum() > 0


def test_every_module_returns_to_its_own_mode(toy_policy):
    policy = copy_policy(toy_policy, "learner")
    policy.model.train()
    policy.model.model.layers[0].eval()
    with eval_mode(policy):
        assert not any(module.training for module in policy.model.modules())
    assert policy.model.training
    assert not policy.model.model.layers[0].mlp.training
    assert policy.model.model.layers[1].mlp.training


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_policy(tmp_path / "nowhere", "learner")


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_policy(tmp_path, "learner")


def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin, and pickle is never read .*save_pretrained"):
        load_policy(folder, "learner")


def test_a_tokenizer_without_end_of_text_is_refused(folder):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "eos_token"}))
    with pytest.raises(UsageError, match="no end-of-text token"):
        load_policy(folder, "learner")


def test_weights_that_do_not_fill_the_model_are_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}))
    with pytest.raises(UsageError, match="they would be random"):
        load_policy(folder, "learner")


def test_a_model_type_that_needs_its_own_code_is_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": "my_own", "auto_map": {"AutoConfig": "evil.Config"}}))
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UsageError, match="never run"):
        load_policy(folder, "learner")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    config = Qwen3Config(vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8,
                         num_key_value_heads=1, intermediate_size=8)  # fmt: skip
    save_weights(Policy(Qwen3ForCausalLM(config), byte_tokenizer(), "small", 256), tmp_path / "model")
    with pytest.raises(UsageError, match="tokenizer has 257 tokens, the model logits for 200"):
        load_policy(tmp_path / "model", "learner")


def test_a_model_that_scales_its_logits_after_the_head_is_refused(tmp_path):
    config = GraniteConfig(vocab_size=264, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                           num_key_value_heads=1, intermediate_size=8, logits_scaling=4.0)  # fmt: skip
    save_weights(Policy(GraniteForCausalLM(config), byte_tokenizer(), "scaled", 256), tmp_path / "model")
    with pytest.raises(UsageError, match="after the output head"):
        load_policy(tmp_path / "model", "learner")


def test_a_teacher_with_another_tokenizer_is_refused(toy_policy):
    teacher = Policy(toy_policy.model, byte_tokenizer("<|im_end|>"), "teacher", 256)
    with pytest.raises(UsageError, match="different tokenizers"):
        check_same_tokenizer(toy_policy, teacher)


def test_a_teacher_that_ends_texts_otherwise_is_refused(toy_policy):
    teacher = Policy(toy_policy.model, toy_policy.tokenizer, "teacher", 10)
    with pytest.raises(UsageError, match="never to stop"):
        check_same_tokenizer(toy_policy, teacher)
