"""Where errors say that a key stands: file and line, level of a grid, override; from the study to the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_fixture import GRID, HYPOTHESIS, STUDY, line_of, small_plan

from statewise.config.locations import Location
from statewise.errors import UsageError


def refusal(folder, text, *overrides):
    with pytest.raises(UsageError) as caught:
        small_plan(folder, *overrides, text=text)
    return str(caught.value)


def replaced(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"dataset"', '"datset"', "arms.sft.source: unknown source 'datset'. Did you mean 'dataset'?"),
        ("num_trajectories = 8", "num_trajectoris = 8", "unknown key in [arms.sft.source]: 'num_tr"),
        ("num_trajectories = 8", "num_trajectories = 0", "arms.sft.source.num_trajectories: Input"),
        ('kind = "imitate" }', 'kind = "imitat" }', "arms.sft.signal: unknown signal 'imitat'."),
        ('kind = "imitate" }', 'kind = "imitate", wieght = 0.5 }', "'wieght'. Did you mean 'weight'?"),
        ('kind = "imitate" }', 'kind = "reward" }', "[arms.sft]: source 'dataset' with signal 'reward': "),
        ("update = { lr = 1e-4 }", 'locality = { kind = "ewcc" }', "arms.rl.locality: unknown locality 'ewcc'."),
        ("update = { lr = 1e-4 }", 'teacher = "sft" #', "[arms.rl]: teacher 'sft' is never asked"),
        ('"rollout", num_prompts = 2, samples', '"log", arm = "sfft" } #', "unknown arm to replay 'sfft'. Did"),
        ('"rollout", num_prompts = 2, samples', '"log", arm = "rl" } #', "an arm cannot replay itself; name"),
        (
            '"rollout", num_prompts = 2, samples',
            '"log", arm = "base" } #',
            "source 'log' of arm 'base': the base model is not trained and has no record; name another arm of the "
            "study (sft, opd), or",
        ),
    ],
)  # fmt: skip
def test_what_a_plan_refuses_of_an_arm_is_named_with_its_line(tmp_path, old, new, words):
    text = replaced(STUDY, old, new)
    message = refusal(tmp_path, text)
    assert f"small.toml:{line_of(text, new)}: " in message
    assert words in message


def test_a_key_of_a_table_of_its_own_is_named_with_its_own_line(tmp_path):
    text = replaced(STUDY, 'source = { kind = "dataset", num_trajectories = 8 }\n', "")
    text += '\n[arms.sft.source]\nkind = "dataset"\nnum_trajectoris = 8\n'
    assert f"small.toml:{line_of(text, 'num_trajectoris')}: unknown key in [arms.sft.source]" in refusal(tmp_path, text)


def test_a_table_that_arms_share_is_named_with_its_line(tmp_path):
    text = replaced(STUDY, 'source = { kind = "dataset", num_trajectories = 8 }\n', "")
    text += '\n[shared.source]\nkind = "dataset"\nnum_trajectoris = 8\n'
    assert f"small.toml:{line_of(text, 'num_trajectoris')}: unknown key in [arms.sft.source]" in refusal(tmp_path, text)


def test_an_arm_of_a_grid_is_named_with_the_level_that_set_the_key(tmp_path):
    text = replaced(GRID, "num_prompts = 8", "num_promts = 8")
    message = refusal(tmp_path, text)
    place = f"small.toml:{line_of(text, 'num_promts')} (level 'own' of axis 'source'): "
    assert place + "unknown key in [arms.own.imitate.1e-4.source]: 'num_promts'" in message
    text = replaced(GRID, 'reverse-kl = { signal = { kind = "reverse_kl" }', 'pg = { signal = { kind = "reward" }')
    message = refusal(tmp_path, replaced(text, ', teacher = "sft"', ""))
    assert f"small.toml:{line_of(text, 'pg =')} (level 'pg' of axis 'signal'): [arms.data.pg.1e-4]: source" in message


@pytest.mark.parametrize(
    ("text", "override", "words"),
    [
        (STUDY, "opd.source.num_promts=3", "unknown key in [arms.opd.source]: 'num_promts'."),
        (STUDY, "sft.source.kind=datset", "arms.sft.source: unknown source 'datset'."),
        (STUDY, "study.factors=['sorce']", "unknown factor 'sorce'. Did you mean 'source'?"),
        (STUDY, "sft.locality={ kind = 'ewcc' }", "arms.sft.locality: unknown locality 'ewcc'."),
        (
            GRID,
            "grid.axes.source.own.source.num_promts=3",
            "unknown key in [arms.own.imitate.1e-4.source]: 'num_promts'.",
        ),
        (GRID, "grid.axes.lr.1e-4.update.lrr=3", "unknown key in [arms.data.imitate.1e-4.update]: 'lrr'."),
    ],
)
def test_what_an_override_set_is_named_by_it(tmp_path, text, override, words):
    key = override.partition("=")[0]
    assert refusal(tmp_path, text, override).startswith(f"--set {key}: {words}")


@pytest.mark.parametrize(
    ("old", "new"),
    [('arms = ["sft"]', 'arms = ["stf"]'), ('than = "base"', 'than = "bse"'), ('"forgetting"', '"forgeting"')],
)
def test_a_hypothesis_is_named_with_its_own_line(tmp_path, old, new):
    text = STUDY + HYPOTHESIS + replaced(HYPOTHESIS, old, new)
    assert f"small.toml:{line_of(text, new)}: " in refusal(tmp_path, text)


TEXT = """\
[shared]
update = { lr = 1 }
[arms.a]
source.kind = "x"
[arms.b.update]
lr = 2
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["arms", "a"], 3), (["arms", "a", "source"], 4), (["arms", "a", "source", "kind"], 4),
        (["arms", "a", "teacher"], 3), (["arms", "a", "update", "lr"], 2), (["arms", "b", "update", "lr"], 6),
        (["arms", "b"], 5), (["shared", "update"], 2), (["arms"], 3), (["study", "name"], 0), ([], 0),
    ],
)  # fmt: skip
def test_a_place_is_the_line_of_the_deepest_key_that_the_text_holds(keys, line):
    raw = {
        "shared": {"update": {"lr": 1}},
        "arms": {"a": {"source": {"kind": "x"}}, "b": {"update": {"lr": 2}}},
    }
    place = Location(Path("x.toml"), TEXT, raw)
    assert place.of(keys) == (f"x.toml:{line}" if line else "x.toml")
