"""The matrix of cells, and what is refused before a model is loaded: with the reason and the nearest that works."""

import pytest
from study_fixture import small_plan

from statewise.errors import UsageError
from statewise.signals import SIGNALS
from statewise.study.cells import matrix

REINFORCE = "sft.signal={kind='reward',advantage='reinforce'}"
PREFERENCE = "sft.signal={kind='preference'}"
# The override that is refused, what is said, and the one that is named as the nearest that works.
CASES = [
    (["sft.signal={kind='reward'}"], "advantage = 'grpo' compares the answers", [REINFORCE]),
    ([PREFERENCE], "a preference is between two answers", [PREFERENCE, "sft.source.pairs='p.jsonl'"]),
    (["rl.source.samples_per_prompt=1"], "compares the answers to one prompt", ["rl.source.samples_per_prompt=2"]),
    (
        ["sft.signal={kind='reward',advantage='reinforce',importance='token'}"],
        "that of data is not known",
        ["sft.signal={kind='reward',advantage='reinforce',importance='none'}"],
    ),
    (
        ["rl.signal.importance=sequence", "rl.source.top_p=0.9"],
        "top_p < 1 samples from a cut one",
        ["rl.signal.importance=sequence", "rl.source.top_p=1.0"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("refused", "told", "nearest"), CASES)
def test_a_refused_cell_says_why_and_names_one_that_works(tmp_path, refused, told, nearest):
    with pytest.raises(UsageError, match=told) as error:
        small_plan(tmp_path, *refused)
    assert "nearest that works" in str(error.value)
    small_plan(tmp_path, *nearest)


def test_the_matrix_has_every_signal_on_every_source_with_a_name():
    cells = matrix()
    signals = {cell["signal"] for cell in cells}
    assert signals == {*SIGNALS, "imitate(only_correct)"}
    sources = {"dataset", "teacher", "learner", "base", "stale", "replay", "prefix", "log", "mixture"}
    assert {(cell["source"], cell["signal"]) for cell in cells} == {(a, b) for a in sources for b in signals}
    assert all(cell["name"] for cell in cells)
    # Only signals that compare answers, and only where there may be one answer alone.
    refused = {(cell["source"], cell["signal"]) for cell in cells if cell["refused"]}
    assert refused == {(a, b) for a in ("dataset", "mixture") for b in ("reward", "preference")}


def test_the_cells_are_listed_with_what_they_are_called(call):
    code, out, _ = call("list", "cells")
    assert code == 0
    assert "reward on" in out
    assert "refused by default: advantage = 'grpo'" in out


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rl.source={kind='log',arm='stf'}"], "unknown arm to replay 'stf'. Did you mean 'sft'"),
        (["rl.source={kind='log',arm='rl'}"], "unknown arm to replay 'rl'"),
        (["rl.source={kind='log',arm='sft'}", "sft.source={kind='log',arm='rl'}", "rl.signal={kind='imitate'}"],
         "arms sft, opd, rl wait for each other"),
        (["rl.source={kind='log'}"], "give one of arm and path"),
        (["rl.source={kind='log',path='nowhere/arms/rl/{seed}'}"], "holds no trained arm"),
        (["sft.locality=[{kind='ema'},{kind='ema',decay=0.5}]"], "locality 'ema' is given twice"),
        (["sft.locality={kind='ewc'}", "shared.retention=[]"], "remembers the retention tasks, and the study has none"),
        (["sft.signal=[]"], "no signal; give one"),
        (["sft.signal=[{kind='imitate',weight=0}]"], "weight.*greater than 0"),
    ],
)  # fmt: skip
def test_what_a_plan_cannot_do_is_refused(tmp_path, overrides, told):
    with pytest.raises(UsageError, match=told):
        small_plan(tmp_path, *overrides)


def test_an_arm_that_replays_waits_for_the_arm_that_records(tmp_path):
    plan = small_plan(
        tmp_path,
        "rl.source={kind='log',arm='sft'}",
        "rl.signal={kind='imitate'}",
        "study.factors=['source','signal','teacher','update']",
    )
    node = next(node for node in plan.nodes if node.id == "train:rl:0")
    assert node.needs == ("train:sft:0",)
    other = small_plan(tmp_path, "rl.source={kind='log',arm='sft'}", "rl.signal={kind='imitate'}", "sft.update.lr=1e-5")
    again = next(node for node in other.nodes if node.id == "train:rl:0")
    assert again.fingerprint != node.fingerprint  # other states are recorded
