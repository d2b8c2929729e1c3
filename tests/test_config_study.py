"""Study files: what is refused, with which words, and that a resolved study reads back as itself."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field
from study_fixture import HYPOTHESIS, STUDY, line_of, write_study

from statewise.assets import STUDIES
from statewise.config.read import read_study, to_toml
from statewise.config.refusals import read_kind
from statewise.errors import UsageError
from statewise.kind import Kind, Kinds
from statewise.states.dataset import Dataset
from statewise.states.ramp import Ramp
from statewise.states.rollout import ModelRollout


def refusal(folder, text, *overrides):
    """The message with which the study `text` is refused."""
    with pytest.raises(UsageError) as caught:
        read_study(write_study(folder, text), overrides)
    return str(caught.value)


def replaced(old: str, new: str) -> str:
    assert old in STUDY
    return STUDY.replace(old, new, 1)


def test_a_study_is_read_with_its_defaults(tmp_path):
    config = read_study(write_study(tmp_path))
    assert list(config.arms) == ["sft", "opd", "rl"]
    assert config.shared.target == "pocket_math"
    assert config.arms["sft"].update.lr == 3e-4
    assert config.arms["sft"].adapter.kind == "full"


@pytest.mark.parametrize(
    ("old", "new", "key", "nearest"),
    [
        ("limit = 12", "limt = 12", "limt", "limit"),
        ("seeds = [0, 1]", "seed = [0]", "seed", "seeds"),
        ("[shared.evaluation]", "[shared.evalution]", "evalution", "evaluation"),
        ('teacher = "sft"', 'techer = "sft"', "techer", "teacher"),
        ("update = { lr = 1e-4 }", "update = { lrr = 1e-4 }", "lrr", "lr"),
    ],
)
def test_an_unknown_key_is_named_with_line_and_nearest_word(tmp_path, old, new, key, nearest):
    text = replaced(old, new)
    message = refusal(tmp_path, text)
    assert f"small.toml:{line_of(text, key)}: unknown key" in message
    assert f"{key!r}. Did you mean {nearest!r}? Known: " in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[study]", "[studdy]", "unknown section: 'studdy'. Did you mean 'study'?"),
        ("[arms.sft]", "[arm.sft]", "unknown section: 'arm'. Did you mean 'arms'?"),
        (
            "[arms.sft]",
            "[gird.axes.lr]\n[arms.sft]",
            "unknown section: 'gird'. Did you mean 'grid'? Known: arms, data, grid,",
        ),
        ("[arms.sft]", "[[hypothesis]]\n[arms.sft]", "unknown section: 'hypothesis'. Did you mean 'hypotheses'?"),
        ("[study]", 'nmae = "x"\n[study]', "unknown key before [study]: 'nmae'."),
    ],
)
def test_an_unknown_section_is_named_with_line_and_nearest_word(tmp_path, old, new, words):
    text = replaced(old, new)
    message = refusal(tmp_path, text)
    assert f"small.toml:{line_of(text, new.partition(chr(10))[0])}: " in message
    assert words in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('signal = {', 'signal = "imitate" #', 'write signal = { kind = "imitate" } (got \'imitate\')'),
        ("signal = {", "signal = ['imitate'] #", "signal.0: must be a table; write signal = { kind = \"imitate\" }"),
        ("lr = 1e-4 }", "lr = 1e-4, budget = 3000 }", 'budget = { unit = "loss_tokens", amount = 3000 } (got 3000)'),
        ("update = { lr = 1e-4 }", "update = 3", "write update = { num_updates = ..., lr = ... } (got 3)"),
        ("update = { lr", "adapter = 'lora'\nupdate = { lr", 'write adapter = { kind = "lora" } (got \'lora\')'),
        ("update = { lr", "locality = 'ewc'\nupdate = { lr", 'write locality = { kind = "ewc" } (got \'ewc\')'),
        ("lr = 1e-4 }", "lr = 1e-4, betas = [1.5, 0.9] }", "update.betas.0: Input should be less than 1 (got 1.5)"),
        ("lr = 1e-4 }", "lr = 1e-4, betas = [0.9, -1] }", "update.betas.1: Input should be greater than or equal to 0"),
        ("lr = 1e-4 }", "lr = -1 }", "arms.rl.update.lr: Input should be greater than 0"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_told_with_what_to_write(tmp_path, old, new, words):
    text = replaced(old, new)
    message = refusal(tmp_path, text)
    assert words in message
    assert f"small.toml:{line_of(text, new.partition(chr(10))[0])}: " in message


def test_a_byte_order_mark_is_no_part_of_a_study(tmp_path):
    path = write_study(tmp_path, "\ufeff" + STUDY)
    assert read_study(path) == read_study(write_study(tmp_path, STUDY))


@pytest.mark.parametrize("name", ["shared", "study", "grid"])
def test_a_name_that_an_override_could_not_reach_is_refused(tmp_path, name):
    text = replaced("[arms.rl]", f"[arms.{name}]")
    assert f"small.toml:{line_of(text, f'arms.{name}]')}: arm name {name!r} must" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.update.lrr=1"], "--set sft.update.lrr: unknown key in [arms.sft.update]: 'lrr'. Did you mean 'lr'?"),
        (["sft.updat.lr=1"], "--set sft.updat.lr: unknown key in [arms.sft]: 'updat'. Did you mean 'update'?"),
        (["sft.update={ lrr = 1 }"], "--set sft.update: unknown key in [arms.sft.update]: 'lrr'."),
        (["shared.update.lr=-1"], "--set shared.update.lr: arms.sft.update.lr: Input should be greater than 0"),
        (["sft.update.lr=-1", "sft.update.lr=-2"], "--set sft.update.lr: arms.sft.update.lr"),
        (["opd.teacher=stf"], "--set opd.teacher: unknown teacher 'stf'. Did you mean 'sft'?"),
        (["study.seeds=[1, 1]"], "--set study.seeds: seeds: 1 occurs twice"),
    ],
)
def test_a_value_that_an_override_set_is_not_blamed_on_the_file(tmp_path, overrides, words):
    message = refusal(tmp_path, STUDY, *overrides)
    assert message.startswith(words)


def test_a_key_of_the_file_is_blamed_on_the_file_beside_overrides(tmp_path):
    text = replaced("num_updates = 4", "num_updates = 0")
    assert f"small.toml:{line_of(text, 'num_updates')}: " in refusal(tmp_path, text, "shared.update.lr=1e-3")


def test_a_value_of_the_quick_size_is_blamed_on_it(tmp_path):
    path = write_study(tmp_path, replaced("seeds = [0, 1]", 'quick = ["sft.update.lrr=1"]'))
    with pytest.raises(UsageError, match=r"small\.toml:3: study\.quick sft\.update\.lrr: unknown key"):
        read_study(path, is_quick=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_updates = 4", "num_updates = 0", "num_updates: Input should be greater than or equal to 1 (got 0)"),
        ("num_updates = 4", "num_updates = 'many'", "num_updates: Input should be a valid integer"),
        ("num_updates = 4", "num_updates = '4'", "num_updates: Input should be a valid integer"),
        ("num_updates = 4", "num_updates = true", "num_updates: Input should be a valid integer"),
        ("num_updates = 4", "num_updates = 4.5", "num_updates: Input should be a valid integer"),
        ("lr = 3e-4", "lr = -1e-3", "lr: Input should be greater than 0 (got -0.001)"),
        ("lr = 3e-4", "lr = true", "lr: Input should be a valid number"),
        ("lr = 3e-4", "lr = nan", "lr: Input should be a finite number"),
        ("lr = 3e-4", "lr = inf", "lr: Input should be a finite number"),
        ("lr = 3e-4", "lr = 1e-3\nschedule = 'cosin'", "schedule: Input should be 'constant', 'linear' or 'cosine'"),
        ("limit = 12", "limit = 1", "limit: Input should be greater than or equal to 2"),
        ("seeds = [0, 1]", "seeds = []", "seeds: List should have at least 1 item"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds: 0 occurs twice"),
        ('name = "small"', 'name = "../up"', "name: String should match pattern"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_the_line_where_it_stands(tmp_path, old, new, words):
    text = replaced(old, new)
    message = refusal(tmp_path, text)
    assert words in message
    key = words.partition(":")[0]
    assert f"small.toml:{line_of(text, f'{key} =')}: " in message


def test_a_missing_key_is_named(tmp_path):
    assert "[arms.sft.update] needs the key 'lr'" in refusal(tmp_path, replaced("\nlr = 3e-4", ""))
    assert "[arms.sft] needs the key 'signal'" in refusal(
        tmp_path, replaced('num_trajectories = 8 }\nsignal = { kind = "imitate" }', "num_trajectories = 8 }")
    )
    assert refusal(tmp_path, STUDY[STUDY.index("[shared") :]).endswith("small.toml: needs a section [study]")
    message = refusal(tmp_path, "[study]\nname = 'x'\n")
    assert message.endswith("small.toml: has no arms; add [arms.<name>] with a source and a signal, or a [grid]")


def test_a_syntax_error_is_named_with_its_line(tmp_path):
    assert re.search(r"small\.toml: not valid TOML: .*line 4", refusal(tmp_path, '[study]\nname = "x"\nseeds = [0,\n='))


def test_a_key_given_twice_is_refused(tmp_path):
    assert "not valid TOML: Cannot overwrite a value" in refusal(
        tmp_path, replaced("limit = 12", "limit = 12\nlimit = 13")
    )


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "small.toml"
    path.write_bytes(b'[study]\nname = "\xff"\n')
    with pytest.raises(UsageError, match="not UTF-8 text"):
        read_study(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml: cannot read the study file \(No such file or directory\)"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot read the study file"):
        read_study(tmp_path)


@pytest.mark.parametrize("text", ["arms = 3\n", "[arms]\nsft = 3\n", "shared = 1\n"])
def test_a_value_in_the_place_of_a_table_is_refused(tmp_path, text):
    for overrides in ((), ("sft.update.lr=1",), ("shared.model=x",)):
        assert "table" in refusal(tmp_path, text, *overrides) or overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("rl.update.lr=3e-5", lambda c: c.arms["rl"].update.lr == 3e-5),
        ("rl.update.lr = 3e-5", lambda c: c.arms["rl"].update.lr == 3e-5),
        ("sft.update.num_updates=7", lambda c: c.arms["sft"].update.num_updates == 7),
        ("sft.label=mild SFT", lambda c: c.arms["sft"].label == "mild SFT"),
        ("sft.label=", lambda c: c.arms["sft"].label == ""),
        ('sft.label="a = b"', lambda c: c.arms["sft"].label == "a = b"),
        (
            "sft.source={ kind = 'dataset', num_trajectories = 3 }",
            lambda c: c.arms["sft"].source.num_trajectories == 3,
        ),
        ("sft.update.betas=[0.8, 0.9]", lambda c: c.arms["sft"].update.betas == (0.8, 0.9)),
        ("shared.update.lr=1e-5", lambda c: (c.arms["sft"].update.lr, c.arms["rl"].update.lr) == (1e-5, 1e-4)),
        ("shared.evaluation.limit=50", lambda c: c.shared.evaluation.limit == 50),
        ("shared.retention=['pocket_myths']", lambda c: c.shared.retention == ["pocket_myths"]),
        ("study.seeds=[3, 4]", lambda c: c.study.seeds == [3, 4]),
    ],
)
def test_an_override_sets_a_key(tmp_path, override, read):
    assert read(read_study(write_study(tmp_path), [override]))


def test_the_last_of_two_overrides_counts(tmp_path):
    config = read_study(write_study(tmp_path), ["sft.update.lr=1e-5", "sft.update.lr=1e-6"])
    assert config.arms["sft"].update.lr == 1e-6


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr", "--set lr: expected arm.key=value"),
        ("sft.update.lr", "--set sft.update.lr: expected arm.key=value"),
        ("sft=1", "--set sft=1: expected arm.key=value"),
        ("sft..lr=1", "--set sft..lr=1: expected arm.key=value"),
        ("stf.update.lr=1", "--set stf.update.lr=1: unknown arm 'stf'. Did you mean 'sft'?"),
        ("sft.update.lrr=1", "unknown key in [arms.sft.update]: 'lrr'. Did you mean 'lr'?"),
        ("sft.update.lr=fast", "lr: Input should be a valid number"),
        ("sft.source.kind.x=1", "--set sft.source.kind.x=1: 'kind' is a value, not a table"),
        ("arms.sft.update.lr=1", "an arm is named without 'arms.' before it; write --set sft.update.lr=1"),
        ("hypotheses.x=1", "--set hypotheses.x=1: unknown arm 'hypotheses'"),
    ],
)
def test_an_override_that_cannot_be_is_refused(tmp_path, override, words):
    assert words in refusal(tmp_path, STUDY, override)


def test_shared_tables_are_defaults_of_every_arm(tmp_path):
    text = STUDY + "\n[shared.adapter]\nkind = 'lora'\nrank = 4\n"
    config = read_study(write_study(tmp_path, text))
    assert {arm.adapter.rank for arm in config.arms.values()} == {4}
    assert config.arms["rl"].update.num_updates == 4  # beside its own lr
    assert config.arms["rl"].update.lr == 1e-4


SHARED_SOURCE = """
[shared.source]
kind = "rollout"
num_prompts = 5
max_new_tokens = 9
"""


def test_a_source_of_the_same_kind_inherits_the_shared_fields(tmp_path):
    config = read_study(write_study(tmp_path, STUDY + SHARED_SOURCE))
    assert config.arms["opd"].source == ModelRollout(num_prompts=8, max_new_tokens=9)


def test_a_source_of_another_kind_inherits_nothing(tmp_path):
    config = read_study(write_study(tmp_path, STUDY + SHARED_SOURCE))
    assert config.arms["sft"].source == Dataset(num_trajectories=8)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", ".hidden", "Sft", "base", "", "a b", "a\\n"])
def test_names_that_are_no_safe_folder_names_are_refused(tmp_path, name):
    assert "must match" in refusal(
        tmp_path, replaced("[arms.sft]", f'[arms."{name}"]').replace('teacher = "sft"\n', "")
    )


def test_a_teacher_must_be_another_arm(tmp_path):
    message = refusal(tmp_path, replaced('teacher = "sft"', 'teacher = "stf"'))
    assert f"small.toml:{line_of(STUDY, 'teacher = ')}: unknown teacher 'stf'. Did you mean 'sft'?" in message
    assert "unknown teacher 'opd'" in refusal(tmp_path, replaced('teacher = "sft"', 'teacher = "opd"'))
    assert (
        read_study(write_study(tmp_path, replaced('teacher = "sft"', 'teacher = "base"'))).arms["opd"].teacher == "base"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('arms = ["sft"]', 'arms = ["stf"]', "unknown arm 'stf'. Did you mean 'sft'?"),
        ('than = "base"', 'than = "opdd"', "unknown arm 'opdd'. Did you mean 'opd'?"),
        ('"more"', '"bigger"', "Input should be 'more' or 'less'"),
        ('arms = ["sft"]', "arms = []", "List should have at least 1 item"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("section", ["hypotheses", "phenomena"])  # the latter as it was called before
def test_a_hypothesis_names_only_what_there_is(tmp_path, old, new, words, section):
    text = STUDY + HYPOTHESIS.replace("hypotheses", section).replace(old, new)
    line = text[: text.index(new)].count("\n") + 1
    assert f"{words}" in (told := refusal(tmp_path, text))
    assert f"small.toml:{line}: " in told


def test_hypotheses_have_one_name_in_a_study(tmp_path):
    text = STUDY + HYPOTHESIS + HYPOTHESIS.replace("hypotheses", "phenomena")
    assert "has 'phenomena' and 'hypotheses', which are the same section; keep the latter" in refusal(tmp_path, text)


def test_a_resolved_study_reads_back_as_itself(tmp_path):
    config = read_study(write_study(tmp_path, STUDY + HYPOTHESIS))
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config), encoding="utf-8")
    assert read_study(again) == config


def test_the_built_in_studies_read_back_as_themselves(tmp_path):
    for path in STUDIES.glob("*.toml"):
        config = read_study(path)
        again = tmp_path / path.name
        again.write_text(to_toml(config), encoding="utf-8")
        assert read_study(again) == config


FINITE = {"allow_nan": False, "allow_infinity": False}
UPDATES = st.fixed_dictionaries(
    {
        "num_updates": st.integers(1, 10**9),
        "lr": st.floats(min_value=0, exclude_min=True, **FINITE),
        "schedule": st.sampled_from(["constant", "linear", "cosine"]),
        "warmup_updates": st.integers(0, 10**6),
        "betas": st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
        "weight_decay": st.floats(min_value=0, **FINITE),
        "clip_norm": st.floats(min_value=0, exclude_min=True, **FINITE),
        "reduction": st.sampled_from(["states", "trajectories"]),
        "max_tokens": st.integers(1, 10**9),
        "checkpoint_every": st.integers(1, 10**6),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(update=UPDATES, label=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_update_section_reads_back_as_itself(tmp_path, update, label):
    config = read_study(write_study(tmp_path))
    arm = config.arms["sft"].model_copy(
        update={"update": type(config.arms["sft"].update).model_validate(update), "label": label}
    )
    config = config.model_copy(update={"arms": {"sft": arm}})
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config), encoding="utf-8")
    assert read_study(again) == config


class Thing(Kind):
    """A room of one kind, for these tests."""

    registry = Kinds("thing", "statewise.things")


class Widget(Thing):
    kind: Literal["widget"] = "widget"
    size: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(le=1)] | Literal["uniform"] | Ramp = 0.5


Thing.registry.add(Widget)


def test_a_kind_is_built_from_its_table():
    assert read_kind(Thing, {"kind": "widget", "size": 3}, "here") == Widget(size=3)
    assert read_kind(Thing, {"kind": "widget", "size": 3, "share": 1}, "here") == Widget(size=3, share=1.0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("widget", r"here: thing: must be a table"),
        ({}, r"here: thing: has no 'kind'\. Known: widget\."),
        ({"kind": "wigdet"}, r"here: thing: unknown thing 'wigdet'\. Did you mean 'widget'\?"),
        ({"kind": ["widget"]}, "here: thing: unknown thing"),
        ({"kind": "widget", "sise": 3}, r"here: unknown key: 'sise'\. Did you mean 'size'\?"),
        ({"kind": "widget"}, "here: Thing needs the key 'size'"),
        ({"kind": "widget", "size": 0}, r"size: Input should be greater than or equal to 1 \(got 0\)"),
        ({"kind": "widget", "size": "3"}, "size: Input should be a valid integer"),
        ({"kind": "widget", "size": True}, "size: Input should be a valid integer"),
        (
            {"kind": "widget", "size": 3, "share": "unifrom"},
            "share: Input should be a valid number, 'uniform' or a table with start, end, over, shape .got 'unifrom'",
        ),
        (
            {"kind": "widget", "size": 3, "share": 1.5},
            "share: Input should be less than or equal to 1, 'uniform' or a table with start, end, over, shape",
        ),
        (
            {"kind": "widget", "size": 3, "share": {"start": 0.5, "ends": 1}},
            r"here: unknown key in \[share\]: 'ends'\. Did you mean 'end'\? Known: end, over, shape",
        ),
        (
            {"kind": "widget", "size": 3, "share": {"start": 0.5, "end": 1, "ovr": 1}},
            r"unknown key in \[share\]: 'ovr'\. Did you mean 'over'\?",
        ),
        ({"kind": "widget", "size": 3, "share": {"start": 0.5}}, r"\[share\] needs the key 'end'"),
        (
            {"kind": "widget", "size": 3, "share": {"start": 0.5, "end": 2}},
            r"share\.end: Input should be less than or equal to 1 \(got 2",
        ),
        ({"kind": "widget", "size": 3, "share": float("nan")}, "share: Input should be a finite number"),
    ],
)
def test_a_kind_that_cannot_be_built_is_refused(table, words):
    with pytest.raises(UsageError, match=words):
        read_kind(Thing, table, "here")


def test_a_mistyped_weight_of_a_signal_is_told_the_right_word(tmp_path):
    text = replaced('signal = { kind = "imitate" }', 'signal = { kind = "imitate", wieght = 0.5 }')
    assert "unknown key in [arms.sft.signal]: 'wieght'. Did you mean 'weight'?" in refusal(tmp_path, text)
