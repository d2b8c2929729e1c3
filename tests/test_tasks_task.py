import json
import math
from pathlib import Path

import lm_eval.tasks
import pytest
import yaml

from statewise.errors import UsageError
from statewise.pocket.world import World, write_benchmarks
from statewise.tasks.generation import cut_at
from statewise.tasks.load import load_task
from statewise.tasks.task import Task
from statewise.tasks.task_file import read_task_file

LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
STRICT, FLEXIBLE = "exact_match,strict-match", "exact_match,flexible-extract"


@pytest.fixture(scope="module")
def pocket_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_benchmarks(World.from_seed(1), folder)
    return folder


def write_math(folder: Path, answers: list[str], **changes) -> Path:
    """GSM8K as lm-eval has it, with our rows: question i is "Q<i>?"."""
    rows = [{"question": f"Q{i}?", "answer": answer} for i, answer in enumerate(answers)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "include": str(LM_EVAL_TASKS / "gsm8k" / "gsm8k.yaml"),
        "task": "toy_math",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"train": "rows.jsonl", "test": "rows.jsonl"}},
        "num_fewshot": 0,
        **changes,
    }
    path = folder / "toy_math.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" He has 2+3=<<2+3=5>>5.\n#### 1234", 1, 1),
        (" #### 1,234", 1, 1),  # the metric drops commas
        (" #### 1,234.", 1, 1),  # … and a final full stop
        (" So the answer is 1234.", 0, 1),  # only the strict filter needs "####"
        (" #### $1234", 0, 1),  # "$" is no part of the strict pattern, and the metric drops it
        (" #### 1234 or rather 99", 1, 0),  # strict takes the first "####", flexible the last number
        (" #### -1234", 0, 0),
        (" I do not know.", 0, 0),  # "[invalid]" matches nothing
        ("", 0, 0),
        (" #### 7", 0, 0),
        (" 1234Question: how many? #### 7", 0, 1),  # nothing after a stop string counts
    ],
)
def test_the_reward_is_that_of_gsm8k_by_hand(tmp_path, text, strict, flexible):
    path = write_math(tmp_path, ["She has 1,234.\n#### 1,234", "other"])
    assert load_task(str(path), reward_metric=STRICT).reward(0, text) == strict
    assert load_task(str(path), reward_metric=FLEXIBLE).reward(0, text) == flexible


def test_pocket_math_grades_like_gsm8k(tmp_path, pocket_folder):
    ours = load_task("pocket_math", task_folder=pocket_folder).lm_eval_task.config
    theirs = yaml.safe_load((LM_EVAL_TASKS / "gsm8k" / "gsm8k.yaml").read_text())
    for key in ("filter_list", "metric_list", "doc_to_text", "doc_to_target", "output_type"):
        assert ours[key] == theirs[key]


def test_the_reward_belongs_to_the_document(pocket_folder):
    task = load_task("pocket_math", task_folder=pocket_folder)
    examples = task.examples("train")
    assert [task.reward(example.index, example.gold) for example in examples[:50]] == [1.0] * 50
    assert task.reward(0, " #### 1000") == 0


def test_prompt_and_gold_of_a_pocket_problem(pocket_folder):
    task = load_task("pocket_math", task_folder=pocket_folder)
    for split in ("train", "test"):
        lines = (pocket_folder / f"pocket_math_{split}.jsonl").read_text().splitlines()
        examples = task.examples(split)
        assert [example.index for example in examples] == list(range(len(lines)))
        row = json.loads(lines[3])
        assert examples[3].prompt == f"Question: {row['question']}\nAnswer:"
        assert examples[3].gold == f" {row['answer']}"
    assert task.stop_strings == ("Question:",)
    assert task.max_new_tokens == 128


def test_worked_examples_are_those_of_lm_eval(tmp_path):
    path = write_math(tmp_path, [f"#### {i}" for i in range(20)], num_fewshot=3)
    task = load_task(str(path))
    reference = load_task(str(path)).lm_eval_task
    reference.set_fewshot_seed(1234)  # what simple_evaluate does by default
    reference.build_all_requests(limit=10)
    assert [r.args for r in reference.instances] == [
        requests[0].args for requests in task.requests(limit=10, items="first")
    ]
    assert [r.args[0] for r in reference.instances] == [example.prompt for example in task.examples("test")[:10]]


def test_a_training_document_is_not_among_its_own_worked_examples(tmp_path):
    path = write_math(tmp_path, [f"#### {i}" for i in range(4)], num_fewshot=2, fewshot_config={"sampler": "first_n"})
    prompts = [example.prompt for example in load_task(str(path)).examples("train")]
    # The first two others, in order: by hand for documents 0 and 3.
    assert prompts[0] == "Question: Q1?\nAnswer: #### 1\n\nQuestion: Q2?\nAnswer: #### 2\n\nQuestion: Q0?\nAnswer:"
    assert prompts[3] == "Question: Q0?\nAnswer: #### 0\n\nQuestion: Q1?\nAnswer: #### 1\n\nQuestion: Q3?\nAnswer:"


