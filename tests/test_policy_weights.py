"""Weight files as they come: whole, stored twice, or none at all; each refusal is one line that names the file."""

from __future__ import annotations

import json
import shutil

import pytest
from families_fixture import LLAMA, build_model

from statewise.errors import UsageError
from statewise.policy.find import count_parameters
from statewise.policy.load import load_policy, load_without_weights

FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return build_model(tmp_path / "a[b]*", "llama", LLAMA)  # what `glob` and markup would read as more than a name


def test_weights_that_are_shipped_twice_count_once(folder):
    once = count_parameters(folder)
    shutil.copyfile(folder / FILE, folder / "consolidated.safetensors")
    assert count_parameters(folder) == once
    load_policy(folder, "policy")


def pointer(path):
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 3680512\n")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def noise(path):
    path.write_bytes((5).to_bytes(8, "little") + b"[1,2]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pointer, "a pointer of Git LFS"),
        (half, r"of \d+ bytes, so it is not whole"),
        (empty, "0 bytes are no safetensors file"),
        (noise, "its header is not that of a safetensors file"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_in_one_line_with_and_without_reading_them(folder, damage, message):
    damage(folder / FILE)
    for load in (load_policy, load_without_weights, lambda folder, _: count_parameters(folder)):
        with pytest.raises(UsageError, match=message) as refused:
            load(folder, "policy")
        assert str(folder / FILE) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_weights_of_other_shapes_are_refused_before_and_when_they_are_read(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(UsageError, match=r"has the shape \[257, 32\], config.json asks for \[300, 32\]"):
        load_without_weights(folder, "policy")
    with pytest.raises(UsageError, match="transformers cannot load it") as refused:
        load_policy(folder, "policy")
    assert "\n" not in str(refused.value)
