"""The real benchmarks: items, prompts and scores are those of lm-eval run by itself on the same files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import lm_eval
import lm_eval.tasks
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from statewise.assets import POCKET_MODEL
from statewise.errors import UsageError
from statewise.evals.evaluate import EvalProtocol, evaluate
from statewise.policy.load import Policy
from statewise.policy.texts import chat_of, check_chat_end
from statewise.tasks.load import load_task
from statewise.tasks.task import TaskOptions

DATA = Path(__file__).parents[2] / "shared" / "data"
BUILT_IN = Path(lm_eval.tasks.__file__).parent
NUM_ITEMS = 40
MAX_NEW_TOKENS = 12
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not at hand (../shared/data)")


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Random weights under the pocket model's tokenizer, with room for five worked examples."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen3Config(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=64, max_position_embeddings=4096, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    config.eos_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    model.config._attn_implementation = "sdpa"
    return Policy(model.eval(), tokenizer, "random", tokenizer.eos_token_id)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def subjects() -> list[str]:
    """The first members of lm-eval's group `mmlu`, as many as items are compared."""
    members = [str(member.config.task) for member in load_task("mmlu", data=DATA).members]
    return members[:NUM_ITEMS]


def local_copy(folder: Path, name: str, yaml_path: Path, files: dict[str, Path], **settings) -> None:
    """lm-eval's own task `name`, on local files, by its own means."""
    config = {
        "include": str(yaml_path), "task": name, "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in files.items()}}, **settings,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def samples_of_lm_eval(policy, folder: Path, cache: Path, limit: int, **settings) -> dict[str, list[dict]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        return lm_eval.simple_evaluate(
            model=HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=20),
            tasks=names,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            limit=limit,
            bootstrap_iters=0,
            **settings,
        )["samples"]


def scores_of(samples: list[dict]) -> dict[tuple[str, int], float]:
    return {(f"{m},{s['filter']}", s["doc_id"]): s[m] for s in samples for m in s["metrics"]}


def our_scores(policy, task, **settings) -> dict[tuple[str, int], float]:
    protocol = EvalProtocol(NUM_ITEMS, ("greedy",), max_new_tokens=MAX_NEW_TOKENS, items="first", **settings)
    return {(row["metric"], row["item"]): row["score"] for row in evaluate(policy, task, protocol)}


GSM8K = {"train": DATA / "gsm8k" / "train.jsonl", "test": DATA / "gsm8k" / "test.jsonl"}
GENERATION = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0}


@pytest.mark.parametrize(("num_fewshot", "is_chat"), [(5, False), (0, False), (2, True)])
def test_gsm8k_is_that_of_lm_eval(policy, tmp_path, num_fewshot, is_chat):
    limits = {"generation_kwargs": {**GENERATION, "max_gen_toks": MAX_NEW_TOKENS}, "num_fewshot": num_fewshot}
    (tmp_path / "tasks").mkdir()
    local_copy(tmp_path / "tasks", "gsm8k", BUILT_IN / "gsm8k" / "gsm8k.yaml", GSM8K, **limits)
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True} if is_chat else {}
    theirs = samples_of_lm_eval(policy, tmp_path / "tasks", tmp_path / "cache", NUM_ITEMS, **chat)["gsm8k"]
    task = load_task("gsm8k", data=DATA, options=TaskOptions(num_fewshot))
    assert our_scores(policy, task, is_chat=is_chat) == scores_of(theirs)
    asked = task.requests(NUM_ITEMS, chat_of(policy) if is_chat else None, "first")
    by_item = {s["doc_id"]: s for s in theirs}
    assert [r[0].args[0] for r in asked] == [by_item[i]["arguments"][0][0] for i in range(NUM_ITEMS)]
    how = EvalProtocol(NUM_ITEMS, ("greedy",), max_new_tokens=MAX_NEW_TOKENS, is_chat=is_chat, items="first")
    rows = evaluate(policy, task, how)
    assert {row["item"]: row["response"] for row in rows} == {i: s["resps"][0][0] for i, s in by_item.items()}


