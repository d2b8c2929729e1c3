"""How texts begin and end, and which tokens exist: what differs between the checkpoints of one family."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import PADDED_VOCAB, byte_tokenizer
from lm_eval.models.huggingface import HFLM
from tokenizers import processors
from toy_arm import ToyTask, losses_of, make_source, weighted
from transformers import Qwen3Config, Qwen3ForCausalLM

from statewise.batch import Trajectory, collate
from statewise.config.study import UpdateSection
from statewise.errors import UsageError
from statewise.evals.policy_lm import PolicyLM
from statewise.locality.adapter import Full
from statewise.loop.build import Material, Recipe, build
from statewise.loop.documents import encode_examples
from statewise.policy.load import Policy, check_same_tokenizer, copy_policy, load_policy, save_weights
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import action_logprobs, state_hidden
from statewise.policy.texts import decode, encode, encode_prompt
from statewise.signals import SIGNALS
from statewise.types import Example

TURN_END, TEXT_END = "<|im_end|>", "<|endoftext|>"  # ids 257 and 256


def two_end_tokenizer():
    """The byte tokenizer with a second token that can end a text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN_END]})
    return tokenizer


@pytest.fixture
def base_folder(toy_policy, tmp_path):
    """A base model: it ends its texts with 256, and its tokenizer knows 257."""
    save_weights(replace(toy_policy, tokenizer=two_end_tokenizer()), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def instruct_folder(toy_policy, tmp_path):
    """Its instruct sibling: the tokenizer ends with 257, generation_config.json names both."""
    policy = copy_policy(toy_policy, "instruct")
    tokenizer = two_end_tokenizer()
    tokenizer.eos_token = TURN_END
    policy.model.generation_config.eos_token_id = [257, 256]
    save_weights(replace(policy, tokenizer=tokenizer), tmp_path / "instruct")
    return tmp_path / "instruct"


def writes_always(policy, token_id):
    """A policy whose arg-max is `token_id` in every state."""
    favoured = copy_policy(policy, policy.name)
    favoured.model.lm_head.bias = torch.nn.Parameter(torch.zeros(PADDED_VOCAB), requires_grad=False)
    favoured.model.lm_head.bias[token_id] = 1e4
    return favoured


def test_a_text_ends_with_every_token_that_the_checkpoint_names(base_folder, instruct_folder):
    assert load_policy(base_folder, "base").end_token_ids == (256,)
    assert load_policy(instruct_folder, "instruct").end_token_ids == (257, 256)


def test_an_id_that_is_no_token_ends_nothing(base_folder):
    (base_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [50_256, 257]}))
    assert load_policy(base_folder, "base").end_token_ids == (256, 257)


@pytest.mark.parametrize("end", [256, 257])
def test_a_rollout_stops_at_any_of_them_and_shows_none(instruct_folder, end):
    policy = writes_always(load_policy(instruct_folder, "instruct"), end)
    (rollout,) = sample(policy, [(1, 2, 3)], [0], Sampling(temperature=0.0))
    assert rollout.token_ids == (end,)
    assert rollout.is_finished
    assert decode(policy, (65, *rollout.token_ids)) == decode(policy, (65,))


def test_a_rollout_goes_on_after_a_token_that_ends_other_checkpoints_only(base_folder):
    policy = writes_always(load_policy(base_folder, "base"), 257)
    (rollout,) = sample(policy, [(1, 2, 3)], [0], Sampling(temperature=0.0, max_new_tokens=9))
    assert rollout.token_ids == (257,) * 9
    assert not rollout.is_finished


def test_the_named_end_of_text_closes_gold_text_and_the_checkpoints_own_still_ends_a_rollout(base_folder):
    policy = load_policy(base_folder, "learner", end_of_text=TURN_END)
    assert policy.end_token_ids == (257, 256)
    assert encode_examples(policy, [Example(0, "ab", " c")])[0].gold_ids[-1] == 257


def test_a_saved_model_keeps_its_named_end_of_text(base_folder, tmp_path):
    save_weights(load_policy(base_folder, "learner", end_of_text=TURN_END), tmp_path / "trained")
    assert load_policy(tmp_path / "trained", "again").end_token_ids == (257, 256)
    assert json.loads((tmp_path / "trained" / "generation_config.json").read_text())["eos_token_id"] == [257, 256]


def test_an_end_of_text_of_more_than_one_token_is_refused(base_folder):
    with pytest.raises(UsageError, match=r"end_of_text '###' is not a single token .* special tokens are <\|endoftext"):
        load_policy(base_folder, "learner", end_of_text="###")


def test_an_end_of_text_can_be_named_where_the_tokenizer_has_none(base_folder):
    path = base_folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    (base_folder / "generation_config.json").unlink()
    assert load_policy(base_folder, "learner", end_of_text=TEXT_END).end_token_ids == (256,)


