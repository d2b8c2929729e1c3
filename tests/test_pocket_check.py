"""The criterion of a pocket world: decided by what was measured, and measured on problems that are nowhere else."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil

import pytest
from pocket_fixture import CONFIG, check_digests
from typer.testing import CliRunner

from statewise.cli import app
from statewise.errors import UsageError
from statewise.pocket.check import OPENINGS, SAMPLES, Share, check_base, judge
from statewise.pocket.pretrain import pretrain
from statewise.pocket.problems import write_solution
from statewise.pocket.world import World

NUM_ITEMS = 24


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A smoke-size folder after its check, what that returned and the lines of progress."""
    folder, lines = tmp_path_factory.mktemp("check") / "model", []
    pretrain(CONFIG, folder, lines.append)
    return folder, check_base(folder, lines.append, NUM_ITEMS), lines


def share(value, num_items=600):
    return {"value": value, "low": 0.0, "high": 1.0, "num_items": num_items}


def base_that_meets_it():
    """Values in the middle of every range; 120 of 600 problems are rare."""
    values = {
        "greedy": share(0.40), "pass@8": share(0.85), "forced equations": share(0.80), "forced gsm8k": share(0.78),
        "pocket_facts": share(0.70), "pocket_myths": share(0.47),
        "rare": share(0.25, 120), "familiar": share(0.93, 480),
    }  # fmt: skip
    return {
        "best_style": "equations",
        "values": values,
        "quartiles": {name: [share(v, 150) for v in (0.9, 0.7, 0.5, 0.4)] for name in ("pocket_facts", "pocket_myths")},
        "operations": [{"operation": "x", "num_documents": 9, "share": share(v, 15)} for v in (0.8, 0.3, 0.1, 0.0)],
    }


def not_met(base):
    return [criterion.statement for criterion in judge(base) if not criterion.is_met]


def test_a_base_in_the_middle_of_every_range_meets_the_criterion():
    assert not_met(base_that_meets_it()) == []
    # (.8 + .3) / 2 - (.1 + 0) / 2 = .5.
    (graded,) = [one for one in judge(base_that_meets_it()) if "seen often" in one.statement]
    assert graded.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "value", "missed"),
    [
        ("greedy", 0.29, ["greedy, zero-shot"]),
        ("greedy", 0.56, ["greedy, zero-shot", "the same, above greedy"]),
        ("pass@8", 0.74, ["pass@8 at temperature 1"]),
        ("forced equations", 0.69, ["greedy in the best ungraded style"]),
        ("forced equations", 0.89, ["greedy in the best ungraded style"]),
        ("pocket_facts", 0.86, ["facts"]),
        ("pocket_myths", 0.34, ["myths"]),
        ("rare", 0.41, ["rare problems in the best style"]),
        ("rare", 0.09, ["rare problems in the best style"]),
        ("familiar", 0.81, ["familiar problems in the best style"]),
    ],
)
def test_each_bound_is_held_by_its_own_criterion(name, value, missed):
    base = base_that_meets_it()
    base["values"][name]["value"] = value
    assert not_met(base) == missed


def test_a_quarter_at_the_floor_or_ceiling_too_few_rare_problems_and_no_grading_are_missed():
    base = base_that_meets_it()
    # A guess among four is .25: a quarter of facts at .28 is not known; of myths it is far from nothing.
    base["quartiles"]["pocket_facts"][3]["value"] = base["quartiles"]["pocket_myths"][3]["value"] = 0.28
    base["quartiles"]["pocket_myths"][0]["value"] = 0.99
    base["values"]["rare"]["num_items"] = 60
    base["operations"] = list(reversed(base["operations"]))
    assert not_met(base) == [
        "pocket_facts, least known quarter",
        "pocket_myths, best known quarter",
        "share of rare problems",
        "operations seen often, above those seen seldom",
    ]


def test_an_interval_is_that_of_clopper_and_pearson():
    # 0 of 10: (0, 1 - .025^(1/10)) = (0, .3085).
    assert Share.of([0.0] * 10).low == 0
    assert Share.of([0.0] * 10).high == pytest.approx(1 - 0.025**0.1)
    assert Share.of([1.0, 0.0, 1.0, 1.0]).value == 0.75


def test_openings_are_how_a_solution_of_their_style_begins():
    problem = World.from_seed(3).spare_problems[0]
    for style, opening in OPENINGS.items():
        assert write_solution(problem, style).startswith(opening(problem))


def test_the_smoke_model_is_measured_on_all_counts_and_meets_hardly_any(checked):
    folder, base, lines = checked
    assert json.loads((folder / "base.json").read_text()) == json.loads(json.dumps(base))
    check_digests(folder)
    assert not base["is_met"]
    assert {f"forced {style}" for style in OPENINGS} < base["values"].keys()
    assert {one["num_items"] for name, one in base["values"].items() if name not in ("rare", "familiar")} == {NUM_ITEMS}
    assert base["values"]["rare"]["num_items"] + base["values"]["familiar"]["num_items"] == NUM_ITEMS
    assert base["values"]["sampled"]["value"] <= base["values"][f"pass@{SAMPLES}"]["value"]
    styles = [base["values"][f"style {name}"]["value"] for name in ("bare", "worked", "graded")]
    assert sum(styles) == pytest.approx(1)
    assert all(one["num_items"] == NUM_ITEMS / 4 for one in base["quartiles"]["pocket_facts"])
    assert len(base["operations"]) == 8
    assert any("spare problems" in line for line in lines)


def test_a_folder_of_another_world_or_of_none_is_refused(checked, tmp_path):
    with pytest.raises(UsageError, match=r"no pretrain\.json; give a folder that `statewise pretrain` wrote"):
        check_base(tmp_path, print)
    copied = shutil.copytree(checked[0], tmp_path / "copy")
    recipe = dataclasses.asdict(dataclasses.replace(CONFIG, world_seed=8))
    (copied / "pretrain.json").write_text(json.dumps(recipe))
    with pytest.raises(UsageError, match="problems are not those of world 8 of this version"):
        check_base(copied, print)


def test_the_command_measures_and_says_by_its_code_whether_the_base_is_fit(checked):
    folder, base, _ = checked
    before = copy.deepcopy(base)
    result = CliRunner().invoke(app, ["pretrain", "--check", str(folder), "--size", "smoke"])
    assert result.exit_code == 1
    assert len(re.findall(r"^(?:met|NOT MET) ", result.stdout, re.MULTILINE)) == len(before["criteria"])
    assert json.loads((folder / "base.json").read_text()) == json.loads(json.dumps(before))


@pytest.mark.parametrize(
    "arguments",
    [[], ["--out", "a", "--check", "b"], ["--check", "b", "--world-seed", "0"], ["--check", "b", "--threads", "1"]],
)
def test_exactly_one_of_out_and_check_is_asked_for(arguments):
    result = CliRunner().invoke(app, ["pretrain", *arguments])
    assert isinstance(result.exception, UsageError)