@pytest.mark.parametrize("name", ["truthfulqa_mc1", "truthfulqa_mc2"])
@pytest.mark.parametrize("is_chat", [False, True])
def test_truthfulqa_is_that_of_lm_eval(policy, tmp_path, name, is_chat):
    (tmp_path / "tasks").mkdir()
    files = {"validation": DATA / "truthfulqa" / "multiple_choice.jsonl"}
    local_copy(tmp_path / "tasks", name, BUILT_IN / "truthfulqa" / f"{name}.yaml", files)
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True} if is_chat else {}
    theirs = samples_of_lm_eval(policy, tmp_path / "tasks", tmp_path / "cache", NUM_ITEMS, **chat)[name]
    ours = our_scores(policy, load_task(name, data=DATA), is_chat=is_chat)
    assert ours == pytest.approx(scores_of(theirs), abs=1e-5)
    assert len(set(ours.values())) > 1


@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_mmlu_is_that_of_lm_eval(policy, tmp_path, num_fewshot):
    (tmp_path / "tasks").mkdir()
    rows = {split: rows_of(DATA / "mmlu" / f"{split}.jsonl") for split in ("dev", "test")}
    for name in subjects():
        files = {}
        for split, all_rows in rows.items():
            files[split] = tmp_path / f"{name}_{split}.jsonl"
            own = [json.dumps(row) for row in all_rows if f"mmlu_{row['subject']}" == name]
            files[split].write_text("\n".join(own[:20]) + "\n")
        local_copy(
            tmp_path / "tasks", name, BUILT_IN / "mmlu" / "default" / f"{name}.yaml", files, num_fewshot=num_fewshot
        )
    theirs = samples_of_lm_eval(policy, tmp_path / "tasks", tmp_path / "cache", 1)
    task = load_task("mmlu", data=DATA, options=TaskOptions(num_fewshot))
    protocol = EvalProtocol(NUM_ITEMS, items="first")
    ours = {(row["member"], row["metric"]): row["score"] for row in evaluate(policy, task, protocol)}
    assert ours == {(name, f"acc,{s['filter']}"): s["acc"] for name, samples in theirs.items() for s in samples}
    assert len(ours) == NUM_ITEMS


def test_a_group_has_every_item_once_under_an_index_that_no_limit_changes():
    task = load_task("mmlu", data=DATA)
    places = [task.place_of(requests[0]) for requests in task.requests()]
    assert [index for index, _ in places] == list(range(14042))
    first = {task.place_of(requests[0]) for requests in task.requests(100)}
    assert len(first) == 100
    assert first < set(places)
    assert len({member for _, member in first}) == 57  # spread over all members
    assert "14042 of 57 tasks" in task.protocol


def test_the_study_s_shots_are_part_of_the_protocol():
    assert load_task("gsm8k", data=DATA).protocol.startswith("5-shot; ")
    assert load_task("gsm8k", data=DATA, options=TaskOptions(0)).protocol.startswith("0-shot; ")


def test_gold_text_follows_the_prompt_as_in_the_data():
    task = load_task("gsm8k", data=DATA, options=TaskOptions(0))
    row = rows_of(GSM8K["train"])[0]
    example = task.examples("train")[0]
    assert example.prompt == f"Question: {row['question']}\nAnswer:"
    assert example.gold == " " + row["answer"]
    assert task.reward(0, example.gold) == 1.0
    assert len(task.examples("train")) == 7473


def test_in_a_chat_the_gold_text_is_what_the_assistant_says(policy):
    task = load_task("gsm8k", data=DATA, options=TaskOptions(0))
    row = rows_of(GSM8K["train"])[0]
    example = task.examples("train", chat_of(policy))[0]
    assert example.prompt == f"<|user|>Question: {row['question']}\nAnswer:\n<|a|>"
    assert example.gold == row["answer"]


def test_a_base_model_has_no_chat(toy_policy):
    with pytest.raises(UsageError, match="no chat template: it is a base model"):
        chat_of(toy_policy)