def test_a_teacher_whose_end_of_text_does_not_stop_the_student_is_refused(base_folder, instruct_folder):
    # The trap: the student learns to write <|im_end|>, at which it does not stop, and its lengths explode.
    student, teacher = load_policy(base_folder, "learner"), load_policy(instruct_folder, "teacher")
    with pytest.raises(UsageError, match=r"never to stop. Set end_of_text = '<\|im_end\|>' for 'learner'"):
        check_same_tokenizer(student, teacher)


def test_the_same_teacher_is_allowed_once_the_student_stops_there_too(base_folder, instruct_folder):
    student = load_policy(base_folder, "learner", end_of_text=TURN_END)
    check_same_tokenizer(student, load_policy(instruct_folder, "teacher"))
    (rollout,) = sample(writes_always(student, 257), [(1,)], [0], Sampling(temperature=0.0))
    assert rollout.is_finished


def test_a_base_teacher_of_an_instruct_student_is_allowed(base_folder, instruct_folder):
    student, teacher = load_policy(instruct_folder, "learner"), load_policy(base_folder, "teacher")
    assert set(teacher.end_token_ids) < set(student.end_token_ids)
    check_same_tokenizer(student, teacher)


def begin_policy(toy_policy) -> Policy:
    """The toy policy with a tokenizer that puts a begin-of-text in front, as Llama's does."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return replace(toy_policy, tokenizer=tokenizer)


TEXTS = ["2 + 2 =", " leading space", "<s>already begun", "two\nlines ", "Zwölf"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("has_begin", [True, False])
def test_a_context_has_the_tokens_that_lm_eval_gives_it(toy_policy, text, has_begin):
    policy = begin_policy(toy_policy) if has_begin else toy_policy
    reference = HFLM(pretrained=policy.model, tokenizer=policy.tokenizer)
    ours = PolicyLM(policy)
    assert ours.tok_encode(text) == reference.tok_encode(text)
    assert ours.tok_encode(text, add_special_tokens=False) == reference.tok_encode(text, add_special_tokens=False)
    assert ours._encode_pair(text, " answer") == reference._encode_pair(text, " answer")
    assert ours.prefix_token_id == reference.prefix_token_id


def test_a_training_prompt_begins_as_an_evaluated_one_and_gold_text_goes_on(toy_policy):
    policy = begin_policy(toy_policy)
    encoded = encode_examples(policy, [Example(0, "ab", " c")])[0]
    assert encoded.prompt_ids == tuple(PolicyLM(policy).tok_encode("ab")) == (257, *encode(policy, "ab"))
    assert encoded.gold_ids == (*encode(policy, " c"), 256)


def test_no_begin_of_text_is_added_where_the_tokenizer_adds_none(toy_policy):
    assert toy_policy.begin_token_ids == ()
    assert encode_prompt(toy_policy, "ab") == encode(toy_policy, "ab")
    assert encode_prompt(begin_policy(toy_policy), "") == (257,)


def padded_policy(toy_policy, num_logits, name="padded"):
    """The toy policy with another padding of its 257 tokens; the padding's logits are the largest of all."""
    config = Qwen3Config.from_dict({**toy_policy.model.config.to_dict(), "vocab_size": num_logits})
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name_, parameter in model.named_parameters():
            source = toy_policy.model.get_parameter(name_)
            parameter[: min(257, len(source))] = source[: min(257, len(source))]
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(num_logits))
        model.lm_head.bias[257:] = 50.0
    return replace(toy_policy, model=model.requires_grad_(False).eval(), name=name)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.9)])
def test_a_padded_id_is_never_drawn(toy_policy, sampling):
    rollouts = sample(padded_policy(toy_policy, 384), [(1, 2, 3)] * 20, list(range(20)), sampling)
    assert max(max(rollout.token_ids) for rollout in rollouts) <= 256


def one_row(length=12):
    return collate([Trajectory(tuple(range(1, length + 1)), 3, 0, "rollout", "toy", (-1.0,) * (length - 3))])


def test_probabilities_sum_to_one_over_the_tokenizers_ids_alone(toy_policy):
    policy, states = padded_policy(toy_policy, 384), one_row()
    with torch.no_grad():
        hidden = state_hidden(policy, states)[:1].expand(257, -1)
        logprobs = action_logprobs(policy, hidden, torch.arange(257), 1.0)
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("signal", ["forward_kl", "reverse_kl", "jsd"])
def test_a_teacher_of_the_same_weights_and_another_padding_has_no_divergence(toy_policy, signal):
    recipe = Recipe(make_source(), weighted(SIGNALS[signal]()), Full(), UpdateSection(num_updates=1, lr=1e-3), 0)
    student, teacher = padded_policy(toy_policy, 264, "learner"), padded_policy(toy_policy, 384, "teacher")
    setup = build(recipe, student, {"teacher": teacher}, Material(ToyTask()))
    # The hidden sizes agree, the numbers of logits do not; KL(p || p) = 0.
    assert losses_of(setup, one_row()).abs().max().item() < 1e-5
