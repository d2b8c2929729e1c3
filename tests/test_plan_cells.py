"""The matrix of cells, and what is refused before a model is loaded: with the reason and the nearest that works."""

import pytest
from study_fixture import small_plan

from statewise.errors import UsageError
from statewise.plan.cells import matrix
from statewise.signals import SIGNALS
from statewise.storage import integrity

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
    (
        ["rl.source={kind='prefix',trains_on='rest',share='uniform',samples_per_prompt=2}",
         "rl.signal.importance=token"],
        "that of data is not known",
        ["rl.source={kind='prefix',trains_on='rest',share=0.4,samples_per_prompt=2}", "rl.signal.importance=token"],
    ),
    (
        ["rl.source={kind='prefix',trains_on='rest',share={start=0.9,end=0.0},samples_per_prompt=2}",
         "rl.signal.importance=token"],
        "that of data is not known",
        ["rl.source={kind='prefix',trains_on='rest',share={start=0.4,end=0.0},samples_per_prompt=2}",
         "rl.signal.importance=token"],
    ),
    (
        ["rl.source.buffer_size=4"],
        "buffer_size 4 is below the 8 trajectories of an update",
        ["rl.source.buffer_size=8"],
    ),
    (
        ["sft.source={kind='mixture',num_trajectories=16,parts=[{kind='dataset',weight=0.5},"
         "{kind='rollout',buffer_size=8,weight=0.5}]}"],
        "buffer_size 8 is below the 16 trajectories of an update",
        ["sft.source={kind='mixture',num_trajectories=8,parts=[{kind='dataset',weight=0.5},"
         "{kind='rollout',buffer_size=8,weight=0.5}]}"],
    ),
    (
        ["sft.source={kind='mixture',parts=[{kind='dataset',weight=0.5},{kind='rollout',temperature=0.7,weight=0.5}]}"],
        "its parts have temperature 0.7 and 1, and the loss of an update is taken at one temperature",
        ["sft.source={kind='mixture',parts=[{kind='dataset',weight=0.5},{kind='rollout',temperature=1.0,weight=0.5}]}"],
    ),
    (
        ["opd.signal={kind='expert',temperature=1.0}", "opd.source.temperature=0.7"],
        "drawn at temperature 1, and the loss on these states is taken at 0.7",
        ["opd.signal={kind='expert',temperature=0.7}", "opd.source.temperature=0.7"],
    ),
    (
        ["sft.source={kind='prefix',temperature=0.7}"],
        "the given part is data, which count as temperature 1, and would be trained on at 0.7",
        ["sft.source={kind='prefix',temperature=0.7,trains_on='rest'}"],
    ),
]  # fmt: skip


