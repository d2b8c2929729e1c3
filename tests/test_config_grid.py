"""A grid of arms: what it expands to, how it is overridden, and what is refused."""

from __future__ import annotations

import re

import pytest
from study_fixture import GRID, line_of, small_plan, write_study

from statewise.config.overrides import split_key
from statewise.config.read import read_study, to_toml
from statewise.errors import UsageError
from statewise.signals import ReverseKL
from statewise.states.rollout import ModelRollout


def read(folder, text=GRID, *overrides):
    return read_study(write_study(folder, text), overrides)


def refusal(folder, text, *overrides):
    with pytest.raises(UsageError) as caught:
        read(folder, text, *overrides)
    return str(caught.value)


def changed(old, new):
    assert old in GRID
    return GRID.replace(old, new, 1)


def with_skip(*patterns):
    return changed("[grid]\n", f"[grid]\nskip = {list(patterns)}\n")


def test_arms_are_the_product_of_the_axes_after_those_written_out(tmp_path):
    config = read(tmp_path)
    assert list(config.arms) == [
        "sft",
        "data.imitate.1e-4", "data.imitate.1e-3", "data.reverse-kl.1e-4", "data.reverse-kl.1e-3",
        "own.imitate.1e-4", "own.imitate.1e-3", "own.reverse-kl.1e-4", "own.reverse-kl.1e-3",
    ]  # fmt: skip
    arm = config.arms["own.reverse-kl.1e-3"]
    assert arm.levels == {"source": "own", "signal": "reverse-kl", "lr": "1e-3"}
    assert arm.source == ModelRollout(num_prompts=8)
    assert ([one.signal for one in arm.signal], arm.teacher) == ([ReverseKL()], "sft")
    assert (arm.update.lr, arm.update.num_updates) == (1e-3, 4)  # the latter from [shared]
    assert arm.label == "reverse-kl on own, lr 1e-3"
    assert config.arms["sft"].levels == {}


def test_without_a_template_the_label_joins_the_levels(tmp_path):
    config = read(tmp_path, changed('label = "{signal} on {source}, lr {lr}"\n', ""))
    assert config.arms["own.imitate.1e-4"].label == "own · imitate · 1e-4"


def test_axes_may_set_different_keys_of_one_table_and_the_same_value(tmp_path):
    text = changed("{ update = { lr = 1e-4 } }", "{ update = { lr = 1e-4 }, source = { temperature = 0.5 } }")
    config = read(tmp_path, text.replace("data = {", "#").replace('"1e-3" =', "#"))
    assert config.arms["own.imitate.1e-4"].source == ModelRollout(num_prompts=8, temperature=0.5)
    text = changed('imitate" } }', 'imitate" }, update = { lr = 1e-4 } }').replace('"1e-3" =', "#")
    assert read(tmp_path, text).arms["own.imitate.1e-4"].update.lr == 1e-4


def test_a_resolved_grid_reads_back_as_itself_and_has_no_grid(tmp_path):
    config = read(tmp_path, with_skip("own.imitate.*"))
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config), encoding="utf-8")
    assert "[grid" not in again.read_text()
    assert read_study(again) == config


def test_skipped_cells_are_left_out_and_may_be_written_by_hand(tmp_path):
    text = with_skip("own.imitate.*", "*.reverse-kl.1e-4") + (
        '\n[arms.stand-in]\nlevels = { source = "own", signal = "imitate", lr = "1e-4" }\n'
        'source = { kind = "rollout", num_prompts = 3 }\nsignal = { kind = "imitate" }\n'
    )
    config = read(tmp_path, text)
    assert list(config.arms) == [
        "sft", "stand-in", "data.imitate.1e-4", "data.imitate.1e-3", "data.reverse-kl.1e-3", "own.reverse-kl.1e-3",
    ]  # fmt: skip
    assert config.arms["stand-in"].levels["source"] == "own"


