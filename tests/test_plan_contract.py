"""Arms differ in declared factors only; hypotheses are about what is measured."""

from __future__ import annotations

import pytest
from study_fixture import HYPOTHESIS, STUDY, small_plan

from statewise.errors import UsageError
from statewise.plan.contract import check_factors


def replaced(old, new):
    assert old in STUDY
    return STUDY.replace(old, new)


def refusal(tmp_path, text, *overrides):
    with pytest.raises(UsageError) as caught:
        small_plan(tmp_path, *overrides, text=text)
    return str(caught.value)


FACTORS = next(line for line in STUDY.splitlines() if line.startswith("factors"))


def test_a_difference_that_is_not_declared_is_refused_by_name(tmp_path):
    message = refusal(tmp_path, replaced('"teacher", "update"]', '"teacher"]'))
    assert "arms differ in update.lr, which study.factors does not declare" in message
    message = refusal(tmp_path, replaced('"source", "signal", ', ""))
    for key in ("signal.kind", "signal.num_tokens", "source.kind", "source.num_prompts"):
        assert key in message


def test_a_factor_may_be_a_single_key(tmp_path):
    text = replaced('"update"]', '"update.lr"]')
    assert small_plan(tmp_path, text=text).config.study.factors[-1] == "update.lr"
    assert "update.clip_norm" in refusal(tmp_path, text, "sft.update.clip_norm=2.0")


def test_a_factor_is_not_a_prefix_of_another_word(tmp_path):
    # "update.warmup" must not cover "update.warmup_updates".
    arms = {"one": {"update": {"warmup_updates": 1}}, "two": {"update": {"warmup_updates": 2, "warmup": 0}}}
    with pytest.raises(UsageError, match=r"arms differ in update\.warmup_updates, which"):
        check_factors(arms, ["update.warmup"], "here")


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ("sorce", "unknown factor 'sorce'. Did you mean 'source'? Known: adapter, locality, signal, source, teacher,"),
        ("updte.lr", "unknown factor 'updte.lr'. Did you mean 'update.lr'?"),
        ("update.lrr", "unknown factor 'update.lrr'. Did you mean 'update.lr'? Known: update.activation_checkpointing"),
        ("arms.sft", "unknown factor 'arms.sft'."),
        ("label", "unknown factor 'label'."),
    ],
)
def test_a_factor_that_no_arm_could_differ_in_is_refused_with_its_line(tmp_path, factor, words):
    message = refusal(tmp_path, replaced('"update"]', f'"update", "{factor}"]'))
    assert "small.toml:4: " + words in message


@pytest.mark.parametrize(
    "factor",
    [
        "adapter.rank", "locality.ewc", "locality.kl_to_base.target", "source.share.start", "signal.sum", "signal.kind",
        "update.budget.unit", "update.budget", "source.parts", "locality",
    ],
)  # fmt: skip
def test_a_factor_may_be_a_key_that_no_arm_of_the_study_has(tmp_path, factor):
    assert factor in small_plan(tmp_path, text=replaced('"update"]', f'"update", "{factor}"]')).config.study.factors


TWINS = """
[study]
name = "twins"

[shared]
source = { kind = "dataset", num_trajectories = 8 }
update = { num_updates = 1, lr = 1e-3 }

[arms.one]
teacher = "base"
signal = { kind = "jsd" }

[arms.two]
teacher = "base"
signal = { kind = "jsd", beta = 0.5 }
"""


def test_a_default_that_only_one_arm_writes_out_is_no_difference(tmp_path):
    assert len(small_plan(tmp_path, text=TWINS).config.arms) == 2
    assert "arms differ in signal.beta" in refusal(tmp_path, TWINS, "two.signal.beta=0.4")


def test_labels_may_differ_undeclared(tmp_path):
    assert small_plan(tmp_path, "two.label=other", text=TWINS).config.arms["two"].label == "other"


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("forgeting", "[[hypotheses]] 'p': unknown measure 'forgeting'. Did you mean 'forgetting'?"),
        ("pocket_math:sampeld", "'pocket_math:sampeld'. Did you mean 'pocket_math:sampled'?"),
        ("pocket_facts:sampled", "unknown measure 'pocket_facts:sampled'"),
    ],
)
def test_a_hypothesis_measures_only_what_is_measured(tmp_path, measure, words):
    assert words in refusal(tmp_path, STUDY + HYPOTHESIS.replace("forgetting", measure))


def test_forgetting_is_no_measure_without_retention_tasks(tmp_path):
    assert "unknown measure 'forgetting'" in refusal(tmp_path, STUDY + HYPOTHESIS, "shared.retention=[]")
