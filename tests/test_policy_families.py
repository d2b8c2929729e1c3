"""One law, whoever asks: sampler = scoring pass = alone = in a batch = transformers, for every family that loads.

Each family is built small (two layers; matrices scaled by 4, so that a wrong mask or position shows in the first
digits) and asked across its window or its switch of rope, before and after it was saved. Others are refused by name.
"""

from __future__ import annotations

import json

import pytest
import torch
from families_fixture import GPT, LLAMA, build_model
from transformers import AutoModelForCausalLM

from statewise.batch import Trajectory, collate
from statewise.errors import UsageError
from statewise.policy import check
from statewise.policy.load import Policy, load_policy, save_weights
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import action_logprobs, batch_tensors, state_hidden

WIDE = {**LLAMA, "head_dim": 8}
OPT = {**LLAMA, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1}
WINDOW = {"sliding_window": 6}
GEMMA = {**WIDE, **WINDOW, "query_pre_attn_scalar": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    **LLAMA, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip
SWITCH = 24  # tokens, within reach of every test below


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **more}}


LONG_ROPE = {
    **rope("longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=SWITCH),
    "original_max_position_embeddings": SWITCH,
}
LOADED = {
    "llama": ("llama", LLAMA),
    "llama with dynamic rope": ("llama", {**LLAMA, **rope("dynamic"), "max_position_embeddings": SWITCH}),
    "mistral": ("mistral", {**LLAMA, "sliding_window": None}),
    "mistral with a window": ("mistral", {**LLAMA, **WINDOW}),
    "mixtral with a window": ("mixtral", {**LLAMA, **WINDOW, **EXPERTS}),
    "qwen2 with yarn": ("qwen2", {**LLAMA, **rope("yarn", original_max_position_embeddings=SWITCH)}),
    "qwen2 with a window": ("qwen2", {**LLAMA, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", WIDE),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("phi3", LLAMA),
    "phi3 with a window": ("phi3", {**LLAMA, **WINDOW}),
    "phi3 with longrope": ("phi3", {**LLAMA, **LONG_ROPE}),
    "gpt2": ("gpt2", GPT),
    "gpt-neox": ("gpt_neox", LLAMA),
    "opt": ("opt", OPT),
    "falcon with alibi": ("falcon", {**LLAMA, "alibi": True}),
    "stablelm": ("stablelm", LLAMA),
    "cohere": ("cohere", {**LLAMA, "logit_scale": 1.0}),
    "olmo2": ("olmo2", LLAMA),
    "granite": ("granite", {**LLAMA, "logits_scaling": 1.0, "embedding_multiplier": 3.0}),
    "deepseek": ("deepseek_v3", LATENT),
}
REFUSED = {
    "gemma2": ("gemma2", GEMMA, "Gemma2ForCausalLM .*scaled_dot_product_attention"),
    "bloom": ("bloom", {"vocab_size": 257, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "BloomForCausalLM"),
    "cohere with scaled logits": ("cohere", {**LLAMA, "logit_scale": 0.1}, "changes its logits after the output head"),
    "llama 4": ("llama4_text", {**WIDE, "attention_chunk_size": 6, "num_local_experts": 2}, "chunked_attention"),
    "a hybrid": ("lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"]}, "layers of kind conv"),
    "mamba": ("mamba", {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2}, "MambaForCausalLM"),
    "gemma3 that looks both ways": (
        "gemma3_text", {**GEMMA, "use_bidirectional_attention": True}, "depends on the tokens that follow it"
    ),
}  # fmt: skip
# Those that make their own mask of ones, by which transformers no longer sees where a packed text begins.
UNPACKED = {"opt", "falcon with alibi"}
PROMPTS = [tuple(range(30, 30 + length)) for length in (3, 8, 18)]
KEYS = list(range(len(PROMPTS)))
NEW = 8


def generated(reference, prompt, num_tokens) -> tuple[int, ...]:
    """transformers' own greedy continuation."""
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": num_tokens, "pad_token_id": 256}
    return tuple(reference.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist())


def logprobs_alone(reference, rollout) -> torch.Tensor:
    """Of every token of a rollout, under transformers' forward pass over it alone."""
    ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
    with torch.no_grad():
        laws = reference(ids).logits[0].log_softmax(-1)
    return laws[:-1].gather(-1, ids[0, 1:, None])[len(rollout.prompt_ids) - 1 :, 0]


def check_one_law(policy: Policy, reference, packs: bool) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=NEW)
    together = sample(policy, PROMPTS, KEYS, greedy)
    assert sample(policy, PROMPTS[:1], [0], greedy)[0].token_ids == together[0].token_ids
    for prompt, rollout in zip(PROMPTS, together, strict=True):
        assert generated(reference, prompt, len(rollout.token_ids)) == rollout.token_ids
    drawn = sample(policy, PROMPTS, KEYS, Sampling(max_new_tokens=NEW))
    states = collate(
        [Trajectory((*r.prompt_ids, *r.token_ids), len(r.prompt_ids), 0, "rollout", "x", r.logprobs) for r in drawn]
    )
    expected = torch.cat([logprobs_alone(reference, rollout) for rollout in drawn])
    tensors = batch_tensors(states)
    torch.testing.assert_close(tensors.inputs.behavior_logprobs, expected, atol=1e-3, rtol=1e-4)
    for is_packed in (False, True) if packs else (False,):
        with torch.no_grad():
            scored = action_logprobs(policy, state_hidden(policy, states, is_packed=is_packed), tensors.labels, 1.0)
        torch.testing.assert_close(scored, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", LOADED)
def test_one_law_whoever_asks_before_and_after_a_save(tmp_path, family):
    folder = build_model(tmp_path / "model", *LOADED[family])
    policy = load_policy(folder, "policy")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    check_one_law(policy, reference, family not in UNPACKED)
    if family in UNPACKED:
        with pytest.raises(UsageError, match="ForCausalLM does not keep packed texts apart"):
            check.check_packing(policy)
    save_weights(policy, tmp_path / "saved")
    again = load_policy(tmp_path / "saved", "again")
    assert (again.context_length, again.end_token_ids) == (policy.context_length, policy.end_token_ids)
    with torch.no_grad():
        ids = torch.tensor(PROMPTS[2:3])
        torch.testing.assert_close(again.model(ids).logits, reference(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_made_right_is_refused_by_name(tmp_path, family):
    kind, options, message = REFUSED[family]
    folder = build_model(tmp_path / "model", kind, options)
    with pytest.raises(UsageError, match=message) as refused:
        load_policy(folder, "policy")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["phi3 with longrope", "llama with dynamic rope"])
def test_the_context_ends_where_the_rope_switches(tmp_path, family):
    # Beyond it every earlier state would have another law, so that no text has one law from start to end.
    policy = load_policy(build_model(tmp_path / "model", *LOADED[family]), "policy")
    assert policy.context_length == SWITCH
    (rollout,) = sample(policy, PROMPTS[2:3], [0], Sampling(max_new_tokens=NEW))
    assert len(rollout.prompt_ids) + len(rollout.token_ids) == SWITCH


def test_a_rope_that_is_not_known_is_refused(tmp_path):
    folder = build_model(tmp_path / "model", *LOADED["llama"])
    policy = load_policy(folder, "policy")
    policy.model.config.rope_parameters = {"rope_type": "spiral", "rope_theta": 10_000.0}
    with pytest.raises(UsageError, match="rope of kind spiral"):
        check.check_model(policy, folder)


@pytest.mark.parametrize("end", [0, 256])
def test_the_stop_set_is_that_of_transformers_before_and_after_a_save(tmp_path, end):
    # config.json names two ends and there is no generation_config.json: transformers takes both.
    folder = build_model(tmp_path / "model", *LOADED["llama"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [end, 7]}))
    (folder / "generation_config.json").unlink()
    expected = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    policy = load_policy(folder, "policy")
    assert set(policy.end_token_ids) == {256, *expected} == {256, end, 7}  # 256: the tokenizer's own, of gold text
    save_weights(policy, tmp_path / "saved")
    assert load_policy(tmp_path / "saved", "again").end_token_ids == policy.end_token_ids
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id
    assert set(saved) == set(policy.end_token_ids)


def wrap_forward(policy: Policy, change) -> None:
    """Let `change(keywords)` alter what the decoder is called with: an architecture that nobody thought of."""
    decoder = policy.model.get_decoder()
    forward = decoder.forward

    def changed(**keywords):
        return forward(**change(keywords))

    decoder.forward = changed


def forget_the_mask(keywords):
    return {**keywords, "attention_mask": None}


def shift_later_rows(keywords):
    """Every row but the first is read as if it began later: in a batch it has another law than alone."""
    ids = keywords["input_ids"]
    place = torch.arange(ids.shape[1]).expand(ids.shape) * (1 + torch.arange(len(ids))[:, None])
    return keywords if keywords.get("past_key_values") is not None else {**keywords, "position_ids": place}


def forget_positions(keywords):
    return {key: value for key, value in keywords.items() if key != "position_ids"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget_the_mask, "a rollout beside others"),
        (shift_later_rows, "a row of a batch"),
    ],
)
def test_a_model_that_batches_wrongly_is_refused_whatever_its_family(tmp_path, change, message):
    folder = build_model(tmp_path / "model", *LOADED["llama"])
    policy = load_policy(folder, "policy")
    wrap_forward(policy, change)
    with pytest.raises(UsageError, match=message):
        check.check_model(policy, folder)


def test_a_model_that_does_not_keep_packed_texts_apart_is_refused_for_packing(tmp_path):
    policy = load_policy(build_model(tmp_path / "model", *LOADED["llama"]), "policy")
    check.check_packing(policy)
    wrap_forward(policy, forget_positions)
    with pytest.raises(UsageError, match="packing = false"):
        check.check_packing(policy)


@pytest.mark.parametrize("family", ["llama", "mistral with a window", "gemma3", "falcon with alibi", "deepseek"])
def test_bfloat16_passes_the_check(tmp_path, family):
    policy = load_policy(build_model(tmp_path / "model", *LOADED[family]), "policy", dtype=torch.bfloat16)
    assert policy.model.dtype == torch.bfloat16
