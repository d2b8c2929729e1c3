import hashlib

import pytest
from study_fixture import fake_model, write_study

from statewise.errors import UsageError
from statewise.plan import digest
from statewise.plan.digest import digest_model
from statewise.plan.request import StudyRequest, plan_study
from statewise.run.run import run_study
from statewise.storage import integrity, records


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read for their digest, in order."""
    names = []
    plain = records.digest_file
    monkeypatch.setattr(records, "digest_file", lambda path: (names.append(path.name), plain(path))[1])
    monkeypatch.setattr(integrity, "SETTLED_NS", 0)
    integrity._digest_once.cache_clear()
    return names


def test_a_digest_is_the_sha256_of_every_file_that_can_change_a_number(tmp_path):
    for name in ("config.json", "model.safetensors", "merges.txt", "tokenizer.model", "chat_template.jinja"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "README.md").write_text("words")
    assert digest_model(tmp_path) == {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("chat_template.jinja", "config.json", "merges.txt", "model.safetensors", "tokenizer.model")
    }


def test_a_file_is_read_again_only_after_it_changed(tmp_path, reads):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    before = digest_model(tmp_path)
    assert digest_model(tmp_path) == before
    assert reads == ["model.safetensors"]
    path.write_bytes(b"WEIGHTS")
    assert digest_model(tmp_path) != before
    assert len(reads) == 2


def test_a_large_file_of_the_hubs_cache_is_known_by_its_blob_and_a_small_one_is_read(tmp_path, reads):
    sha256, git_hash = hashlib.sha256(b"weights").hexdigest(), "0" * 40
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / sha256).write_bytes(b"weights")
    (tmp_path / "blobs" / git_hash).write_bytes(b"{}")  # the hub names small files by another hash
    snapshot = tmp_path / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / sha256)
    (snapshot / "config.json").symlink_to(tmp_path / "blobs" / git_hash)
    assert digest_model(snapshot) == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": sha256,
    }
    assert reads == [git_hash]


def test_a_dry_plan_reads_no_large_file_and_cannot_be_run(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(digest, "LARGE_BYTES", 10)
    request = StudyRequest(str(write_study(tmp_path)), model=str(fake_model(tmp_path)), is_dry=True)
    plan = plan_study(request)
    assert "model.safetensors" not in reads
    with pytest.raises(UsageError, match="a dry plan does not know the weights"):
        run_study(plan, tmp_path / "run", lambda event: None, 1)
    assert not (tmp_path / "run").exists()
