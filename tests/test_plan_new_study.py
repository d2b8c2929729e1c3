"""What is in a file of rows, and the study that begins from it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from statewise.assets import POCKET_MODEL, SHAPES
from statewise.cli import app
from statewise.errors import UsageError
from statewise.plan.materials import check_materials
from statewise.plan.new_study import Columns, TurnFacts, describe_data, write_study
from statewise.plan.request import StudyRequest, plan_study
from statewise.policy.find import ModelReference

ROWS = [{"id": i, "question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(20)]


@pytest.fixture
def rows(tmp_path):
    def write(rows=ROWS, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

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
        describe_data(rows(), Columns("questin"))


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
        write_study(tmp_path / "new", describe_data(rows(), Columns(completion="")))
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
    assert "rows of more tokens than the model's context of 256: 0" in done.stdout
    assert "'1 + 1 ='" in done.stdout
    assert sorted(path.name for path in Path("new").iterdir()) == ["README.md", "rewards.py", "study.toml"]


def test_a_study_of_a_large_model_that_is_not_here_yet_trains_an_adapter(rows, tmp_path, monkeypatch):
    shape = SHAPES / "Qwen__Qwen3-0.6B-Base"
    hub = ModelReference("org/large", shape, "main", ("model.safetensors",), 16_000_000_000)
    monkeypatch.setattr("statewise.plan.new_study.look_up_model", lambda name: hub)
    text = write_study(tmp_path / "new", describe_data(rows(), model="org/large"), "org/large").read_text()
    assert 'adapter = { kind = "lora", rank = 16 }' in text
    assert "lr = 1e-4" in text
    assert "retention = []" in text
    assert describe_data(rows(), model="org/large").unit == "characters"  # there is no tokenizer.json


TALK = [
    {"messages": [{"role": "user", "content": f"{i} + 1 ="}, {"role": "assistant", "content": str(i + 1)}]}
    for i in range(20)
]
LONGER = [{"role": "system", "content": "Add."}, *TALK[0]["messages"], {"role": "user", "content": "And 1 more?"}]


def test_the_facts_of_conversations_by_hand(rows):
    longer = {"messages": [*LONGER, {"role": "assistant", "content": "2"}]}
    test = rows([TALK[3], {"messages": LONGER}], "test.jsonl")
    facts = describe_data(rows([*TALK, longer, {"messages": LONGER}]), test=test)
    assert (facts.columns, facts.messages, facts.num_rows) == (("messages",), "messages", 22)
    assert facts.turns == TurnFacts((2, 2, 2), 1, 1, True)
    assert facts.num_in_test == 1
    assert facts.problems == (
        f"{facts.source}:22: the last turn is of the user; end the conversation with an answer of the assistant, "
        'or set completion = "" where no answer is needed',
    )
    assert facts.first[0] == ("0 + 1 =", "1")
    # "0 + 1 =" has 7 characters, "10 + 1 =" 8; of 21 answers 10 have one digit, the 11th in order has two.
    assert (facts.prompt_lengths, facts.completion_lengths) == ((7, 8, 8), (1, 2, 2))


def test_a_column_of_texts_is_no_column_of_conversations(rows):
    facts = describe_data(rows([{"messages": "x", "prompt": "a", "completion": "b"}] * 3))
    assert (facts.prompt, facts.completion, facts.messages) == ("prompt", "completion", "")
    with pytest.raises(UsageError, match="give one of --messages and --prompt with --completion"):
        describe_data(rows(), Columns(prompt="question", messages="messages"))


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_study_begun_on_conversations_can_be_run_as_it_is(rows, tmp_path, monkeypatch, is_saved):
    monkeypatch.chdir(tmp_path)
    data = rows(TALK)
    if is_saved:
        datasets.DatasetDict(train=datasets.Dataset.from_list(TALK)).save_to_disk("saved")
        data = "saved"
    plan = plan_study(StudyRequest(str(write_study(tmp_path / "new", describe_data(data))), is_quick=True))
    assert check_materials(plan) == ()
    assert (plan.config.data.messages, plan.config.shared.chat) == ("messages", False)
    assert plan.config.study.name == ("saved" if is_saved else "rows")


def test_a_study_begun_on_longer_conversations_needs_a_chat_template(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = rows([{"messages": [*LONGER[:2], *one["messages"][1:]]} for one in TALK] + TALK)
    with pytest.raises(
        UsageError, match="conversations are rendered by a chat template only, and model 'pocket' has no"
    ):
        write_study(tmp_path / "new", describe_data(data))
    assert not (tmp_path / "new").exists()
    shutil.copytree(POCKET_MODEL, "chatting")
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    settings = json.loads((POCKET_MODEL / "tokenizer_config.json").read_text())
    Path("chatting/tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    plan = plan_study(StudyRequest(str(write_study(tmp_path / "new", describe_data(data), "chatting")), is_quick=True))
    assert check_materials(plan) == ()
    assert plan.config.shared.chat


def test_the_command_tells_of_conversations(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows(TALK)
    told = CliRunner().invoke(app, ["data", "rows.jsonl"]).stdout
    assert "conversations: messages; turns of the 5 %, 50 % and 95 % quantile: 2, 2, 2; 0 with a system turn" in told
    facts = json.loads(CliRunner().invoke(app, ["data", "rows.jsonl", "--json"]).stdout)
    assert (facts["path"], facts["turns"]["needs_chat"]) == ("rows.jsonl", False)


def test_a_study_is_begun_without_rows_on_an_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "new"])
    assert done.exit_code == 0, done.output
    plan = plan_study(StudyRequest("new/study.toml", is_quick=True))
    assert plan.config.data.train == str(tmp_path / "new" / "rows.jsonl")
    assert "statewise run new/study.toml --quick" in Path("new/README.md").read_text()


def test_rows_beyond_the_model_s_context_are_counted(rows):
    facts = describe_data(rows([*ROWS, {"question": "1 " * 200, "answer": "2 " * 40}]), model="pocket")
    assert (facts.context, facts.num_too_long) == (256, 1)
    assert describe_data(rows()).context is None


def test_a_name_of_any_letters_is_written_so_that_it_can_be_read(rows, tmp_path):
    study = write_study(tmp_path / "new", describe_data(rows(name="öl-\U0001f600.jsonl")))
    assert plan_study(StudyRequest(str(study), is_quick=True)).config.data.train == str(
        tmp_path / "öl-\U0001f600.jsonl"
    )


def test_values_of_several_types_are_a_problem_here_as_in_a_study(rows, tmp_path):
    path = rows([*ROWS, {"question": "x", "answer": 3}])
    told = r"rows\.jsonl:21: column 'answer' is of type int, in most rows str; make them all of one type"
    assert re.fullmatch(f".*{told}", describe_data(path).problems[0])
    with pytest.raises(UsageError, match=told):
        write_study(tmp_path / "new", describe_data(path))


def test_lengths_are_those_of_the_whole_text_without_special_tokens(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(POCKET_MODEL, "model")
    tokenizer = Tokenizer.from_file("model/tokenizer.json")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=3)
    tokenizer.save("model/tokenizer.json")
    path = rows([{"question": "1 " * 50, "answer": "2"}])
    assert describe_data(path, model="model").prompt_lengths == describe_data(path, model="pocket").prompt_lengths
    study = write_study(tmp_path / "deep" / "new", describe_data(rows(), model="model"), "model")
    assert plan_study(StudyRequest(str(study), is_quick=True)).model == tmp_path / "model"
    Path("model/tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"tokenizer\.json: tokenizers cannot read it"):
        describe_data(path, model="model")
