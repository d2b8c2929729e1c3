"""What is in a file of rows, and the study that begins from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statewise.assets import SHAPES
from statewise.cli import app
from statewise.errors import UsageError
from statewise.plan.materials import check_materials
from statewise.plan.new_study import describe_data, write_study
from statewise.plan.request import StudyRequest, plan_study
from statewise.policy.find import ModelReference

ROWS = [{"id": i, "question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(20)]


@pytest.fixture
def rows(tmp_path):
    def write(rows=ROWS, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


def test_the_facts_of_a_file_by_hand(rows):
    test = rows([ROWS[3], {"question": "new", "answer": "1"}], "test.jsonl")
    bad = [{"question": "a"}, {"question": " ", "answer": "b"}]
    path = rows([*ROWS, ROWS[0], ROWS[0], *bad])
    facts = describe_data(path, test=test)
    assert (facts.columns, facts.prompt, facts.completion) == (("id", "question", "answer"), "question", "answer")
    assert (facts.num_rows, facts.num_twice, facts.num_in_test) == (24, 2, 1)
    assert facts.problems == (
        f"{path}:23: no value in column 'answer'; its columns are 'question'",
        f"{path}:24: column 'question' is empty",
    )
    # "0 + 1 =" has 7 characters, "10 + 1 =" has 8; of 22 answers 11 have one digit.
    assert (facts.unit, facts.prompt_lengths, facts.completion_lengths) == ("characters", (7, 7, 8), (1, 2, 2))
    assert facts.first == tuple((row["question"], row["answer"]) for row in ROWS[:3])
    assert describe_data(path, model="pocket").unit == "tokens"


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("input", "output"), ("input", "output")), (("problem", "question", "target"), ("question", "target")),
        (("x", "prompt", "y", "completion"), ("prompt", "completion")),
    ],
)  # fmt: skip
def test_the_likeliest_columns_are_taken(rows, columns, found):
    facts = describe_data(rows([dict.fromkeys(columns, "text")] * 3))
    assert (facts.prompt, facts.completion) == found


def test_a_column_that_cannot_be_guessed_or_is_not_there_is_told(rows):
    path = rows([{"a": "x", "b": "y"}])
    with pytest.raises(UsageError, match=r"which column is the prompt\? give --prompt; the columns are a, b"):
        describe_data(path)
    with pytest.raises(UsageError, match=r"unknown column 'questin'\. Did you mean 'question'\?"):
        describe_data(rows(), "questin")


def test_a_begun_study_can_be_run_as_it_is(rows, tmp_path):
    study = write_study(tmp_path / "new", describe_data(rows()))
    plan = plan_study(StudyRequest(str(study), is_quick=True))
    assert check_materials(plan) == ()
    assert [*plan.arms] == ["sft", "opd", "rl"]
    assert plan.config.data.reward == f"{tmp_path / 'new' / 'rewards.py'}:score"
    (tmp_path / "new").rename(tmp_path / "moved")
    assert plan_study(StudyRequest(str(tmp_path / "moved/study.toml"), is_quick=True)).fingerprint == plan.fingerprint


def test_a_study_is_not_begun_on_bad_rows_or_over_another(rows, tmp_path):
    with pytest.raises(UsageError, match=r"rows\.jsonl:21: no value in column 'answer'; .* \(one of 1 such rows\)"):
        write_study(tmp_path / "new", describe_data(rows([*ROWS, {"question": "a"}])))
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="a study that imitates needs a column of completions"):
        write_study(tmp_path / "new", describe_data(rows(), completion=""))
    write_study(tmp_path / "new", describe_data(rows()))
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        write_study(tmp_path / "new", describe_data(rows()))


def test_the_commands_say_what_they_found_and_wrote(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows([*ROWS, {"question": "a"}])
    told = CliRunner().invoke(app, ["data", "rows.jsonl"])
    assert told.exit_code == 0
    assert "rows.jsonl: 21 rows; columns id, question, answer" in told.stdout
    assert "rows that a study would refuse: 1" in told.stdout
    facts = json.loads(CliRunner().invoke(app, ["data", "rows.jsonl", "--json"]).stdout)
    assert facts["num_rows"] == 21
    rows()
    done = CliRunner().invoke(app, ["init", "new", "--data", "rows.jsonl"])
    assert done.exit_code == 0
    assert "statewise run new/study.toml --quick" in done.stdout
    assert sorted(path.name for path in Path("new").iterdir()) == ["rewards.py", "study.toml"]


def test_a_study_of_a_large_model_that_is_not_here_yet_trains_an_adapter(rows, tmp_path, monkeypatch):
    shape = SHAPES / "Qwen__Qwen3-0.6B-Base"
    hub = ModelReference("org/large", shape, "main", ("model.safetensors",), 16_000_000_000)
    monkeypatch.setattr("statewise.plan.new_study.look_up_model", lambda name: hub)
    text = write_study(tmp_path / "new", describe_data(rows(), model="org/large"), "org/large").read_text()
    assert 'adapter = { kind = "lora", rank = 16 }' in text
    assert "lr = 1e-4" in text
    assert "retention = []" in text
    assert describe_data(rows(), model="org/large").unit == "characters"  # there is no tokenizer.json
