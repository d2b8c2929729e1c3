"""What the options of a run stand for, how many workers it gets, and what a machine must have."""

from __future__ import annotations

import os

import pytest
from study_fixture import STUDY, fake_model, write_study

from statewise.errors import UsageError
from statewise.plan import dag as plan_module
from statewise.plan import request as request_module
from statewise.plan.catalog import built_in_studies
from statewise.plan.request import StudyRequest, Workers, choose_workers, plan_study

QUICK = STUDY.replace("[study]\n", '[study]\nquick = ["study.seeds=[7]", "sft.update.num_updates=2"]\n')


@pytest.fixture
def plan_of(tmp_path):
    model = fake_model(tmp_path)

    def plan(text=STUDY, **options):
        return plan_study(StudyRequest(str(write_study(tmp_path, text)), model=str(model), is_dry=True, **options))

    return plan


def test_limit_bounds_items_and_drift_prompts(plan_of):
    shared = plan_of(limit=5).config.shared
    assert (shared.evaluation.limit, shared.drift.num_prompts) == (5, 5)
    with pytest.raises(UsageError, match="--limit 1: expected a number >= 2"):
        plan_of(limit=1)


def test_chat_and_data_are_settings_of_the_study(plan_of, tmp_path):
    (tmp_path / "data").mkdir()
    shared = plan_of(is_chat=True, data=str(tmp_path / "data")).config.shared
    assert (shared.chat, shared.data) == (True, str(tmp_path / "data"))
    assert plan_of().config.shared.chat is False
    with pytest.raises(UsageError, match=r"--data .*nowhere: no such folder"):
        plan_of(data=str(tmp_path / "nowhere"))


def test_a_changed_data_file_changes_the_fingerprint(plan_of, tmp_path):
    path = tmp_path / "data" / "gsm8k" / "test.jsonl"
    path.parent.mkdir(parents=True)
    prints = []
    for text in ("{}", "{ }"):
        path.write_text(text)
        prints.append(plan_of(data=str(tmp_path / "data")).fingerprint)
    assert prints[0] != prints[1] != plan_of().fingerprint


def test_the_quick_size_is_the_study_s_own_and_overrides_still_win(plan_of):
    plan = plan_of(QUICK, is_quick=True)
    assert plan.config.study.seeds == [7]
    assert plan.config.arms["sft"].update.num_updates == 2
    assert plan.config.arms["rl"].update.num_updates == 4
    again = plan_of(QUICK, is_quick=True, overrides=("sft.update.num_updates=3",))
    assert again.config.arms["sft"].update.num_updates == 3
    with pytest.raises(UsageError, match=r"has no quick size; give study\.quick"):
        plan_of(is_quick=True)


def test_every_built_in_study_of_a_large_model_has_a_quick_size():
    for name in set(built_in_studies()) - {"pocket"}:
        full = plan_study(StudyRequest(name, is_dry=True))
        quick = plan_study(StudyRequest(name, is_quick=True, is_dry=True))
        assert len(quick.jobs) < len(full.jobs)
        assert quick.config.study.requires == []
        for arm in quick.config.arms.values():
            assert arm.update.num_updates <= 4


def test_a_protocol_of_a_task_that_is_not_in_the_study_is_refused(plan_of):
    assert plan_of(overrides=("shared.protocol.pocket_math.num_fewshot=2",)).config.shared.protocol
    with pytest.raises(UsageError, match=r"unknown task 'pocket_mat'\. Did you mean 'pocket_math'"):
        plan_of(overrides=("shared.protocol.pocket_mat.num_fewshot=2",))


def test_a_task_is_named_with_the_place_where_it_was_set(plan_of):
    text = STUDY.replace("[shared.evaluation]", "[shared]\ntarget = 'pocket_mth'\n[shared.evaluation]")
    with pytest.raises(UsageError, match=r"small\.toml:7: .*unknown task 'pocket_mth'\. Did you mean 'pocket_math'"):
        plan_of(text)
    with pytest.raises(UsageError, match=r"^--set shared\.retention: .*unknown task 'pocket_fact'\."):
        plan_of(overrides=("shared.retention=['pocket_fact']",))


def test_shots_of_the_target_change_training_those_of_a_retention_task_do_not(plan_of):
    def trained(*overrides):
        return {n.id: n.fingerprint for n in plan_of(overrides=overrides).jobs if n.action == "train"}

    assert trained("shared.protocol.pocket_math.num_fewshot=2") != trained()
    assert trained("shared.protocol.pocket_facts.num_fewshot=2") == trained()


def test_all_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(request_module, "_has_gpu", lambda: False)
    text = STUDY.replace("[study]\n", '[study]\nrequires = ["gpu"]\n')
    request = StudyRequest(str(write_study(tmp_path, text)), model=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"study 'small' cannot run here: it needs a GPU.*; model .*nowhere"):
        plan_study(request)
    monkeypatch.setattr(request_module, "_has_gpu", lambda: True)
    with pytest.raises(UsageError, match=r"cannot run here: model"):
        plan_study(request)


def test_a_small_model_gets_a_process_a_core_and_a_large_one_all_cores(plan_of, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    plan = plan_of()
    assert choose_workers(plan) == Workers(4, 1)
    assert choose_workers(plan, 2) == Workers(2, 1)
    monkeypatch.setattr(plan_module, "count_parameters", lambda folder: {"F32": int(6e8)})
    assert choose_workers(plan) == Workers(1, 4)
    assert choose_workers(plan, 2) == Workers(2, 2)


def test_a_limit_never_adds_drift_prompts(plan_of):
    assert plan_of(limit=500).config.shared.drift.num_prompts == 200


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("/nowhere/my.yaml", r"there is no task file /nowhere/my\.yaml"),
        ("my.yaml", r"there is no task file .*my\.yaml"),
        ("a/b", r"a/b: expected a path that ends in \.yaml, or a task's name"),
    ],
)
def test_a_task_by_path_is_a_file(plan_of, task, told):
    with pytest.raises(UsageError, match=told):
        plan_of(overrides=(f"shared.retention=['{task}']",))


def test_a_model_still_to_be_downloaded_is_known_to_be_large():
    plan = plan_study(StudyRequest("smollm2", is_quick=True, is_dry=True))
    assert choose_workers(plan).count == 1


def test_one_process_where_a_gpu_is_taken(plan_of, monkeypatch, tmp_path):
    monkeypatch.setattr(request_module, "GPU_FILE", tmp_path)
    assert choose_workers(plan_of()).count == 1
    assert choose_workers(plan_of(overrides=("shared.device=cpu",))).count == len(os.sched_getaffinity(0))
