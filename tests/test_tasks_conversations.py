"""Conversations as training documents: every prompt is what the chat template makes of the turns before the answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from statewise.assets import POCKET_MODEL
from statewise.errors import UsageError
from statewise.evals.evaluate import EvalProtocol, evaluate
from statewise.folder.protocol import ask_items
from statewise.loop.documents import DocumentRule, encode_documents
from statewise.plan.materials import check_materials
from statewise.plan.request import StudyRequest, plan_study
from statewise.policy.load import load_without_weights
from statewise.policy.texts import chat_of
from statewise.storage.rows import Row
from statewise.tasks.conversations import left_out_by, plain_text, turns_of
from statewise.tasks.own_data import DataSection, overlap_note, read_own_data
from statewise.tasks.own_task import own_task
from statewise.tasks.task import TaskOptions

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen's: a system turn where there is none, and of earlier answers not what was thought.
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
SILENT = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
PLAIN = [[["user", f"{i} + 1 ="], ["assistant", str(i + 1)]] for i in range(20)]
LONG = [
    [
        ["system", "Add."], ["user", f"{i} + 1 ="], ["assistant", f"<think>\nhm\n</think>\n\n{i + 1}"],
        ["user", "And 1 more?"], ["assistant", str(i + 2)],
    ]
    for i in range(20)
]  # fmt: skip


def as_rows(conversations):
    return [
        {"id": i, "messages": [{"role": role, "content": text} for role, text in turns]}
        for i, turns in enumerate(conversations)
    ]


def write_rows(path, conversations):
    path.write_text("".join(json.dumps(row) + "\n" for row in as_rows(conversations)))


@pytest.fixture
def section(tmp_path):
    def build(conversations=LONG, **settings):
        write_rows(tmp_path / "train.jsonl", conversations)
        table = {"train": "train.jsonl", "test_share": 0.3, "messages": "messages", **settings}
        return DataSection.model_validate({k: v for k, v in table.items() if v is not None}).located(tmp_path, "talk")

    return build


@pytest.fixture(scope="module")
def policy():
    return load_without_weights(POCKET_MODEL, "pocket", None)


def chatting(policy, template):
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    tokenizer.chat_template = template
    return replace(policy, tokenizer=tokenizer)


@pytest.mark.parametrize("template", [CHATML, QWEN])
def test_a_prompt_is_what_the_template_makes_of_the_turns_before_the_answer(section, policy, template):
    policy = chatting(policy, template)
    task, chat = own_task(section()), chat_of(policy)
    by_first = {row["messages"][1]["content"]: row["messages"] for row in as_rows(LONG)}
    splits = read_own_data(section())

    def expected(split):
        messages = [by_first[row.turns[1]["content"]] for row in splits[split]]
        return [
            (
                policy.tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False),
                turns[-1]["content"],
            )
            for turns in messages
        ]

    trained, tested = ([(one.prompt, one.gold) for one in task.examples(split, chat)] for split in ("train", "test"))
    assert (trained, tested) == (expected("train"), expected("test"))
    assert [request.args[0] for (request,) in task.requests(chat=chat)] == [prompt for prompt, _ in tested]
    documents = encode_documents(policy, task, DocumentRule(needs_gold=True, is_chat=True)).examples
    tokens = policy.tokenizer([prompt for prompt, _ in trained], add_special_tokens=False)["input_ids"]
    assert [document.prompt_ids for document in documents] == [tuple(ids) for ids in tokens]


def test_every_answer_of_a_training_conversation_is_an_example_and_of_a_test_one_the_last(section):
    last, every = read_own_data(section()), read_own_data(section(turns="all"))
    assert every["test"] == [replace(row, place=f"{row.place}, turn 5") for row in last["test"]]
    assert len(every["train"]) == 2 * len(last["train"])
    first, second = every["train"][:2]
    assert [turn["role"] for turn in first.turns] == ["system", "user"]
    assert second.turns[:3] == (*first.turns, {"role": "assistant", "content": first.completion})
    # What a reward gets of the first answer knows nothing of what follows.
    assert [turn["role"] for turn in first.values["messages"]] == ["system", "user", "assistant"]
    assert (first.values["completion"], first.values["id"]) == (first.completion, 0)
    assert [row.place.rpartition(":")[2] for row in (first, second)] == ["1, turn 3", "1, turn 5"]


def test_conversations_that_begin_alike_are_never_on_both_sides(section):
    other = [[*turns[:4], ["assistant", "another"]] for turns in LONG] + [turns[1:3] for turns in LONG]
    data = section(LONG + other, turns="all")
    splits = read_own_data(data)
    assert len(splits["test"]) % 3 == 0
    trained = {row.beginning for row in splits["train"]}
    assert splits["test"]
    assert not trained & {row.beginning for row in splits["test"]}
    assert overlap_note(data, splits) == ""


def test_a_test_conversation_that_begins_as_a_training_one_is_told(section, tmp_path):
    write_rows(tmp_path / "test.jsonl", [LONG[3][1:3], [["user", "new"], ["assistant", "1"]]])
    data = section(test="test.jsonl", test_share=None)
    told = f"1 of 2 test conversations of 'talk' begin as training conversations do, such as that of {tmp_path}"
    assert overlap_note(data, read_own_data(data)) == f"{told}/test.jsonl:1"


def test_single_questions_without_a_chat_are_prompts_and_completions(section, tmp_path):
    one = section(PLAIN)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": turns[0][1], "completion": turns[1][1]}) + "\n" for turns in PLAIN)
    )
    other = section(PLAIN, train="pairs.jsonl", messages="")
    assert own_task(one).examples("train") == own_task(other).examples("train")
    assert own_task(one).examples("test") == own_task(other).examples("test")
    assert {"messages", "turns"} & set(other.identity) == set()
    assert {"messages", "turns"} <= set(one.identity)


def test_questions_without_answers_can_be_rewarded(section, tmp_path):
    (tmp_path / "own.py").write_text("def f(prompt, completion, row): return len(row['messages']) == 4")
    data = section([turns[:4] for turns in LONG], completion="", reward="own.py:f")
    task = own_task(data)
    assert task.reward(0, "x") == 1.0
    assert read_own_data(data)["train"][0].turns[-1] == {"role": "user", "content": "And 1 more?"}


def test_a_reward_gets_the_plain_form(section, tmp_path):
    (tmp_path / "own.py").write_text(
        "def f(prompt, completion, row): return prompt.startswith('system: Add.\\n\\nuser: ')"
    )
    assert own_task(section(reward="own.py:f")).reward(0, "x") == 1.0
    assert plain_text([{"role": "user", "content": "x"}]) == "x"


def test_conversations_without_a_chat_template_are_refused_with_file_and_row(section, policy):
    task = own_task(section())
    told = r"train\.jsonl:\d+: a conversation \(system, user, assistant, user before the answer\) is rendered by"
    with pytest.raises(UsageError, match=told):
        task.examples("train")
    with pytest.raises(UsageError, match=told):
        evaluate(policy, task, EvalProtocol())


def test_items_are_told_apart_and_shown_by_the_plain_form_whatever_the_model(section):
    asked = ask_items(own_task(section()), None)
    shown = {text for _, text in asked.items.values()}
    assert shown == {row.prompt for row in read_own_data(section())["test"]}
    assert (
        ask_items(own_task(section([[["system", "Sum."], *turns[1:]] for turns in LONG])), None).sha256 != asked.sha256
    )


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (NO_SYSTEM, r"train\.jsonl:\d+: the chat template of 'pocket' refuses the turns: System role not supported"),
        (
            SILENT,
            r"train\.jsonl:\d+: the chat template leaves out or changes the system's 'Add\.'; take such turns out",
        ),
    ],
)
def test_a_template_that_refuses_or_leaves_out_a_system_turn_is_told(section, policy, template, told):
    task, chat = own_task(section()), chat_of(chatting(policy, template))
    with pytest.raises(UsageError, match=told):
        task.examples("train", chat)
    with pytest.raises(UsageError, match=told):
        task.requests(chat=chat)


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (None, r"train\.jsonl:21: no value in column 'messages' \(data\.messages\); its columns are 'messages'"),
        ("a", r"is no list of turns, but str; expected \[\{\"role\": \"user\""),
        ({"role": ["user"], "content": ["a"]}, "is no list of turns, but dict"),
        ([], r"column 'messages' \(data\.messages\) is empty"),
        (["a", "b"], "turn 1: has no role and content"),
        ([{"from": "human", "value": "a"}, ANSWER], "turn 1: has no role and content; expected"),
        (
            [USER, {"role": "tool", "content": "b"}, ANSWER],
            r"turn 2: role 'tool' is unknown; expected system, user, ass",
        ),
        ([USER, {"role": "function", "content": "b"}, ANSWER], "turn 2: role 'function' is unknown"),
        ([USER, {**ANSWER, "tool_calls": [{"id": 1}]}], "turn 2: has 'tool_calls', which is not rendered; leave"),
        (
            [{**USER, "content": [{"type": "image"}]}, ANSWER],
            r"turn 1: content is no text, but a list of parts \(images",
        ),
        ([{**USER, "content": 3}, ANSWER], "turn 1: content is no text, but int"),
        ([{**USER, "content": " "}, ANSWER], "turn 1: content of the user is empty"),
        (
            [USER],
            r"train\.jsonl:21: the last turn is of the user; end the conversation with an answer of the assistant",
        ),
        ([USER, ANSWER, USER], "the last turn is of the user; end the conversation"),
        ([ANSWER], "no turn of the user comes before the answer"),
        ([USER, ANSWER, ANSWER], "turn 3: follows another turn of the assistant; join the two"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_told_with_its_row(section, tmp_path, messages, told):
    data = section()
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(UsageError, match=told):
        read_own_data(data.located(tmp_path, "talk"))


def test_keys_that_have_no_value_are_none():
    # Parquet gives all turns the keys of each.
    row = Row("x, row 1", 1, {"messages": [{**USER, "tool_calls": None}, {**ANSWER, "tool_calls": None}]})
    assert turns_of(row, "messages") == [USER, ANSWER]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompt": "question"}, r"give one of messages \(a column of conversations\) and prompt with completion"),
        (
            {"messages": "completion"},
            "a reward's row has the answer as 'completion'; give the column of messages another",
        ),
        ({"messages": "", "turns": "all"}, 'turns = "all" is of messages'),
        ({"completion": "", "turns": "all", "reward": "own.py:f"}, 'turns = "all" is of messages .* with answers'),
        ({"turns": "first"}, "Input should be 'last' or 'all'"),
    ],
)
def test_settings_that_do_not_agree_are_refused(section, settings, told):
    with pytest.raises(ValueError, match=told):
        section(**settings)


def test_no_worked_examples_stand_before_a_conversation(section):
    with pytest.raises(UsageError, match=r"protocol\.talk\.num_fewshot: no worked examples can be put before a conv"):
        own_task(section(), TaskOptions(num_fewshot=2))


STUDY = """
[study]
name = "talk"
factors = ["source", "signal"]
[data]
train = "train.jsonl"
test_share = 0.3
messages = "messages"
turns = "all"
[shared]
model = "model"
retention = []
update = { num_updates = 1, lr = 1e-3 }
drift = { num_prompts = 4 }
evaluation = { max_new_tokens = 16 }
[arms.sft]
source = { kind = "dataset" }
signal = { kind = "imitate" }
[arms.rl]
source = { kind = "rollout", samples_per_prompt = 2, max_new_tokens = 8 }
signal = { kind = "reward" }
"""


def test_a_study_of_conversations_is_checked_by_its_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(POCKET_MODEL, "model")
    (tmp_path / "model/chat_template.jinja").write_text(CHATML)
    write_rows(tmp_path / "train.jsonl", LONG)
    (tmp_path / "study.toml").write_text(STUDY)
    with pytest.raises(
        UsageError, match=r"train\.jsonl:\d+, turn 3: a conversation .*; set shared\.chat = true \(--chat\)"
    ):
        check_materials(plan_study(StudyRequest("study.toml")))
    plan = plan_study(StudyRequest("study.toml", is_chat=True))
    assert check_materials(plan) == ()
    last = plan_study(StudyRequest("study.toml", ("data.turns=last",), is_chat=True))
    assert last.fingerprint != plan.fingerprint


def test_a_turn_that_is_left_out_is_found_though_another_one_has_its_text():
    turns = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "yes"))]
    turns.append({"role": "user", "content": "yes or no?"})
    assert left_out_by(turns, "Hi|yes|yes or no?") is None
    assert left_out_by(turns, "Hi|yes or no?") == turns[1]


def test_a_column_of_ones_own_is_not_hidden_from_a_reward(tmp_path):
    rows = [{**row, "prompt": "mine"} for row in as_rows(PLAIN)]
    answered = [{**row, "completion": "mine"} for row in as_rows(PLAIN)]
    (tmp_path / "answered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text("def one(prompt, completion, row):\n    return 1.0\n")
    given = {"train": "rows.jsonl", "test_share": 0.3, "messages": "messages", "reward": "own.py:one"}
    read = read_own_data(DataSection(**given).located(tmp_path, "talk"))["train"]
    assert {(row.values["prompt"], row.values["completion"] == row.completion) for row in read} == {("mine", True)}
    given["train"] = "answered.jsonl"
    with pytest.raises(UsageError, match=r"answered\.jsonl:1: has a column 'completion' of its own"):
        read_own_data(DataSection(**given).located(tmp_path, "talk"))
