"""A prompt and the text after it are encoded as one: over several kinds of tokenizer, with lm-eval as the oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from toy_arm import ToyTask, make_setup, make_source
from transformers import PreTrainedTokenizerFast

from statewise.errors import UsageError
from statewise.evals.policy_lm import PolicyLM
from statewise.loop.documents import encode_examples
from statewise.policy.find import POCKET_MODEL
from statewise.policy.load import Policy
from statewise.policy.texts import encode, encode_prompt, encode_starts, tokens_after
from statewise.signals import SIGNALS
from statewise.tasks.load import load_task
from statewise.types import Example

TURN = "<turn>"
SPECIAL = ["<unk>", "<s>", "</s>", TURN]
CORPUS = ["Question: Ida has 48 pens. She sells half. How many are left?\nAnswer: She has 24 pens. #### 24"] * 3
KINDS = ("bytes", "bytes with a space before", "metaspace", "metaspace first", "prepend", "words", "pieces", "unigram")


def encode_after(policy, prompt, text):
    return tokens_after(policy, *encode_starts(policy, [prompt, prompt + text]))


def _raw(kind: str) -> Tokenizer:
    """An untrained tokenizer of a family: GPT-2, Llama 1 and 2 (three ways), words, BERT, T5."""
    space = pre_tokenizers.Metaspace
    if kind.startswith("bytes"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="space" in kind)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind.startswith("metaspace") or kind == "prepend":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = space(prepend_scheme="first" if "first" in kind else "always")
    elif kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "pieces":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = space()
    return tokenizer


def _trainer(kind: str) -> trainers.Trainer:
    settings_ = {"special_tokens": SPECIAL, "show_progress": False, "vocab_size": 250}
    if kind == "words":
        return trainers.WordLevelTrainer(**settings_)
    if kind == "pieces":
        return trainers.WordPieceTrainer(**settings_)
    if kind == "unigram":
        return trainers.UnigramTrainer(unk_token="<unk>", **settings_)
    return trainers.BpeTrainer(**settings_)


@cache
def tokenizer_of(kind: str, has_begin: bool) -> PreTrainedTokenizerFast:
    raw = _raw(kind)
    raw.train_from_iterator(CORPUS, _trainer(kind))
    if kind == "prepend":  # as Llama's own file has it: nothing splits a text, and a normalizer puts the space
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        raw.pre_tokenizer = None
    if has_begin:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    begin = {"bos_token": "<s>"} if has_begin else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", pad_token="</s>", unk_token="<unk>",
        additional_special_tokens=[TURN], **begin,
    )  # fmt: skip


@pytest.fixture(params=[(kind, has_begin) for kind in KINDS for has_begin in (True, False)], ids=str)
def policy(request, toy_policy) -> Policy:
    tokenizer = tokenizer_of(*request.param)
    return replace(toy_policy, tokenizer=tokenizer, end_token_id=tokenizer.eos_token_id)


def oracle(policy: Policy) -> HFLM:
    return HFLM(pretrained=policy.model, tokenizer=policy.tokenizer)


LETTERS = "She has4: \n.\u00e9"
PLAIN, CHAT = "Question: Ida has 48 pens. How many?\nAnswer:", f"{TURN}user\nHow many?{TURN}"


def test_gold_tokens_are_lm_evals_continuation_and_end_of_text(policy):
    reference = oracle(policy)
    golds = " She has 24 pens. #### 24", "\n24", " \u00e9\u6c49 2"
    for prompt, gold in product((PLAIN, CHAT, f"<s>{CHAT}", "?"), golds):
        context, continuation = reference._encode_pair(prompt, gold)
        encoded = encode_examples(policy, [Example(0, prompt, gold)])[0]
        assert list(encoded.prompt_ids) == context
        assert list(encoded.gold_ids) == [*continuation, policy.end_token_id]


def test_in_a_chat_the_tokens_are_lm_evals_and_the_border_is_where_sampling_starts(policy):
    # lm-eval counts the template's last line break to the continuation; a policy never writes it.
    reference = oracle(policy)
    for prompt in (f"{CHAT}assistant\n", f"{CHAT}\n\n"):
        context, continuation = reference._encode_pair(prompt, "She has 24")
        encoded = encode_examples(policy, [Example(0, prompt, "She has 24")])[0]
        assert [*encoded.prompt_ids, *encoded.gold_ids] == [*context, *continuation, policy.end_token_id]
        assert list(encoded.prompt_ids) == reference.tok_encode(prompt)


@settings(max_examples=40, deadline=None)
@given(prompt=st.text(LETTERS, min_size=1, max_size=12), gold=st.text(LETTERS, min_size=1, max_size=8))
def test_tokens_are_those_of_the_joined_text_or_the_document_is_refused(toy_policy, prompt, gold):
    for kind in KINDS:
        tokenizer = tokenizer_of(kind, True)
        policy = replace(toy_policy, tokenizer=tokenizer, end_token_id=tokenizer.eos_token_id)
        start, whole = encode_prompt(policy, prompt), tuple(tokenizer.encode(prompt + gold))
        if whole[: len(start)] == start:
            assert start + encode_after(policy, prompt, gold) == whole
        else:
            with pytest.raises(UsageError, match="is one token with"):
                encode_after(policy, prompt, gold)


def test_a_token_across_the_border_is_refused_with_what_to_do(toy_policy):
    tokenizer = tokenizer_of("bytes", False)
    policy = replace(toy_policy, tokenizer=tokenizer, end_token_id=tokenizer.eos_token_id)
    with pytest.raises(UsageError, match=r"document 3: ' ' .* one token with .*' She'.*target_delimiter"):
        encode_examples(policy, [Example(3, "Answer: ", "She has 24")])[0]


def test_an_arm_that_needs_no_gold_text_is_not_refused_for_it(toy_policy):
    tokenizer = tokenizer_of("bytes", False)
    policy = replace(toy_policy, tokenizer=tokenizer, end_token_id=tokenizer.eos_token_id)
    task = ToyTask(documents=(("Answer: ", "She has"), ("Answer:", " 24")))
    assert len(make_setup(policy, make_source("rollout"), SIGNALS["reward"](), task=task).context.examples) == 2
    with pytest.raises(UsageError, match=r"document 0: .* is one token with"):
        make_setup(policy, make_source("dataset"), SIGNALS["imitate"](), task=task)


def test_the_texts_of_a_given_pair_are_encoded_after_their_prompt(policy, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"index": 0, "chosen": " She has 24", "rejected": " 48"}))
    task = ToyTask(documents=((PLAIN, " 24"),))
    setup = make_setup(policy, make_source("dataset", pairs=str(path)), SIGNALS["preference"](), task=task)
    (pair,) = setup.context.pairs[str(path)]
    for text, ids in ((" She has 24", pair.gold_ids), (" 48", pair.rejected_ids)):
        assert list(ids) == [*oracle(policy)._encode_pair(PLAIN, text)[1], policy.end_token_id]


def test_a_text_without_a_prompt_follows_the_token_that_lm_eval_puts_there(policy):
    encoded = encode_examples(policy, [Example(0, "", "She has 24")])[0]
    assert encoded.prompt_ids == (oracle(policy).prefix_token_id,)
    assert encoded.gold_ids == (*encode(policy, "She has 24"), policy.end_token_id)


def test_a_choice_after_nothing_but_spaces_is_refused(toy_policy):
    request = Instance("loglikelihood", {}, ("\n", "a"), 0, ("toy", 0, 1))
    with pytest.raises(UsageError, match="no token stands before"):
        PolicyLM(toy_policy).loglikelihood([request])


def test_the_pocket_models_gold_tokens_are_those_of_the_gold_text_alone(toy_policy):
    # What every recorded result of the pocket model was trained on.
    raw = PreTrainedTokenizerFast.from_pretrained(POCKET_MODEL)
    policy = replace(toy_policy, tokenizer=raw, end_token_id=raw.eos_token_id)
    examples = load_task("pocket_math", task_folder=POCKET_MODEL / "tasks").examples("train")
    for example in examples[::20]:
        assert encode_after(policy, example.prompt, example.gold) == tuple(raw.encode(example.gold))
