"""Which documents, pairs and prompts an arm is trained on, and what becomes of those that do not fit the model."""

from __future__ import annotations

import json

import pytest
from toy_arm import ToyTask

from statewise.config.refusals import read_kind
from statewise.errors import UsageError
from statewise.locality import LOCALITIES
from statewise.loop.documents import encode_examples, read_documents, remembered_prompts, rule_of, told
from statewise.states import SOURCES, Source
from statewise.types import Example

# The toy's context is 128 tokens, one a byte. 100 + 28 + end of text = 129; a prompt of 128 leaves no room for a token.
LONG_GOLD, LONG_PROMPT, FITS = ("x" * 100, "y" * 28), ("x" * 128, ""), ("x" * 100, "y" * 27)
SHORT = ("Q: 1+1", " 2")


def source_of(**table):
    return read_kind(Source, table, "test")


SFT, RL = source_of(kind="dataset"), source_of(kind="rollout")


def read(policy, documents, *sources, too_long="refuse"):
    return read_documents(policy, ToyTask(documents), sources, rule_of(sources, too_long))


def test_a_document_is_encoded_with_its_end_of_text(toy_policy):
    encoded = encode_examples(toy_policy, [Example(3, "ab", " c")])[0]
    assert (encoded.index, len(encoded.prompt_ids), len(encoded.gold_ids)) == (3, 2, 3)
    assert encoded.gold_ids[-1] == toy_policy.end_token_id


def test_a_document_without_gold_text_has_no_gold_tokens(toy_policy):
    assert encode_examples(toy_policy, [Example(0, "ab", "")])[0].gold_ids == ()


def test_all_documents_that_exceed_the_context_are_named(toy_policy):
    documents = (LONG_GOLD, SHORT, LONG_GOLD, LONG_GOLD, FITS)
    with pytest.raises(UsageError, match=r"3 training documents \(0, 2–3\) exceeding the context of 128 tokens"):
        read(toy_policy, documents, SFT)
    with pytest.raises(UsageError, match=r"the longest, 0, with 100 tokens of prompt and 29 of gold text; .*too_long"):
        read(toy_policy, documents, SFT)


def test_a_document_that_just_fits_is_taken(toy_policy):
    assert len(read(toy_policy, (FITS, ("x" * 127, "y")), RL).examples) == 2
    assert len(read(toy_policy, (FITS,), SFT).examples) == 1


def test_rollouts_need_no_gold_text_to_fit(toy_policy):
    assert len(read(toy_policy, (LONG_GOLD, SHORT), RL).examples) == 2
    with pytest.raises(UsageError, match=r"1 training document \(1\) exceeding .* 128 tokens of prompt; shorten"):
        read(toy_policy, (SHORT, LONG_PROMPT), RL)


def test_documents_are_left_out_of_every_arm_alike_and_said(toy_policy):
    documents = (LONG_GOLD, SHORT, LONG_PROMPT, FITS)
    both = rule_of([SFT, RL], "skip")
    for source in (SFT, RL):
        kept = read_documents(toy_policy, ToyTask(documents), [source], both)
        assert [example.index for example in kept.examples] == [1, 3]
        assert kept.notes == (
            "2 of 4 training documents of toy exceed the context of 128 tokens and are left out of every arm (0, 2)",
        )
    alone = read(toy_policy, documents, RL, too_long="skip")
    assert [example.index for example in alone.examples] == [0, 1, 3]


def test_where_none_fits_nothing_is_left_to_train_on(toy_policy):
    with pytest.raises(UsageError, match="no training document that fits 128 tokens"):
        read(toy_policy, (LONG_PROMPT,), RL, too_long="skip")


def test_only_documents_that_are_used_are_refused(toy_policy):
    documents = (SHORT, FITS, LONG_GOLD)
    first_two = source_of(kind="dataset", num_examples=2)
    assert read(toy_policy, documents, first_two).notes == ()
    with pytest.raises(UsageError, match=r"\(2\) exceeding"):
        read(toy_policy, documents, first_two, SFT)


def test_documents_without_gold_text_are_named_before_training(toy_policy):
    with pytest.raises(UsageError, match=r"2 training documents without gold text \(1–2\)"):
        read(toy_policy, (SHORT, ("Q", ""), ("R", "")), SFT)
    assert len(read(toy_policy, (SHORT, ("Q", "")), RL).examples) == 2


MIXED = [{"kind": "rollout", "weight": 0.5, "num_examples": 3}, {"kind": "dataset", "weight": 0.5, "num_examples": 5}]


@pytest.mark.parametrize(
    ("table", "needs_gold", "num_examples"),
    [
        ({"kind": "dataset"}, True, None),
        ({"kind": "dataset", "num_examples": 9}, True, 9),
        ({"kind": "dataset", "pairs": "p.jsonl"}, False, None),
        ({"kind": "rollout", "num_examples": 7}, False, 7),
        ({"kind": "prefix"}, True, None),
        ({"kind": "prefix", "of": "teacher"}, False, None),
        ({"kind": "log", "arm": "rl"}, False, 0),
        ({"kind": "mixture", "parts": MIXED}, True, None),
    ],
)
def test_a_source_says_what_it_draws_from(table, needs_gold, num_examples):
    source = source_of(**table)
    assert (source.needs_gold, source.pool) == (needs_gold, num_examples)
    assert set(SOURCES) == {"dataset", "rollout", "prefix", "log", "mixture"}  # a new one is a row above


def write_pairs(path, *texts):
    rows = [{"index": 0, "chosen": text, "rejected": " no"} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source_of(kind="dataset", pairs=str(path))


def test_pairs_that_do_not_fit_are_named_by_line_or_left_out(toy_policy, tmp_path):
    source = write_pairs(tmp_path / "p.jsonl", " yes", "y" * 125, "z" * 200)
    with pytest.raises(UsageError, match=r"p.jsonl: 2 pairs \(lines 2–3\) exceeding the context of 128 tokens"):
        read(toy_policy, (SHORT,), source)
    kept = read(toy_policy, (SHORT,), source, too_long="skip")
    assert [len(pair.gold_ids) for pair in kept.pairs[str(tmp_path / "p.jsonl")]] == [5]
    assert kept.notes[0].endswith("p.jsonl: 2 pairs left out (lines 2–3)")


@pytest.mark.parametrize("kind", [name for name, one in LOCALITIES.items() if one().memory])
def test_prompts_to_remember_that_do_not_fit_are_refused_or_left_out(toy_policy, kind):
    task, memory = ToyTask((SHORT, LONG_PROMPT, FITS), name="facts"), LOCALITIES[kind]().memory
    with pytest.raises(UsageError, match=rf"task 'facts', whose prompts {kind} remembers: 1 prompt \(1\) exceeding"):
        remembered_prompts(toy_policy, task, kind, memory, rule_of([RL]))
    assert len(remembered_prompts(toy_policy, task, kind, memory, rule_of([RL], "skip"))) == 2


def test_whole_numbers_are_told_as_runs():
    assert told([7, 0, 1, 2, 45, 44]) == "0–2, 7, 44–45"
