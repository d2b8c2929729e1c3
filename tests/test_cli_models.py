"""The commands about single models: what they print, write and answer with."""

from __future__ import annotations

import json

import pytest
from run_fixture import evaluated, trained, write_evaluation, write_run

from statewise.policy.load import save_weights

A, B = [1, 1, 0, 0], [1, 0, 1, 1]


@pytest.fixture
def run(tmp_path, toy_policy):
    save_weights(toy_policy, tmp_path / "base")
    folder = write_run(tmp_path / "run", tmp_path / "base")
    save_weights(toy_policy, folder / "arms" / "sft" / "1" / "model")
    trained(folder, "sft", 1)
    for arm in ("base", "sft"):
        evaluated(folder, arm, 1, sums=A, facts=B)
    return folder


def test_an_export_says_what_it_wrote_and_where(call, run, tmp_path):
    code, out, _ = call("export", "run", "sft", "--seed", 1, "--out", "models/sft")
    assert code == 0
    assert out.startswith("Written: models/sft, the model of arm sft, seed 1. Its card: models/sft/README.md")
    assert json.loads((tmp_path / "models" / "sft" / "statewise.json").read_text())["arm"] == "sft"


def test_an_evaluation_prints_its_scores_and_is_kept(call):
    arguments = ("eval", "pocket", "--tasks", "pocket_facts, pocket_facts", "--limit", 3)
    code, out, err = call(*arguments)
    assert code == 0
    for words in ("pocket_facts", "acc,none", "0-shot; split test", "Items: evals/pocket/evals"):
        assert words in out
    assert err.index(": loading model") < err.index("pocket_facts: evaluating")
    code, out, err = call(*arguments, "--json")
    (score,) = json.loads(out)["scores"]
    assert (code, score["estimate"]["num_items"], score["decoding"]) == (0, 3, "choices")
    assert "pocket_facts: kept from before" in err


def test_a_comparison_is_printed_or_json(call, run):
    code, out, _ = call("compare", "run:base", "run:sft")
    assert code == 0
    for words in ("A: run:base", "Paired differences", "Forgetting F = A − B", "n.r."):
        assert words in out
    code, out, _ = call("compare", "run:base", "run:sft", "--json")
    assert {score["task"] for score in json.loads(out)["scores"]} == {"sums", "facts"}


def test_a_comparison_that_leaves_tasks_out_ends_with_code_3(call, tmp_path):
    write_evaluation(tmp_path / "a", {"sums": A, "facts": A})
    write_evaluation(tmp_path / "b", {"sums": B, "facts": B[:3]})
    code, out, _ = call("compare", "a", "b")
    assert code == 3
    assert "! facts is not compared: its items differ" in out


def test_a_comparison_of_nothing_comparable_is_a_usage_error(call, tmp_path):
    write_evaluation(tmp_path / "a", {"sums": A})
    write_evaluation(tmp_path / "b", {"sums": B}, digest="other")
    code, out, err = call("compare", "a", "b")
    assert (code, out) == (2, "")
    assert "sums cannot be compared: its items differ" in err
