"""A user's own file of prompts and answers as the target of a study."""

from __future__ import annotations

import datetime
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from study_fixture import fake_model
from toy_jobs import DONE

from statewise.config.read import read_resolved, read_study_and_place, to_toml
from statewise.errors import UsageError
from statewise.folder.store import Store
from statewise.plan.benchmarks import build_task
from statewise.plan.dag import make_plan
from statewise.tasks.own_data import DataSection, overlap_note, read_own_data
from statewise.tasks.own_task import own_task, reward_note

ROWS = [{"question": f"{i} + 1 =", "answer": str(i + 1), "level": i % 2} for i in range(20)]
STUDY = """
[study]
name = "sums"
factors = ["source", "signal"]
[data]
train = "train.jsonl"
test_share = 0.3
prompt = "question"
completion = "answer"
[shared]
retention = []
update = { num_updates = 1, lr = 1e-3 }
[arms.sft]
source = { kind = "dataset" }
signal = { kind = "imitate" }
[arms.rl]
source = { kind = "rollout", samples_per_prompt = 2 }
signal = { kind = "reward" }
"""


def write_rows(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def section(folder, **settings):
    table = {"train": "train.jsonl", "test_share": 0.3, "prompt": "question", "completion": "answer", **settings}
    return DataSection.model_validate({k: v for k, v in table.items() if v is not None}).located(folder, "sums")


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "train.jsonl")
    return tmp_path


def plan_of(folder, *overrides, text=STUDY):
    (folder / "own.toml").write_text(text)
    config, place = read_study_and_place(folder / "own.toml", overrides)
    model = folder / "fake-model"
    return make_plan(config, model if model.exists() else fake_model(folder), place)


def prints(plan):
    return {job.id: job.fingerprint for job in plan.jobs}


def test_rows_are_shared_out_by_their_prompts_alone(folder):
    splits = read_own_data(section(folder))
    assert sorted(row.prompt for rows in splits.values() for row in rows) == sorted(r["question"] for r in ROWS)
    assert 0 < len(splits["test"]) < len(splits["train"])
    write_rows(folder / "train.jsonl", [*reversed(ROWS), ROWS[0]])
    again = read_own_data(section(folder))
    assert {row.prompt for row in again["test"]} == {row.prompt for row in splits["test"]}
    assert overlap_note(section(folder), again) == ""


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_every_format_gives_the_same_rows(folder, ending):
    path = folder / f"train.{ending}"
    if ending == "csv":
        path.write_text(
            "question,answer,level\n" + "".join(f"{r['question']},{r['answer']},{r['level']}\n" for r in ROWS)
        )
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text(json.dumps(ROWS))
    texts = [
        {split: [(row.prompt, row.completion) for row in rows] for split, rows in read_own_data(one).items()}
        for one in (section(folder), section(folder, train=path.name))
    ]
    assert texts[0] == texts[1]