def test_levels_are_no_factor_and_enter_no_fingerprint(tmp_path):
    plan = small_plan(tmp_path, text=GRID)
    for old, new in (("data = {", "gold = {"), ('label = "{signal}', 'label = "{lr}')):
        text = GRID.replace(old, new)
        renamed = small_plan(tmp_path, text=text)
        same = {job.fingerprint for job in plan.jobs if job.arm.startswith(("own", "sft", "base"))}
        assert same <= {job.fingerprint for job in renamed.jobs}
    # The same arms written out, with and without their levels.
    text = to_toml(read(tmp_path))
    levels = {arm: dict(section.levels) for arm, section in read(tmp_path).arms.items()}
    without = small_plan(tmp_path, text=text)
    assert without.fingerprint == plan.fingerprint
    for cell in levels.values():
        for axis, level in cell.items():
            text = text.replace(f'{axis} = "{level}"\n', "")
    bare = small_plan(tmp_path, text=text)
    assert all(not arm.levels for arm in bare.config.arms.values())
    assert bare.fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    ("override", "is_set"),
    [
        ("grid.axes.lr.1e-4.update.lr=2e-4", lambda c: c.arms["own.imitate.1e-4"].update.lr == 2e-4),
        ('grid.axes.lr."1e-4".update.lr=2e-4', lambda c: c.arms["own.imitate.1e-4"].update.lr == 2e-4),
        (
            "'grid'.axes.source.own.source.num_prompts=5",
            lambda c: c.arms["own.imitate.1e-4"].source.num_prompts == 5,
        ),
        ("grid.axes.lr={ '0.5' = { update = { lr = 0.5 } } }", lambda c: c.arms["own.imitate.0.5"].update.lr == 0.5),
        ("grid.axes.lr.'0.5'={ update = { lr = 0.5 } }", lambda c: c.arms["own.imitate.0.5"].update.lr == 0.5),
        ("grid.skip=['own.*']", lambda c: len(c.arms) == 5),
        ("grid.label={lr}", lambda c: c.arms["own.imitate.1e-4"].label == "1e-4"),
        ("sft.update.lr=1e-5", lambda c: c.arms["sft"].update.lr == 1e-5),
        ("shared.update.num_updates=9", lambda c: {arm.update.num_updates for arm in c.arms.values()} == {9}),
    ],
)
def test_an_override_sets_a_key_of_the_grid(tmp_path, override, is_set):
    assert is_set(read(tmp_path, GRID, override))


def test_the_quick_size_may_shrink_the_grid(tmp_path):
    text = changed('name = "small"\n', 'name = "small"\nquick = ["grid.skip=[\'own.*\']"]\n')
    assert len(read_study(write_study(tmp_path, text), is_quick=True).arms) == 5


def test_a_dotted_arm_is_overridden_in_quotes(tmp_path):
    text = GRID.replace("[arms.sft]", '[arms."s.f"]').replace('"sft"', '"s.f"')
    assert read(tmp_path, text, '"s.f".update.lr=1e-5').arms["s.f"].update.lr == 1e-5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "own.imitate.1e-4.update.lr=1",
            "unknown arm 'own'. Known: grid, sft, shared, study. Arms of the grid are set by their levels: "
            "grid.axes.<axis>.<level>.<key>=value.",
        ),
        ("'own.imitate.1e-4'.update.lr=1", "unknown arm 'own.imitate.1e-4'."),
        ("grid.axes.sorce.own.teacher=sft", "unknown axis 'sorce'. Did you mean 'source'? Known: lr, signal, source."),
        ("grid.axes.source.owm.teacher=sft", "unknown level of axis 'source': 'owm'. Did you mean 'own'?"),
        ("grid.axes.source.own=3", "level 'own' of axis 'source' must be a partial arm table"),
        ("grid.axes.source=3", "axis 'source' must be a table of levels"),
        ("grid.axes=3", "[grid] needs axes"),
        ("grid.skips=[]", "unknown key in [grid]: 'skips'. Did you mean 'skip'?"),
        ("grid.axes.lr..x=3", "expected arm.key=value"),
        ("grid.axes.lr.'1e-4.x=3", "expected arm.key=value"),
        ("grid=3", "expected arm.key=value"),
    ],
)
def test_an_override_of_the_grid_that_cannot_be_is_refused(tmp_path, override, words):
    assert words in refusal(tmp_path, GRID, override)