def test_examples_are_the_same_at_every_call(tmp_path):
    task = load_task(str(write_math(tmp_path, [f"#### {i}" for i in range(20)], num_fewshot=3)))
    assert task.examples("train") == task.examples("train")


@pytest.mark.parametrize(
    ("changes", "gold"),
    [
        ({}, " #### 5"),
        ({"target_delimiter": "\n"}, "\n#### 5"),
        ({"gen_prefix": "Well"}, " #### 5"),  # the prompt ends with the prefix, which lm-eval parts by a space
        ({"doc_to_target": "{{[answer, question]}}"}, " #### 5"),  # of several targets the first
        ({"doc_to_target": "0", "doc_to_choice": ["yes", "no"]}, " yes"),
        ({"doc_to_target": ""}, ""),
    ],
)
def test_gold_is_what_lm_eval_would_write_after_the_prompt(tmp_path, changes, gold):
    task = load_task(str(write_math(tmp_path, ["#### 5", "#### 6"], **changes)))
    assert task.examples("train")[0].gold == gold


def test_the_reward_metric_is_the_tasks_first_unless_named(pocket_folder):
    assert load_task("pocket_math", task_folder=pocket_folder).reward_metric == STRICT
    with pytest.raises(UsageError, match=r"unknown reward metric 'exact_match,flexible'.*Did you mean.*strict-match"):
        load_task("pocket_math", task_folder=pocket_folder, reward_metric="exact_match,flexible")


def test_an_answer_that_the_grader_fails_on_is_nan_not_zero(tmp_path):
    (tmp_path / "grader.py").write_text(
        "def grade(doc, results):\n    return {'exact_match': float(int(results[0]) > 0)}\n"
    )
    path = write_math(tmp_path, ["#### 5", "#### 6"], filter_list=None)
    path.write_text(path.read_text() + "process_results: !function grader.grade\n")
    task = load_task(str(path), trusted=read_task_file(path).told_code)
    assert task.reward(0, "12") == 1
    assert task.reward(0, "-1") == 0
    assert math.isnan(task.reward(0, "twelve"))


def test_a_metric_without_single_scores_gives_no_reward(tmp_path):
    path = write_math(tmp_path, ["#### 5", "#### 6"], metric_list=[{"metric": "bleu"}], filter_list=None)
    assert math.isnan(load_task(str(path)).reward(0, " #### 5"))


def test_a_target_without_a_training_split_is_refused(tmp_path):
    task = load_task(str(write_math(tmp_path, ["#### 5", "#### 6"], training_split=None, fewshot_split=None)))
    assert len(task.examples("test")) == 2
    with pytest.raises(UsageError, match="'toy_math' has no training split"):
        task.examples("train")


def test_a_task_that_does_not_generate_is_refused_as_a_target(pocket_folder):
    task = load_task("pocket_facts", task_folder=pocket_folder)
    with pytest.raises(UsageError, match=r"'pocket_facts' is multiple_choice.*retention"):
        task.examples("train")


def test_an_unknown_split_is_refused(pocket_folder):
    with pytest.raises(UsageError, match=r"unknown split 'tset'\. Did you mean 'test'"):
        load_task("pocket_math", task_folder=pocket_folder).examples("tset")


def test_a_task_checks_its_reward_metric(pocket_folder):
    with pytest.raises(UsageError, match="unknown reward metric ''"):
        Task("pocket_math", load_task("pocket_math", task_folder=pocket_folder).members)


def test_a_text_is_cut_at_its_first_stop_string():
    assert cut_at("a b c b", ("b",)) == "a "
    assert cut_at("a b c", ("c", "b")) == "a "
    assert cut_at("a", ("b",)) == "a"


NUMBER = {"function": "regex", "regex_pattern": "#### (-?[0-9]+)"}
SELF_CONSISTENCY = [
    {
        "name": "first",
        "filter": [{"function": "regex", "regex_pattern": "#### (-?[0-9]+)"}, {"function": "take_first"}],
    },
    {
        "name": "majority",
        "filter": [
            {"function": "take_first_k", "k": 4},
            {"function": "regex", "regex_pattern": "#### (-?[0-9]+)"},
            {"function": "majority_vote"},
            {"function": "take_first"},
        ],
    },
]


def test_a_reward_is_graded_by_its_own_filter_where_another_takes_several_answers(tmp_path):
    path = write_math(tmp_path, ["#### 7", "#### 8"], filter_list=SELF_CONSISTENCY, repeats=4)
    task = load_task(str(path), reward_metric="exact_match,first")
    task.check_target()
    assert [task.reward(0, " #### 7"), task.reward(0, " #### 8"), task.reward(1, " #### 8")] == [1, 0, 1]


def test_a_reward_metric_of_several_answers_is_refused_for_a_target(tmp_path):
    path = write_math(tmp_path, ["#### 7"], filter_list=SELF_CONSISTENCY, repeats=4)
    task = load_task(str(path), reward_metric="exact_match,majority")
    with pytest.raises(UsageError, match=r"'exact_match,majority' is a score of 4 answers .* use another of exact"):
        task.check_target()
