"""The plan: order, needs, what is refused, and when a fingerprint changes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from study_fixture import STUDY, fake_model, job_named, small_plan, write_study

from statewise.config.read import read_study
from statewise.errors import UsageError
from statewise.plan.dag import make_plan
from statewise.plan.request import StudyRequest, plan_study


def fingerprints(plan):
    return {job.id: job.fingerprint for job in plan.jobs}


def changed(before, after):
    """Arms and actions of the jobs whose fingerprints differ, without the seed."""
    old, new = fingerprints(before), fingerprints(after)
    assert old.keys() == new.keys()
    return {id_.rpartition(":")[0] for id_ in old if old[id_] != new[id_]}


TRAINED = {"train:sft", "train:opd", "train:rl"}
EVALUATED = {"evaluate:base", "evaluate:sft", "evaluate:opd", "evaluate:rl"}


def test_every_arm_and_seed_has_its_jobs_and_needs(tmp_path):
    plan = small_plan(tmp_path)
    assert {job.id: job.needs for job in plan.jobs if job.seed == 1} == {
        "evaluate:base:1": (),
        "train:sft:1": (),
        "evaluate:sft:1": ("train:sft:1", "evaluate:base:1"),
        "train:opd:1": ("train:sft:1",),
        "evaluate:opd:1": ("train:opd:1", "evaluate:base:1"),
        "train:rl:1": (),
        "evaluate:rl:1": ("train:rl:1", "evaluate:base:1"),
    }
    assert len(plan.jobs) == 14


def test_a_job_comes_after_what_it_needs_even_if_the_file_says_otherwise(tmp_path):
    arms = STUDY.split("[arms.")
    turned = "[arms.".join([arms[0], *(part.rstrip() + "\n\n" for part in reversed(arms[1:]))])
    plan = small_plan(tmp_path, text=turned)
    seen = set()
    for job in plan.jobs:
        assert set(job.needs) <= seen
        seen.add(job.id)
    assert turned.index("arms.opd") < turned.index("arms.sft")


def test_a_student_of_the_base_model_waits_for_nobody(tmp_path):
    plan = small_plan(tmp_path, "opd.teacher=base")
    assert job_named(plan, "train:opd:0").needs == ()


def test_fingerprints_are_the_same_for_the_same_study(tmp_path):
    assert fingerprints(small_plan(tmp_path)) == fingerprints(small_plan(tmp_path))
    all_of_them = list(fingerprints(small_plan(tmp_path)).values())
    assert len(set(all_of_them)) == len(all_of_them)


def test_the_learning_rate_changes_its_arm_and_the_arms_it_teaches(tmp_path):
    before = small_plan(tmp_path)
    assert changed(before, small_plan(tmp_path, "sft.update.lr=1e-3")) == {
        "train:sft", "evaluate:sft", "train:opd", "evaluate:opd",
    }  # fmt: skip
    assert changed(before, small_plan(tmp_path, "rl.update.lr=1e-3")) == {"train:rl", "evaluate:rl"}


def test_source_signal_and_adapter_fields_change_their_arm(tmp_path):
    before = small_plan(tmp_path)
    for override in ("opd.source.num_prompts=7", "opd.signal.num_tokens=7", "opd.update.clip_norm=2.0"):
        assert changed(before, small_plan(tmp_path, override)) == {"train:opd", "evaluate:opd"}
    with_adapter = small_plan(tmp_path, "shared.adapter.kind=lora")
    assert changed(before, with_adapter) == (TRAINED | EVALUATED) - {"evaluate:base"}


def test_a_default_that_is_written_out_changes_nothing(tmp_path):
    before = small_plan(tmp_path)
    for override in ("opd.source.temperature=1", "opd.signal.cut=uniform", "sft.update.warmup_updates=0"):
        assert changed(before, small_plan(tmp_path, override)) == set()


def test_a_label_and_the_words_about_a_study_change_nothing(tmp_path):
    before = small_plan(tmp_path)
    for override in ("sft.label=mild SFT", "study.description=other", "study.name=other"):
        after = small_plan(tmp_path, override)
        assert changed(before, after) == set()
        assert before.fingerprint == after.fingerprint


def test_how_it_is_evaluated_changes_evaluations_only(tmp_path):
    before = small_plan(tmp_path)
    for override in ("shared.evaluation.limit=13", "shared.drift.num_prompts=9", "shared.retention=['pocket_myths']"):
        after = small_plan(tmp_path, override)
        assert changed(before, after) == EVALUATED
        assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("override", ["shared.target=pocket_facts", "shared.reward_metric=other"])
def test_the_target_changes_everything(tmp_path, override):
    assert changed(small_plan(tmp_path), small_plan(tmp_path, override)) == TRAINED | EVALUATED


def test_seeds_have_fingerprints_of_their_own_and_do_not_touch_others(tmp_path):
    two, three = fingerprints(small_plan(tmp_path)), fingerprints(small_plan(tmp_path, "study.seeds=[0, 1, 2]"))
    assert {id_: three[id_] for id_ in two} == two
    assert two["train:sft:0"] != two["train:sft:1"]
    assert small_plan(tmp_path).fingerprint == small_plan(tmp_path, "study.seeds=[5]").fingerprint


def test_one_byte_of_the_model_changes_everything(tmp_path):
    before = small_plan(tmp_path)
    weights = tmp_path / "fake-model" / "model.safetensors"
    weights.write_bytes(bytes(15) + b"\x01")
    after = small_plan(tmp_path)
    assert changed(before, after) == TRAINED | EVALUATED
    assert before.fingerprint != after.fingerprint


def test_one_byte_of_a_benchmark_changes_everything(tmp_path):
    before = small_plan(tmp_path)
    (tmp_path / "fake-model" / "tasks" / "pocket_math.yaml").write_text("task: other\n")
    assert changed(before, small_plan(tmp_path)) == TRAINED | EVALUATED


def test_where_the_model_lies_and_its_card_change_nothing(tmp_path):
    before = small_plan(tmp_path)
    (tmp_path / "fake-model" / "README.md").write_text("words")
    (tmp_path / "fake-model" / "pretrain_log.jsonl").write_text("{}")
    (tmp_path / "other").mkdir()
    moved = fake_model(tmp_path / "other")
    after = make_plan(read_study(write_study(tmp_path)), moved, "small.toml")
    assert changed(before, small_plan(tmp_path)) == set()
    assert changed(before, after) == set()
    assert before.fingerprint == after.fingerprint


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["sft.source.kind=datset"],
            r"--set sft\.source\.kind: arms\.sft\.source: unknown source 'datset'\. Did you mean 'dataset'\?",
        ),
        (["sft.signal.kind=imitat"], r"arms\.sft\.signal: unknown signal 'imitat'\. Did you mean 'imitate'\?"),
        (
            ["opd.source.num_promts=3"],
            r"unknown key in \[arms\.opd\.source\]: 'num_promts'. Did you mean 'num_prompts'",
        ),
        (["opd.source.by=student"], "source.by: Input should be 'learner', 'teacher' or 'base'"),
        (["opd.source.temperature=0"], "source.temperature: Input should be greater than 0"),
        (
            ["sft.signal.kind=reverse_kl"],
            r"'dataset' with signal 'reverse_kl' needs a teacher; add teacher = \"<arm>\"",
        ),
        (["rl.source.by=teacher"], "source 'rollout' with signal 'reward' needs a teacher"),
        (["rl.teacher=sft"], r"\[arms\.rl\]: teacher 'sft' is never asked by source 'rollout' with signal 'reward'"),
        (["rl.source.samples_per_prompt=1"], "nearest that works: signal.advantage = 'reinforce'"),
        (["sft.signal.kind=reward"], "nearest that works: signal.advantage = 'reinforce'"),
        (
            ["sft.signal.kind=jsd", "sft.teacher=opd"],
            "arms sft, opd wait for each other",
        ),
    ],
)
def test_an_arm_that_cannot_run_is_refused_with_its_reason(tmp_path, overrides, words):
    with pytest.raises(UsageError, match=words):
        small_plan(tmp_path, *overrides)


def test_a_plan_can_be_handed_to_a_worker(tmp_path):
    plan = small_plan(tmp_path)
    assert pickle.loads(pickle.dumps(plan)) == plan


def request(tmp_path, **changes):
    model = tmp_path / "fake-model"
    if not model.exists():
        fake_model(tmp_path)
    return StudyRequest(str(write_study(tmp_path)), model=str(model), **changes)


def test_a_request_plans_a_file_on_another_model(tmp_path):
    plan = plan_study(request(tmp_path))
    assert plan.model == Path(tmp_path / "fake-model")
    assert plan.config.study.name == "small"


@pytest.mark.parametrize(("count", "seeds"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3])])
def test_a_request_takes_the_first_seeds_and_counts_on(tmp_path, count, seeds):
    assert plan_study(request(tmp_path, num_seeds=count)).config.study.seeds == seeds


def test_further_seeds_never_repeat_one(tmp_path):
    seeds = plan_study(request(tmp_path, num_seeds=4, overrides=("study.seeds=[5, 2]",))).config.study.seeds
    assert seeds == [5, 2, 6, 7]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_seeds": 0}, r"--seeds 0: expected a number >= 1"),
        ({"overrides": ("shared.target=pocket_mth",)}, "unknown task 'pocket_mth'. Did you mean 'pocket_math'"),
        (
            {"overrides": ("shared.retention=['pocket_fact']",)},
            "unknown task 'pocket_fact'. Did you mean 'pocket_facts'",
        ),
    ],
)
def test_a_request_that_names_what_is_not_there_is_refused(tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        plan_study(request(tmp_path, **changes))


def test_unknown_studies_and_models_are_refused():
    with pytest.raises(UsageError, match=r"unknown study 'poket'\. Did you mean 'pocket'\?"):
        plan_study(StudyRequest("poket"))
    with pytest.raises(UsageError, match=r"none\.toml: no such study file; give a path to a \.toml file or one of"):
        plan_study(StudyRequest("none.toml"))
    with pytest.raises(UsageError, match="model '/nowhere': no such folder"):
        plan_study(StudyRequest("pocket", model="/nowhere"))
