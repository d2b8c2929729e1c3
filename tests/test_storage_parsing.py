"""Inputs that are nested without end, or unfold without bound, are refused in one line."""

from __future__ import annotations

import json
import shutil
import tomllib

import pytest
from study_fixture import STUDY, write_study

from statewise.assets import POCKET_MODEL
from statewise.config.read import read_study
from statewise.errors import UsageError
from statewise.storage.parsing import parse_json, parse_toml

DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize("depth", [60, 900, 3000, 100_000])
def test_what_is_nested_too_deeply_is_the_formats_own_error(depth):
    deep = "[" * depth + "]" * depth
    with pytest.raises(json.JSONDecodeError, match="nested more than 50 deep"):
        parse_json(deep)
    with pytest.raises(tomllib.TOMLDecodeError, match="nested more than 50 deep"):
        parse_toml(f"a = {deep}")
    with pytest.raises(tomllib.TOMLDecodeError, match="nested more than 50 deep"):
        parse_toml(f"{'a.' * min(depth, 3000)}b = 1")


def test_what_is_nested_within_reason_is_read():
    deep = "[" * 50 + "]" * 50
    assert json.dumps(parse_json(deep)) == deep
    assert parse_json('{"a": [1, {"b": "[[["}]}') == {"a": [1, {"b": "[[["}]}


def test_a_number_of_thousands_of_digits_is_the_formats_own_error():
    with pytest.raises(json.JSONDecodeError, match="4300 digits"):
        parse_json("9" * 5000)
    with pytest.raises(tomllib.TOMLDecodeError, match="4300 digits"):
        parse_toml("a = " + "9" * 5000)


@pytest.mark.parametrize("line", [f"x = {DEEP}", f"{'a.' * 3000}b = 1", "x = " + "9" * 5000])
def test_a_study_file_without_bottom_is_refused_in_one_line(tmp_path, call, line):
    code, out, err = call("run", write_study(tmp_path, f"{line}\n{STUDY}"), "--dry-run")
    assert (code, out) == (2, "")
    assert err.startswith("statewise: ") and err.count("\n") == 1
    assert "small.toml: not valid TOML: " in err


def test_an_override_without_bottom_is_refused(tmp_path):
    with pytest.raises(UsageError, match="an override is nested more than 50 deep"):
        read_study(write_study(tmp_path), [f"shared.{'a.' * 3000}b=1"])


def test_a_grid_of_ten_million_cells_is_refused_at_once(tmp_path):
    axes = "".join(
        f"[grid.axes.a{axis}]\n" + "".join(f"l{axis}{level} = {{}}\n" for level in range(10)) for axis in range(7)
    )
    with pytest.raises(UsageError, match=r"small\.toml:\d+: the axes make 10,000,000 arms; a study has at most 1,000"):
        read_study(write_study(tmp_path, STUDY + axes))


@pytest.mark.parametrize("seeds", ["1000000000", "1001"])
def test_seeds_without_number_are_refused(tmp_path, call, seeds):
    code, _, err = call("run", write_study(tmp_path), "--dry-run", "--seeds", seeds)
    assert code == 2 and f"--seeds {seeds}: expected at most 1000" in err


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_folder_without_bottom_is_refused_in_one_line(tmp_path, call, name):
    model = tmp_path / "model"
    shutil.copytree(POCKET_MODEL, model)
    (model / name).write_text('{"a": ' + DEEP + "}")
    code, out, err = call("run", "pocket", "--model", model, "--dry-run")
    assert (code, out) == (2, "")
    assert f"{name}: not JSON (nested more than 50 deep" in err and err.count("\n") == 1
