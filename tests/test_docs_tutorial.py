"""The tutorial, and the how-to that goes on from it, do what they say: in an empty folder, file by file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from doc_pages import run_page


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the tutorial ran, as the working directory."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page("tutorial.md", folder)
        yield folder


def read_summary(folder: str) -> dict:
    return json.loads(Path(folder, "summary.json").read_text())


def test_the_tutorial_runs_to_its_report(tutorial):
    summary = read_summary("runs/apples")
    assert summary["target"] == "apples:greedy:reward,none"
    assert [run["arm"] for run in summary["runs"]] == ["base", "sft", "opd", "rl"]
    recipes = {run["arm"]: run["recipe"] for run in summary["runs"]}
    assert "reverse_kl of big on learner rollout states" in recipes["opd"]
    metrics = [json.loads(line) for line in Path("runs/apples/arms/rl/0/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["signals/reward_mean"] <= 1 for line in metrics)
    assert "apples" in Path("runs/apples/report.html").read_text()


def test_the_how_to_of_teachers_trains_three_arms_on_an_exported_model(tutorial):
    run_page("how-to/teacher.md", tutorial)
    recipes = {run["arm"]: run["recipe"] for run in read_summary("runs/taught")["runs"]}
    assert "reverse_kl of coach on learner rollout states" in recipes["opd"]
    assert "imitate of coach on teacher rollout states" in recipes["seq-kd"]
    assert "forward_kl of coach on dataset states" in recipes["kd"]
    plan = json.loads(Path("runs/taught/plan.json").read_text())
    assert not any("coach" in need for job in plan["jobs"] for need in job["needs"])