def test_prompts_of_the_test_that_are_trained_on_are_told(folder):
    write_rows(folder / "test.jsonl", [ROWS[3], {"question": "new", "answer": "1"}])
    data = section(folder, test="test.jsonl", test_share=None)
    assert overlap_note(data, read_own_data(data)) == (
        f"1 of 2 test prompts of 'sums' are training prompts too, such as that of {folder / 'test.jsonl'}:1"
    )


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"question": "a"},
            r"train\.jsonl:21: no value in column 'answer' \(data\.completion\); its columns are 'que",
        ),
        ({"question": "a", "answer": None}, r"train\.jsonl:21: no value in column 'answer'"),
        ({"question": "a", "answer": " "}, r"train\.jsonl:21: column 'answer' \(data\.completion\) is empty"),
        ({"question": "a", "answer": 3}, r"train\.jsonl:21: column 'answer' .* is of type int, in most rows str; make"),
        ({"question": "a", "answer": ["b"]}, r"train\.jsonl:21: column 'answer' .* is no text, but list"),
        ({"question": True, "answer": "b"}, r"train\.jsonl:21: column 'question' .* is no text, but bool"),
    ],
)
def test_a_row_that_has_no_text_is_named_with_its_line(folder, row, told):
    write_rows(folder / "train.jsonl", [*ROWS, row])
    with pytest.raises(UsageError, match=told):
        read_own_data(section(folder))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.train=own.toml", r"--set data\.train: data\.train: .*own\.toml: of no known format; expected \.jsonl"),
        ("data.train=nothing.csv", r"--set data\.train: data\.train: there is no file .*nothing\.csv"),
        ("data.reward=exact", "unknown; expected exact_match, contains, math, regex or a file and its function"),
        ("data.reward=own.py:f", r"data\.reward: there is no file .*own\.py"),
        ("data.tset=1", r"unknown key in \[data\]: 'tset'\. Did you mean 'test'\?"),
        ("data.test=a.csv", r"own\.toml:5: data: give one of test \(a file\) and test_share \(of the training rows\)"),
        ("shared.target=pocket_math", r"shared\.target is 'pocket_math', but the study has \[data\], which is"),
        ("shared.retention=['sums']", "the study's own data are called 'sums', as this task; give data.name"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_section_is_told_where_it_stands(folder, override, told):
    with pytest.raises(UsageError, match=told):
        plan_of(folder, override)


def test_an_arm_is_not_called_data_beside_the_section(folder):
    with pytest.raises(UsageError, match=r"arm name 'data' must match .* and not be base, study, shared, grid or data"):
        plan_of(folder, text=STUDY.replace("[arms.rl]", "[arms.data]"))


def test_rewards_that_compare_need_a_completion(folder):
    with pytest.raises(UsageError, match="reward 'math' compares with the completion; name its column"):
        plan_of(folder, "data.completion=''", "data.reward=math")


def test_a_fingerprint_knows_the_rows_and_the_reward_but_not_where_they_lie(folder, tmp_path_factory):
    (folder / "own.py").write_text("def f(prompt, completion, row): return 1")
    by_file = "data.reward=own.py:f"
    before, plain = prints(plan_of(folder, by_file)), prints(plan_of(folder))
    assert all(before[job] != plain[job] for job in before)
    other = tmp_path_factory.mktemp("other")
    for name in ("train.jsonl", "own.py"):
        (other / name).write_bytes((folder / name).read_bytes())
    assert prints(plan_of(other, by_file)) == before
    (other / "own.py").write_text("def f(prompt, completion, row): return 0")
    assert all(print_ != before[job] for job, print_ in prints(plan_of(other, by_file)).items())
    write_rows(folder / "train.jsonl", ROWS[:-1])
    assert all(print_ != before[job] for job, print_ in prints(plan_of(folder, by_file)).items())


def test_a_resolved_study_is_read_from_anywhere(folder, tmp_path_factory):
    plan = plan_of(folder)
    again = tmp_path_factory.mktemp("elsewhere") / "study.toml"
    again.write_text(to_toml(plan.config))
    assert read_study_and_place(again)[0] == plan.config


def test_the_task_trains_and_grades_on_the_rows(folder):
    plan = plan_of(folder, "data.reward=math", 'data.stop=["\\n"]')
    task = build_task(plan, "sums")
    task.check_target()
    trained, tested = task.examples("train"), task.examples("test")
    assert len(trained) + len(tested) == len(ROWS)
    one = trained[2]
    right = next(row["answer"] for row in ROWS if row["question"] == one.prompt)
    assert one.gold == f" {right}"
    assert (task.reward(2, f" it is {right}\nor 99"), task.reward(2, " it is 99")) == (1.0, 0.0)
    ((request,), *others) = task.requests()
    assert len(others) == len(tested) - 1
    request.resps = ["it is 99"]
    assert task.grade([request]) == {"reward,none": 0.0}
    assert (task.metrics, task.stop_strings, task.is_higher_better("reward,none")) == (("reward,none",), ("\n",), True)


def test_the_protocol_says_which_reward_scored(folder):
    protocols = []
    for reward, text in (("math", ""), ("own.py:f", "return 1"), ("own.py:f", "return 0")):
        (folder / "own.py").write_text(f"def f(prompt, completion, row): {text}")
        protocols.append(own_task(section(folder, reward=reward)).protocol)
    assert "task version math, " in protocols[0]
    assert "task version f " in protocols[1]
    assert len({*protocols}) == 3


def test_an_answer_that_a_function_cannot_score_is_no_0(folder):
    (folder / "own.py").write_text("def f(prompt, completion, row):\n    return 1 / (completion != ' bad')\n")
    task = own_task(section(folder, reward="own.py:f"))
    assert task.reward(0, " good") == 1.0
    assert math.isnan(task.reward(0, " bad"))


def test_a_reward_that_fails_on_a_right_answer_is_refused_before_a_run(folder):
    (folder / "own.py").write_text("def f(prompt, completion, row):\n    return row['anser']\n")
    told = r"train\.jsonl:\d+: reward own\.py:f raised KeyError: 'anser', for this row's own completion '\d+'"
    with pytest.raises(UsageError, match=told):
        own_task(section(folder, reward="own.py:f"))


def test_a_study_without_completions_can_only_be_rewarded(folder):
    (folder / "own.py").write_text("def f(prompt, completion, row): return 1")
    write_rows(folder / "train.jsonl", [{"question": row["question"]} for row in ROWS])
    task = own_task(section(folder, completion="", reward="own.py:f"))
    assert {one.gold.strip() for one in task.examples("train")} == {""}


def test_a_record_made_on_other_rows_is_not_replayed(folder, monkeypatch):
    monkeypatch.setattr("statewise.plan.replay._Parts.check", lambda parts: None)  # there are no states
    plan = plan_of(folder)
    store = Store(folder / "run")
    with store.lock():
        assert list(store.open_for(plan)) == []
    job = next(one for one in plan.jobs if one.id == "train:sft:0")
    arm = store.arm_folder("sft", 0)
    arm.mkdir(parents=True)
    store.finish(job, {**DONE, "state_hash": "0", "reward_hash": "0"})
    replaying = STUDY.replace('source = { kind = "dataset" }', f'source = {{ kind = "log", path = "{arm}" }}')
    plan_of(folder, text=replaying)
    write_rows(folder / "train.jsonl", ROWS[:-1])
    with pytest.raises(UsageError, match=r"was trained on another \[data\] than that of this study"):
        plan_of(folder, text=replaying)


@pytest.mark.parametrize("completion", ["[1, 2]", "['a']", "{{ prompt }}", "7", "{% if %}"])
def test_a_completion_is_taken_as_it_stands(folder, completion):
    write_rows(folder / "train.jsonl", [{**row, "answer": completion} for row in ROWS])
    task = own_task(section(folder))
    assert {one.gold for one in task.examples("train")} == {f" {completion}"}
    assert (task.reward(0, f" {completion}"), task.reward(0, " 1")) == (1.0, 0.0)


def test_a_stop_that_cuts_the_right_answer_is_refused_before_a_run(folder):
    write_rows(folder / "train.jsonl", [{**row, "answer": f"{row['answer']}\nas it is"} for row in ROWS])
    told = (
        r"train\.jsonl:\d+: reward exact_match is 0 for this row's own completion '.*', which data\.stop cuts to ' \d+'"
    )
    with pytest.raises(UsageError, match=told):
        own_task(section(folder, stop=["\n"]))


def test_rows_that_changed_since_the_study_was_read_are_refused(folder):
    data = section(folder)
    write_rows(folder / "train.jsonl", ROWS[:-1])
    with pytest.raises(UsageError, match=r"train\.jsonl changed since the study was read; run the same command again"):
        read_own_data(data)


def test_the_items_do_not_know_where_the_rows_lie(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_rows(other / "train.jsonl")
    documents = [[request.doc for (request,) in own_task(section(one)).requests()] for one in (folder, other)]
    assert documents[0] == documents[1]


def test_a_function_that_rewards_no_right_answer_is_told(folder):
    # Numbers of a CSV are numbers; a reward gets the two columns as the texts that are trained on.
    (folder / "train.csv").write_text("question,answer\n" + "".join(f"{i} + 1 =,{i + 1}\n" for i in range(20)))
    (folder / "own.py").write_text(
        "def right(prompt, completion, row): return completion.strip() == row['answer']\n"
        "def wrong(prompt, completion, row): return completion == row['answer']\n"
    )
    notes = {}
    for name in ("right", "wrong"):
        data = section(folder, train="train.csv", reward=f"own.py:{name}")
        notes[name] = reward_note(data, read_own_data(data))
    tried = 20 if len(read_own_data(data)["test"]) <= 20 else None
    assert notes["right"] == ""
    assert notes["wrong"] == f"Reward own.py:wrong gives 0 to each of the {tried} right answers that it was tried on"


def test_a_reward_is_tried_on_the_rows_that_it_will_get(folder):
    day = datetime.date(2026, 1, 2)
    pq.write_table(pa.Table.from_pylist([{**row, "day": day} for row in ROWS]), folder / "train.parquet")
    (folder / "own.py").write_text("def f(prompt, completion, row): return row['day'].year == 2026")
    with pytest.raises(UsageError, match="raised AttributeError: 'str' object has no attribute 'year'"):
        own_task(section(folder, train="train.parquet", reward="own.py:f"))


def test_without_completions_a_function_is_tried_on_empty_answers(folder):
    (folder / "own.py").write_text("def f(prompt, completion, row): return row['nothing']")
    with pytest.raises(UsageError, match="raised KeyError: 'nothing', for an empty answer to any prompt"):
        own_task(section(folder, completion="", reward="own.py:f"))


def test_what_a_run_wrote_is_read_where_its_data_are_gone(folder):
    plan = plan_of(folder)
    (folder / "written.toml").write_text(to_toml(plan.config))
    (folder / "train.jsonl").unlink()
    assert read_resolved(folder / "written.toml") == plan.config


def test_other_rows_are_named_where_a_folder_holds_another_study(folder):
    store = Store(folder / "run")
    with store.lock():
        assert list(store.open_for(plan_of(folder))) == []
    write_rows(folder / "train.jsonl", ROWS[:-1])
    with pytest.raises(UsageError, match=r"data\.digests\.train is "), store.lock():
        list(store.open_for(plan_of(folder)))


def test_a_test_of_one_row_is_refused(folder):
    write_rows(folder / "test.jsonl", ROWS[:1])
    with pytest.raises(UsageError, match=r"test\.jsonl: 1 test row; an interval needs 2 or more"):
        read_own_data(section(folder, test="test.jsonl", test_share=None))


def test_a_row_of_dates_reaches_the_reward_as_text(folder):
    day = datetime.date(2026, 1, 2)
    pq.write_table(pa.Table.from_pylist([{**row, "day": day} for row in ROWS]), folder / "train.parquet")
    (folder / "own.py").write_text("def f(prompt, completion, row): return row['day'] == '2026-01-02'")
    assert own_task(section(folder, train="train.parquet", reward="own.py:f")).reward(0, "x") == 1.0
