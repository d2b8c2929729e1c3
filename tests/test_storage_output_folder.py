"""Nothing is written outside of the folder that a command was given, whatever links a received folder holds."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict

import pytest
from report_fixture import fake_study
from study_fixture import STUDY, small_plan, write_study

from statewise.errors import UsageError
from statewise.folder.store import Store
from statewise.storage import records


@pytest.fixture
def secret(tmp_path):
    """A file outside of every output folder."""
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / "secret.txt"
    path.write_text("as it was")
    return path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


RUN_LINKS = (".lock", "plan.json", ".plan.json.tmp", "study.toml", "summary.json", "arms/sft/0/train.json", "models/x")


@pytest.mark.parametrize("name", RUN_LINKS)
def test_a_link_in_a_run_folder_is_refused_by_name_and_not_followed(tmp_path, secret, name):
    store = Store(tmp_path / "run")
    store.open_for(small_plan(tmp_path))
    link = store.folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    with pytest.raises(UsageError, match=rf"{name}: is a link to .*secret\.txt; .* remove it"), store.lock():
        pass
    assert secret.read_text() == "as it was"


@pytest.mark.parametrize("name", ["arms", "arms/rl", "arms/rl/0", "damaged"])
def test_a_linked_folder_is_refused_too(tmp_path, secret, name):
    store = Store(tmp_path / "run")
    store.open_for(small_plan(tmp_path))
    link = store.folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(secret.parent)
    with pytest.raises(UsageError, match=rf"{name}: is a link to .*outside"), store.lock():
        pass
    assert tree(secret.parent) == {"secret.txt": b"as it was"}


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    store = Store(tmp_path / "run")
    store.open_for(small_plan(tmp_path))
    os.mkfifo(store.folder / "summary.json")
    with pytest.raises(UsageError, match=r"summary\.json: is neither a file nor a folder"), store.lock():
        pass


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    store = Store(tmp_path / "run")
    with store.lock():
        store.open_for(small_plan(tmp_path))
    assert (tmp_path / "disk" / "plan.json").is_file()


def test_a_folder_that_is_no_run_is_left_as_it_was(tmp_path, call):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / ".lock").write_text("of another program")
    (folder / "notes.txt").write_text("mine")
    before = tree(folder)
    study = write_study(tmp_path, STUDY)
    code, _, err = call("run", study, "--out", folder)
    assert (code, tree(folder)) == (2, before)
    assert "notes: exists and is not a run folder" in err
    code, _, err = call("eval", "pocket", "--tasks", "pocket_facts", "--out", folder)
    assert (code, tree(folder)) == (2, before)
    assert "notes: exists and is not a folder of `statewise eval`" in err


def test_a_lock_keeps_what_it_holds(tmp_path):
    (tmp_path / ".lock").write_text("of another program")
    with Store(tmp_path).lock():
        pass
    assert (tmp_path / ".lock").read_text() == "of another program"


@pytest.mark.parametrize("name", [".eval.json.tmp", ".lock", "evals"])
def test_a_link_in_an_eval_folder_is_refused_by_name(tmp_path, secret, call, name):
    out = tmp_path / "scores"
    assert call("eval", "pocket", "--tasks", "pocket_facts", "--limit", 2, "--out", out)[0] == 0
    shutil.rmtree(out / name) if name == "evals" else (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(secret.parent if name == "evals" else secret)
    code, _, err = call("eval", "pocket", "--tasks", "pocket_facts", "--limit", 2, "--out", out)
    assert code == 2
    assert f"{name}: is a link to" in err
    assert tree(secret.parent) == {"secret.txt": b"as it was"}


@pytest.mark.parametrize("name", [".report.html.tmp", "report.html"])
def test_a_report_is_not_written_through_a_link(tmp_path, secret, call, name):
    folder = tmp_path / "run"
    records.write_json(folder / "summary.json", asdict(fake_study()))
    (folder / name).symlink_to(secret)
    code, _, _ = call("report", folder)
    assert code == 0
    assert (folder / "report.html").is_file() and not (folder / "report.html").is_symlink()
    assert secret.read_text() == "as it was"


def test_a_file_is_written_beside_the_temporary_one_of_a_killed_run(tmp_path):
    (tmp_path / ".a.json.tmp").write_text("half")
    records.write_json(tmp_path / "a.json", {"b": 1})
    assert records.read_json(tmp_path / "a.json") == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", [".out.tmp", "out"])
def test_a_folder_is_not_replaced_through_a_link(tmp_path, secret, name):
    (tmp_path / name).symlink_to(secret.parent)
    with records.replacing_folder(tmp_path / "out") as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
    assert tree(tmp_path / "out") == {"model.safetensors": b"weights"}
    assert not (tmp_path / "out").is_symlink()
    assert tree(secret.parent) == {"secret.txt": b"as it was"}