MIXED = "rl.source={kind='mixture',parts=[{kind='log',arm='sft',weight=0.5},{kind='rollout',OTHER,weight=0.5}]}"
GROUPED, COOLER = (MIXED.replace("OTHER", other) for other in ("samples_per_prompt=4", "temperature=0.5"))
# What is refused on states is refused on their record too, in a mixture or in the record of a record.
BEHIND_LOGS = [
    ([GROUPED], "compares the answers to one prompt"),
    ([GROUPED, "rl.signal={kind='preference'}"], "between two answers to one prompt"),
    ([GROUPED, "rl.signal={kind='reward',advantage='reinforce',importance='token'}"], "that of data is not known"),
    ([COOLER, "rl.signal={kind='imitate'}"], "its parts have temperature 0.5 and 1"),
    (["rl.source={kind='log',arm='opd'}"], "compares the answers to one prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "told"), BEHIND_LOGS)
def test_a_cell_is_refused_on_a_record_of_states_that_it_is_refused_on(tmp_path, overrides, told):
    with pytest.raises(UsageError, match=told):
        small_plan(tmp_path, *overrides)


def recorded_run(folder, source, seed=0):
    """What a run leaves of an arm `a` with `source`, without its states."""
    arm = folder / "arms" / "a" / str(seed)
    (arm / "states").mkdir(parents=True)
    (arm / "config.toml").write_text(f"[arm]\nsource = {source}\n")
    (arm / "states" / "000001.parquet").write_bytes(b"")
    trained = {"state_hash": "x", "reward_hash": "y", "files": integrity.table_of(arm, ["states"])}
    integrity.write_sealed(arm / "train.json", trained)
    return str(folder / "arms" / "a" / "{seed}")


@pytest.mark.parametrize(
    ("source", "signal", "told"),
    [
        ("{ kind = 'dataset' }", "reward", "compares the answers to one prompt"),
        ("{ kind = 'rollout' }", "preference", "between two answers to one prompt"),
        ("{ kind = 'log', path = 'OTHER' }", "preference", "between two answers to one prompt"),
        ("{ kind = 'rollout', samples_per_prompt = 2 }", "preference", None),
    ],
)
def test_a_record_of_another_run_is_known_by_what_its_arm_says_of_its_source(tmp_path, source, signal, told):
    other = recorded_run(tmp_path / "other", "{ kind = 'rollout' }")
    for seed in (0, 1):
        path = recorded_run(tmp_path / "one", source.replace("OTHER", other), seed)
    overrides = [f"rl.source={{kind='log',path='{path}'}}", f"rl.signal={{kind='{signal}'}}"]
    if told is None:
        small_plan(tmp_path, *overrides)
        return
    with pytest.raises(UsageError, match=told):
        small_plan(tmp_path, *overrides)


def test_a_record_behind_an_arm_of_this_study_is_known_too(tmp_path):
    for seed in (0, 1):
        path = recorded_run(tmp_path / "one", "{ kind = 'dataset' }", seed)
    behind = [f"sft.source={{kind='log',path='{path}'}}", "rl.source={kind='log',arm='sft'}"]
    with pytest.raises(UsageError, match="compares the answers to one prompt"):
        small_plan(tmp_path, *behind)
    with pytest.raises(UsageError, match="that of data is not known"):
        small_plan(tmp_path, *behind, "rl.signal={kind='reward',advantage='reinforce',importance='token'}")


@pytest.mark.parametrize(
    ("name", "text"),
    [("train.json", '["state_hash"]'), ("train.json", "{"), ("config.toml", "arm = 3"), ("config.toml", "arm = [")],
)
def test_a_damaged_folder_of_another_run_is_told_with_the_line_that_names_it(tmp_path, name, text):
    for seed in (0, 1):
        path = recorded_run(tmp_path / "one", "{ kind = 'dataset' }", seed)
    (tmp_path / "one" / "arms" / "a" / "0" / name).write_text(text)
    with pytest.raises(UsageError, match=rf"--set rl.source: \[arms.rl\]: .*{name} is damaged|{name} is damaged"):
        small_plan(tmp_path, f"rl.source={{kind='log',path='{path}'}}", "rl.signal={kind='imitate'}")


@pytest.mark.parametrize(("refused", "told", "nearest"), CASES)
def test_a_refused_cell_says_why_and_names_one_that_works(tmp_path, monkeypatch, refused, told, nearest):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"index": 0, "chosen": " 1", "rejected": " 2"}\n')
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
        (["rl.source={kind='log',arm='rl'}"], "an arm cannot replay itself"),
        (["rl.source={kind='log',arm='sft'}", "sft.source={kind='log',arm='rl'}", "rl.signal={kind='imitate'}"],
         "arms sft, opd, rl wait for each other"),
        (["rl.source={kind='log'}"], "give one of arm and path"),
        (["rl.source={kind='log',path='nowhere/arms/rl/{seed}'}"], "holds no trained arm: there is no such folder"),
        (["sft.source.pairs='nowhere.jsonl'"], "source.pairs: nowhere.jsonl: cannot be read"),
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
    job = next(job for job in plan.jobs if job.id == "train:rl:0")
    assert job.needs == ("train:sft:0",)
    other = small_plan(tmp_path, "rl.source={kind='log',arm='sft'}", "rl.signal={kind='imitate'}", "sft.update.lr=1e-5")
    again = next(job for job in other.jobs if job.id == "train:rl:0")
    assert again.fingerprint != job.fingerprint  # other states are recorded
