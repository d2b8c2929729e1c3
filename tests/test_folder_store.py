"""The run folder: what counts as done, which folders are refused, and that one process holds it."""

from __future__ import annotations

import json
import os

import pytest
from forked import CONTEXT, start_server
from study_fixture import job_named, small_plan

from statewise.config.read import read_study
from statewise.errors import UsageError
from statewise.folder.store import Store
from statewise.storage import records


@pytest.fixture
def plan(tmp_path):
    return small_plan(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run")


def test_a_job_is_done_when_its_record_is_there(plan, store):
    job = job_named(plan, "train:sft:0")
    assert store.result(job) is None
    store.finish(job, {"status": "trained"})
    done = {"fingerprint": job.fingerprint, "status": "trained", "inputs": {}, "files": {}}
    assert store.result(job) == done
    assert store.result(job_named(plan, "evaluate:sft:0")) is None
    assert store.result(job_named(plan, "train:sft:1")) is None


def test_a_record_of_another_configuration_does_not_count(tmp_path, plan, store):
    other = small_plan(tmp_path, "sft.update.lr=1e-2")
    store.finish(job_named(other, "train:sft:0"), {"status": "trained"})
    assert store.result(job_named(plan, "train:sft:0")) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"fingerprint": "ab', b"\xff\xfe", b"[]", b"null", b"{}"])
def test_a_torn_record_does_not_count(plan, store, content):
    job = job_named(plan, "evaluate:sft:0")
    store.finish(job, {"status": "evaluated"})
    (store.arm_folder("sft", 0) / "done.json").write_bytes(content)
    assert store.result(job) is None


def test_a_folder_is_opened_for_a_study_and_again_for_the_same(plan, store):
    store.open_for(plan)
    store.open_for(plan)
    stored = records.read_json(store.folder / "plan.json")
    assert [job["id"] for job in stored["jobs"]] == [job.id for job in plan.jobs]
    assert read_study(store.folder / "study.toml") == plan.config


def test_a_folder_of_another_study_is_refused_and_left_as_it_was(tmp_path, plan, store):
    store.open_for(plan)
    before = (store.folder / "study.toml").read_bytes()
    told = (
        r"holds a run of another study or with other settings \(arms\.sft\.update\.lr is 0\.0003 there, 0\.01 here; "
        r"arms\.rl\.teacher is not set there, \"base\" here; "
        r"arms\.rl\.signal\.kind is \"reward\" there, \"jsd\" here\)"
    )
    with pytest.raises(UsageError, match=told):
        store.open_for(small_plan(tmp_path, "sft.update.lr=1e-2", "rl.teacher=base", "rl.signal.kind=jsd"))
    assert (store.folder / "study.toml").read_bytes() == before


def test_of_many_differing_settings_five_are_told(tmp_path, plan, store):
    store.open_for(plan)
    sections = ("num_updates=9", "lr=1e-5", "weight_decay=0.1")
    other = small_plan(tmp_path, *(f"{arm}.update.{section}" for arm in ("sft", "rl") for section in sections))
    with pytest.raises(UsageError, match=r"arms\.rl\.update\.lr is 0\.0001 there, 1e-05 here; and 1 more\)"):
        store.open_for(other)


def test_another_model_under_the_same_settings_is_told(tmp_path, plan, store):
    store.open_for(plan)
    (tmp_path / "fake-model" / "model.safetensors").write_bytes(bytes(15) + b"\x01")
    with pytest.raises(UsageError, match="its settings are the same, so the files of the model or the data differ"):
        store.open_for(small_plan(tmp_path))


def test_a_folder_whose_study_cannot_be_read_is_refused_too(tmp_path, plan, store):
    store.open_for(plan)
    (store.folder / "study.toml").write_text("[")
    with pytest.raises(UsageError, match=r"with other settings \(see .*study\.toml\)"):
        store.open_for(small_plan(tmp_path, "sft.update.lr=1e-2"))


def test_more_seeds_and_another_label_go_into_the_same_folder_and_keep_what_is_done(tmp_path, plan, store):
    store.open_for(plan)
    for job in plan.jobs:
        store.finish(job, {"status": "trained"})
    more = small_plan(tmp_path, "study.seeds=[0, 1, 2]", "sft.label=mild SFT")
    store.open_for(more)
    assert {job.seed for job in more.jobs if store.result(job) is None} == {2}
    assert all(store.result(job) for job in more.jobs if job.seed < 2)


@pytest.mark.parametrize("seeds", ["[0]", "[1, 2]"])
def test_a_seed_that_has_begun_is_never_dropped(tmp_path, plan, store, seeds):
    store.open_for(plan)
    for job in plan.jobs:
        store.finish(job, {"status": "trained"})
    before = (store.folder / "study.toml").read_bytes()
    missing = {"[0]": 1, "[1, 2]": 0}[seeds]
    with pytest.raises(UsageError, match=rf"holds seeds 0, 1, and this command would leave {missing} out of study"):
        store.open_for(small_plan(tmp_path, f"study.seeds={seeds}"))
    assert (store.folder / "study.toml").read_bytes() == before


def test_a_seed_that_has_not_begun_can_be_taken_back(tmp_path, plan, store):
    store.open_for(small_plan(tmp_path, "study.seeds=[0, 1, 2]"))
    store.finish(job_named(plan, "train:sft:0"), {"status": "trained"})
    store.open_for(small_plan(tmp_path, "study.seeds=[0]"))
    assert read_study(store.folder / "study.toml").study.seeds == [0]


def test_a_folder_that_is_no_run_folder_is_refused_and_left_as_it_was(plan, store):
    store.folder.mkdir()
    (store.folder / "thesis.tex").write_text("words")
    with pytest.raises(UsageError, match="exists and is not a run folder"):
        store.open_for(plan)
    assert os.listdir(store.folder) == ["thesis.tex"]


def test_an_empty_folder_is_taken(plan, store):
    store.folder.mkdir()
    store.open_for(plan)
    assert (store.folder / "plan.json").exists()


def test_a_kill_before_the_first_record_does_not_lock_the_folder_out(plan, store):
    # What a kill between lock and rename of plan.json leaves.
    with store.lock():
        (store.folder / ".plan.json.tmp").write_text("{")
    store.open_for(plan)
    assert records.read_json(store.folder / "plan.json")["fingerprint"] == plan.fingerprint


@pytest.mark.parametrize("content", ["{", "[]", "null", "\x00"])
def test_a_plan_that_is_no_plan_is_refused(plan, store, content):
    store.open_for(plan)
    (store.folder / "plan.json").write_text(content)
    with pytest.raises(UsageError, match=r"plan\.json is damaged"):
        store.open_for(plan)


def test_a_file_in_the_place_of_the_folder_is_refused(plan, store):
    store.folder.write_text("words")
    with pytest.raises(UsageError, match="is a file"), store.lock():
        pass


@pytest.mark.parametrize("out", ["words/x", "words/x/y", "x" * 300])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path, out):
    (tmp_path / "words").write_text("words")
    with pytest.raises(UsageError, match="cannot be used as a folder of results"), Store(tmp_path / out).lock():
        pass


