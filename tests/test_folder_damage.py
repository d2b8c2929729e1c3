"""Damage of every kind to every file of a finished run: the same command ends with the bytes of an undamaged one."""

from __future__ import annotations

import json
import shutil

import damage_fixture
import pytest
from damage_fixture import FastStudy
from study_fixture import small_plan

from statewise.errors import DamagedError, UsageError
from statewise.folder.run_folder import is_older, open_run
from statewise.folder.store import Store
from statewise.folder.verify import verify_run
from statewise.results.summary import summarise
from statewise.storage import integrity, records

NEVER_THE_SAME = ("train.json", "done.json", "timing.jsonl", "summary.json")  # they hold seconds


def same_bytes(folder):
    """What must be the same after a repair, by path."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if not name.startswith("damaged/") and path.name not in (*NEVER_THE_SAME, ".lock")
    }


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def replace_by_a_folder(path):
    path.unlink()
    (path / "inside").mkdir(parents=True)


DAMAGES = {one.__name__: one for one in (truncate, empty, flip, replace_by_a_folder)} | {"delete": lambda p: p.unlink()}


@pytest.fixture
def study(tmp_path, monkeypatch):
    made = FastStudy(tmp_path, monkeypatch)
    outcome, _, told = made.run()
    assert (outcome.failed, told, len(made.trained)) == ({}, [], 5)
    return made


@pytest.mark.parametrize("how", DAMAGES)
def test_the_same_command_gets_past_damage_of_any_file_and_ends_with_the_same_bytes(study, tmp_path, how):
    expected = same_bytes(study.folder)
    whole = tmp_path / "whole"
    shutil.copytree(study.folder, whole)
    paths = [path for path in sorted(whole.rglob("*")) if path.is_file() and path.name != ".lock"]
    one_of_a_kind = {path.name: str(path.relative_to(whole)) for path in paths}
    assert len(one_of_a_kind) == 20
    for name in one_of_a_kind.values():
        shutil.rmtree(study.folder)
        shutil.copytree(whole, study.folder)
        DAMAGES[how](study.folder / name)
        outcome, _, told = study.run()
        assert outcome.failed == {}, name
        assert same_bytes(study.folder) == expected, name
        assert all("\n" not in text for text in told), told
        # Every run writes these two anew; and a job without its result is one that is not done.
        is_silent = name in ("summary.json", "results.parquet") or (
            how == "delete" and name.endswith(("train.json", "done.json"))
        )
        assert is_silent or any(name in text for text in told), (name, told)
        file = name.rpartition("/")[2]
        assert how == "delete" or is_silent or any((study.folder / "damaged").rglob(file)), name


def test_nothing_that_was_set_aside_is_ever_overwritten(study):
    weights = study.folder / "arms" / "sft" / "0" / "model" / "model.safetensors"
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        study.run()
    aside = sorted((study.folder / "damaged").rglob("model.safetensors"))
    assert [path.read_bytes() for path in aside] == [b"one", b"two"]


def test_a_stray_file_is_set_aside_alone(study):
    stray = study.folder / "arms" / "sft" / "0" / "states" / "000009.parquet"
    stray.write_bytes(b"x")
    _, _, told = study.run()
    assert study.trained == []
    assert told == [f"{stray} was not recorded; moved to damaged/arms/sft/0/states/000009.parquet"]


def test_what_was_made_from_a_result_is_done_again_if_that_one_became_another(study, monkeypatch):
    # As on a GPU, where a second training has other bytes: the student learned from weights that are gone.
    plain = damage_fixture.numbers
    (study.folder / "arms" / "sft" / "0" / "model" / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(damage_fixture, "numbers", lambda *words: plain("another machine", *words))
    outcome, summary, _ = study.run()
    assert sorted(study.trained) == ["evaluate:opd:0", "evaluate:sft:0", "train:opd:0", "train:sft:0"]
    assert (outcome.failed, summary.problems) == ({}, ())


@pytest.mark.parametrize(
    ("job", "file", "reads"),
    [
        ("train:opd:0", "arms/sft/0/model/model.safetensors", "teacher"),
        ("evaluate:sft:0", "arms/sft/0/model/model.safetensors", "own weights"),
        ("evaluate:sft:0", "arms/base/0/rollouts.parquet", "base rollouts"),
    ],
)
def test_a_job_fails_by_name_on_what_another_job_no_longer_holds(study, job, file, reads):
    flip(study.folder / file)
    with pytest.raises(
        DamagedError, match=rf"{file} is not what was recorded \(SHA-256 differs\); run the same command"
    ):
        study.do(job)


def test_edited_scores_and_those_that_need_them_never_enter_a_table(study):
    path = study.folder / "arms" / "sft" / "0" / "evals" / "pocket_math.parquet"
    rows = records.read_table(path)
    records.write_table(path, [{**row, "score": 1.0} for row in rows], records.ITEM_SCHEMA)
    summary = summarise(study.plan, Store(study.folder), {})
    assert next(run for run in summary.runs if run.arm == "sft").scores == {}
    assert any(f"evaluate:sft:0: {path} is not what was recorded" in problem for problem in summary.problems)


def test_a_plan_that_is_damaged_beside_the_results_of_another_study_is_refused(study):
    (study.folder / "plan.json").write_bytes(b"{")
    other = small_plan(study.folder.parent, "sft.update.lr=1e-2", text=damage_fixture.SMALL)
    with pytest.raises(UsageError, match=r"plan\.json is damaged, not JSON .*choose another folder with --out"):
        Store(study.folder).open_for(other)


def test_a_kill_after_any_write_of_a_training_never_costs_what_is_done(study, monkeypatch):
    # Checkpoints go last: at whatever write the process dies, either they or train.json are there.
    folder = study.folder / "arms" / "sft" / "0"
    order = []
    (folder / "checkpoints" / "000004").mkdir(parents=True)
    write, remove = integrity.write_sealed, shutil.rmtree
    monkeypatch.setattr(integrity, "write_sealed", lambda path, value: (order.append(path.name), write(path, value)))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: (order.append(path.name), remove(path, **how)))
    study.do("train:sft:0")
    assert order[-2:] == ["train.json", "checkpoints"]


def test_verify_names_every_file_that_is_not_what_was_recorded(study):
    assert verify_run(study.folder).is_sound
    folder = study.folder / "arms" / "sft" / "0"
    flip(folder / "model" / "model.safetensors")
    (folder / "states" / "000002.parquet").unlink()
    (folder / "states" / "notes.txt").write_text("x")
    (study.folder / "mine.txt").write_text("x")
    truncate(study.folder / "arms" / "opd" / "0" / "done.json")
    found = verify_run(study.folder)
    assert found.damaged.keys() == {
        "arms/sft/0/model/model.safetensors", "arms/sft/0/states/000002.parquet", "arms/opd/0/done.json",
    }  # fmt: skip
    assert found.strays == ["arms/sft/0/states/notes.txt", "mine.txt"]


def test_verify_recomputes_the_running_hash_of_the_states(study):
    folder = study.folder / "arms" / "sft" / "0"
    path = folder / "states" / "000002.parquet"
    rows = records.read_table(path)
    digest = records.write_table(path, [{**row, "reward": 0.5} for row in rows], records.STATE_SCHEMA)
    stored = integrity.read_sealed(folder / "train.json")
    stored["files"]["states/000002.parquet"] = digest
    integrity.write_sealed(folder / "train.json", stored)
    assert verify_run(study.folder).damaged == {"arms/sft/0/states": "has another running hash than was trained on"}


def test_records_of_an_older_version_are_named_and_not_taken_for_verified(study):
    path = study.folder / "arms" / "sft" / "0" / "done.json"
    stored = integrity.read_sealed(path)
    del stored["files"]
    records.write_json(path, stored)
    found = verify_run(study.folder)
    assert (found.older, found.is_sound) == (["arms/sft/0/done.json"], False)
    assert is_older(open_run(study.folder).record("sft", 0, "evaluate"))


def test_the_command_verify_says_how_many_files_match_and_leaves_by_its_answer(study, call):
    code, out, _ = call("verify", study.folder)
    assert (code, out.splitlines()[-1].startswith("all ")) == (0, True)
    flip(study.folder / "arms" / "base" / "0" / "rollouts.parquet")
    code, out, _ = call("verify", study.folder)
    assert code == 1
    assert out.splitlines()[0] == "arms/base/0/rollouts.parquet: is not what was recorded (SHA-256 differs)"
    code, out, _ = call("verify", study.folder, "--json")
    assert (code, json.loads(out)["is_sound"]) == (1, False)
    code, _, err = call("verify", study.folder.parent)
    assert (code, "not a run folder" in err) == (2, True)