def test_targets_that_cannot_be_trained_on_are_refused():
    with pytest.raises(UsageError, match="it has no prompts to continue"):
        load_task("truthfulqa_mc1", data=DATA).check_target()
    with pytest.raises(UsageError, match="is a group of 57 tasks, so it cannot be a target"):
        load_task("mmlu", data=DATA).check_target()
    load_task("gsm8k", data=DATA).check_target()


def copied(tmp_path: Path, name: str, rows: list[dict]) -> Path:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_wrong_columns_are_named_with_their_place(tmp_path):
    data = copied(tmp_path, "gsm8k/train.jsonl", [{"question": "q", "answer": "#### 1"}])
    copied(tmp_path, "gsm8k/test.jsonl", [{"frage": "q", "answer": "#### 1"}])
    with pytest.raises(
        UsageError, match=r"test\.jsonl:1: no value for column 'question'.*columns are 'answer', 'frage'"
    ):
        load_task("gsm8k", data=data)


def test_a_missing_copy_and_a_missing_split_say_what_was_expected(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="no copy of its data set 'openai/gsm8k'; expected a folder gsm8k or"):
        load_task("gsm8k", data=tmp_path / "data")
    data = copied(tmp_path, "gsm8k/train.jsonl", [{"question": "q", "answer": "#### 1"}])
    with pytest.raises(UsageError, match=r"no split 'test'; expected one of main/test\.jsonl, test\.jsonl"):
        load_task("gsm8k", data=data)


@pytest.mark.parametrize("folder", ["gsm8k", "openai__gsm8k", "openai"])
@pytest.mark.parametrize("place", ["main/{}.jsonl", "{}.jsonl"])
def test_copies_are_found_under_the_names_in_use(tmp_path, folder, place):
    for split in ("train", "test"):
        data = copied(tmp_path, f"{folder}/{place.format(split)}", [{"question": split, "answer": "#### 1"}] * 6)
    task = load_task("gsm8k", data=data, options=TaskOptions(0))
    assert task.examples("test")[0].prompt == "Question: test\nAnswer:"


def test_a_parquet_copy_is_the_same_data(tmp_path):
    frame = datasets.Dataset.from_list(rows_of(GSM8K["test"]))
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        frame.to_parquet(tmp_path / "gsm8k" / f"{split}.parquet")
    ours = load_task("gsm8k", data=tmp_path, options=TaskOptions(0)).examples("test")
    assert ours == load_task("gsm8k", data=DATA, options=TaskOptions(0)).examples("test")


def test_the_numbered_parts_of_a_download_are_one_split(tmp_path):
    rows = rows_of(GSM8K["test"])
    for part, chunk in enumerate((rows[:700], rows[700:])):
        copied(tmp_path, f"gsm8k/main/test-{part:05d}-of-00002.jsonl", chunk)
    data = copied(tmp_path, "gsm8k/main/train-00000-of-00001.jsonl", rows[:5])
    ours = load_task("gsm8k", data=data, options=TaskOptions(0)).examples("test")
    assert ours == load_task("gsm8k", data=DATA, options=TaskOptions(0)).examples("test")


def test_a_copy_without_its_training_split_is_refused(tmp_path):
    data = copied(tmp_path, "gsm8k/test.jsonl", rows_of(GSM8K["test"])[:5])
    with pytest.raises(UsageError, match=r"holds no split 'train'; expected one of main/train\.jsonl, train\.jsonl"):
        load_task("gsm8k", data=data)


@pytest.mark.parametrize(("closing", "is_right"), [("<|endoftext|>", True), ("<|other|>", False), ("", True)])
def test_a_chat_ends_a_turn_with_the_token_of_gold_texts(policy, closing, is_right):
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    end = tokenizer.eos_token if closing == "<|endoftext|>" else closing
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}" + end + "\n{% endfor %}"
    chatting = replace(policy, tokenizer=tokenizer)
    if is_right:
        check_chat_end(chatting)
    else:
        with pytest.raises(UsageError, match=r"ends a turn with <\|other\|>.* set shared\.end_of_text = '<\|other\|>'"):
            check_chat_end(chatting)