def test_an_override_of_a_grid_that_is_not_there_is_refused(tmp_path):
    text = GRID.partition("[grid]")[0]
    assert "--set grid.skip=[]: the study has no [grid]" in refusal(tmp_path, text, "grid.skip=[]")
    assert "unknown arm 'slt'. Did you mean 'sft'? Known: sft, shared, study." in refusal(tmp_path, text, "slt.label=x")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'teacher = "sft" }',
            'teacher = "sft", update = { lr = 2e-4 } }',
            "axes 'signal' and 'lr' both set 'update.lr', to different values; a key belongs to one axis",
        ),
        ("{ update = { lr = 1e-4 } }", "{ source = 3 }", "axes 'source' and 'lr' both set 'source'"),
        ("{ update = { lr = 1e-4 } }", "{ label = 'x' }", "level '1e-4' of axis 'lr' sets 'label', which the grid"),
        ("{ update = { lr = 1e-4 } }", "{ levels = {} }", "level '1e-4' of axis 'lr' sets 'levels'"),
        ("{ update = { lr = 1e-4 } }", "1e-4", "level '1e-4' of axis 'lr' must be a partial arm table, e.g. {"),
        ("own = {", "Own = {", "level name 'Own' must match ^[a-z0-9]"),
        ("{lr}", "{rl}", "unknown axis in the label: 'rl'. Did you mean 'lr'?"),
        ("{lr}", "{lr:>9}", "unknown axis in the label: 'lr:>9'. Did you mean 'lr'?"),
        ("{lr}", "{lr.real}", "unknown axis in the label: 'lr.real'"),
        ("{lr}", "{lr", "expected '}' before end of string"),
        ('label = "{signal} on {source}, lr {lr}"', "label = 3", "grid.label must be a text (got 3)"),
        ("label =", "lable =", "unknown key in [grid]: 'lable'. Did you mean 'label'?"),
        ("num_prompts = 8 }", "num_prompts = 8 }, updat = { lr = 1 }", "[arms.own.imitate.1e-4]: 'updat'"),
        ("{ lr = 1e-4 }", "{ lr = 0 }", "arms.data.imitate.1e-4.update.lr: Input should be greater than 0"),
        ("num_updates = 4", "num_updates = 0", "update.num_updates: Input should be greater than or equal to 1"),
        ('teacher = "sft" }', 'teacher = "stf" }', "unknown teacher 'stf'. Did you mean 'sft'?"),
    ],
)  # fmt: skip
def test_what_a_grid_cannot_be_is_refused_with_the_line_where_it_stands(tmp_path, old, new, words):
    text = changed(old, new)
    message = refusal(tmp_path, text)
    assert words in message
    where = line_of(text, '"1e-4" =') if "both set" in words else line_of(text, new)
    assert re.search(rf"small\.toml:{where}( \(level '\S+' of axis '\S+'\))?: ", message)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (with_skip("onw.*"), "unknown arm in grid.skip: 'onw.*'."),
        (with_skip("own.imitate.1e-5"), "Did you mean 'own.imitate.1e-4'?"),
        (with_skip("*"), "skips every arm of the grid"),
        (changed("[grid]\n", "[grid]\nskip = 'own.*'\n"), "grid.skip must be a list of patterns (got 'own.*')"),
        ("grid = 3\n" + GRID.partition("[grid]")[0], "'grid' must be a table"),
        (GRID.partition("[grid.axes")[0], "[grid] needs axes; write a [grid.axes.<axis>]"),
        (GRID + "\n[grid.axes.seed]\n", "axis 'seed' must be a table of levels"),
        (GRID.replace("axes.lr", "axes.Lr").replace("{lr}", ""), "axis name 'Lr' must match"),
        ("arms = 3\n" + GRID.replace("[arms.sft]", "[armz]"), "'arms' must be a table"),
        (
            GRID.replace("[arms.sft]", '[arms."own.imitate.1e-4"]'),
            "the grid makes this arm as well, as 'own.imitate.1e-4'; add that to grid.skip to keep",
        ),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_expanded_is_refused(tmp_path, text, words):
    assert words in refusal(tmp_path, text)


def test_two_cells_of_one_name_are_refused(tmp_path):
    text = GRID.partition("[grid]")[0] + ('[grid.axes.a]\n"x" = {}\n"x.y" = {}\n[grid.axes.b]\n"y.z" = {}\n"z" = {}\n')
    assert "two cells are called 'x.y.z'; rename a level that has a '.'" in refusal(tmp_path, text)


STAND_IN = '\n[arms.x]\nsource = { kind = "dataset" }\nsignal = { kind = "imitate" }\n'


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ('{ sorce = "own" }', "unknown axis 'sorce'. Did you mean 'source'?"),
        ('{ source = "won" }', "unknown level of axis 'source': 'won'. Did you mean 'own'?"),
        ('{ source = "own" }', "the levels of arm 'x' lack the axis 'signal'"),
        ('{ source = "own", signal = "imitate", lr = "1e-4" }', "the grid makes this arm as well, as 'own.imitate.1e"),
        ("3", "arm 'x' or its levels are no table (got 3)"),
    ],
)  # fmt: skip
def test_levels_written_by_hand_must_be_a_free_cell(tmp_path, levels, words):
    text = GRID + STAND_IN + f"levels = {levels}\n"
    message = refusal(tmp_path, text)
    assert words in message
    assert f"small.toml:{line_of(text, '[arms.x]' if 'as well' in words else 'levels =')}: " in message


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ('{ a = "x" }', '{ a = "x" }', "arms 'one' and 'two' have the same levels; a cell is one arm"),
        (
            '{ a = "x" }',
            '{ b = "x" }',
            "arm 'two' has levels of b, arm 'one' of a; the arms of a study lie on the same",
        ),
        ("3", "{}", "levels: Input should be a valid dictionary"),
    ],
)
def test_levels_without_a_grid_are_one_design_too(tmp_path, first, second, words):
    text = GRID.partition("[grid]")[0]
    text += STAND_IN.replace("arms.x", "arms.one") + f"levels = {first}\n"
    text += STAND_IN.replace("arms.x", "arms.two") + f"levels = {second}\n"
    assert words in refusal(tmp_path, text)


def test_a_part_of_a_dotted_key_may_be_quoted():
    assert split_key('a."b.c".d') == ["a", "b.c", "d"]
    assert split_key("a.'b.c'") == ["a", "b.c"]
    assert split_key("a . b") == ["a", "b"]
    for malformed in ("", "a.", "a..b", 'a."b', '"a"b.c'):
        assert "" in split_key(malformed)