def test_a_full_disk_is_no_error_of_the_user(store, monkeypatch):
    def full(path, **how):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(type(store.folder), "mkdir", full)
    with pytest.raises(OSError, match="No space left"), store.lock():
        pass


def test_two_at_once_are_refused_and_the_second_may_follow(store):
    refused = pytest.raises(UsageError, match="another statewise is at work here")
    with store.lock(), refused, Store(store.folder).lock():
        pass
    with store.lock():
        pass


def hold_and_die(folder, held):
    with Store(folder).lock():
        held.set()
        os._exit(1)


def test_the_lock_goes_with_the_process(store):
    start_server()
    held = CONTEXT.Event()
    process = CONTEXT.Process(target=hold_and_die, args=(store.folder, held))
    process.start()
    assert held.wait(60)
    process.join()
    with store.lock():
        pass


def test_a_record_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "done.json"
    records.write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["done.json"]


def test_a_record_without_a_finite_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(tmp_path / "x.json", {"a": float("nan")})


def test_the_same_rows_give_the_same_bytes(tmp_path):
    row = {"task": "t", "member": "t", "item": 1, "decoding": "greedy", "metric": "acc", "score": None, "response": "a"}
    likelihoods = {"chance": 0.25, "logprobs": [-1.5, -2.0], "are_greedy": [True, False]}
    rows = [{**row, "is_finished": False, "item_sha256": "ab", "prompt": "p", **likelihoods}]
    for name in ("a", "b"):
        records.write_table(tmp_path / name, rows, records.ITEM_SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert records.read_table(tmp_path / "a") == rows
