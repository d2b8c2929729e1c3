import errno
import hashlib
import json
import math
import os
import resource
from pathlib import Path

import pytest

from statewise.errors import naming
from statewise.storage import records

ROWS = [
    {"prompt_index": 3, "prompt_ids": [1, 2], "token_ids": [4], "logprobs": [-0.5], "is_finished": True},
    {"prompt_index": 4, "prompt_ids": [1], "token_ids": [], "logprobs": [], "is_finished": False},
]


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_bytes_are_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "file.bin"
    for data in (b"first", b"second, longer", b""):
        records.write_bytes(path, data)
        assert path.read_bytes() == data
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("place", [(os, "fsync"), (Path, "replace"), (Path, "open")])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place):
    path = tmp_path / "file.bin"
    records.write_bytes(path, b"old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(*place, disk_full)
        records.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_file_that_cannot_grow_is_named(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/big\.bin'$"):
            records.write_bytes(tmp_path / "big.bin", bytes(2**16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_while_a_folder_is_written_names_the_folder(tmp_path):
    # As safetensors and tokenizers, which are written in Rust, tell it: by exceptions of their own.
    told = "Error while serializing: I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/model'$") as caught,
        records.replacing_folder(tmp_path / "model"),
    ):
        raise ValueError(told)
    assert caught.value.errno == errno.ENOSPC


def test_an_error_that_is_none_of_the_system_or_names_its_file_stays_as_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"^shapes differ$"), naming(tmp_path):
        raise ValueError("shapes differ")
    with pytest.raises(OSError, match=r"No space left on device: 'other'$"), naming(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "other")


def test_what_a_kill_left_behind_does_not_matter(tmp_path):
    path = tmp_path / "file.bin"
    (tmp_path / ".file.bin.tmp").write_bytes(b"half of something that was much longer")
    records.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_the_data_is_durable_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def traced_fsync(descriptor):
        events.append("fsync")
        fsync(descriptor)

    def traced_replace(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "replace", traced_replace)
    records.write_bytes(tmp_path / "file.bin", b"new")
    assert events == ["fsync", "rename", "fsync"]  # the last makes the name durable


def test_json_is_read_back_as_it_was_written(tmp_path):
    value = {"text": "naïve 東京", "number": 1e-4, "list": [None, True]}
    records.write_json(tmp_path / "a.json", value)
    assert records.read_json(tmp_path / "a.json") == value
    assert "naïve 東京" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_nan(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(tmp_path / "a.json", {"loss": value})
    assert not list(tmp_path.iterdir())


def test_the_same_rows_give_the_same_parquet_bytes(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        records.write_table(tmp_path / name, ROWS, records.ROLLOUT_SCHEMA)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert records.read_table(tmp_path / "a.parquet") == ROWS


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    records.write_table(tmp_path / "a.parquet", [], records.STATE_SCHEMA)
    assert records.read_table(tmp_path / "a.parquet") == []


def test_digests_are_sha256_of_bytes_and_of_canonical_json(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert records.digest_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert records.digest_json({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()
    assert records.digest_json({"a": [2], "b": 1}) == records.digest_json(json.loads('{"b": 1, "a": [2]}'))
