import io
import json
import multiprocessing
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from statewise.errors import UsageError
from statewise.pocket.world import World, write_benchmarks
from statewise.tasks import load
from statewise.tasks.find import find_task_file, list_tasks
from statewise.tasks.load import load_task

CHOICE_TASK = {
    "task": "toy_choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "toy.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 7},
}
CHOICE_ROW = {"question": "Which?", "choices": ["a", "b"], "label": 1}


@pytest.fixture(scope="module")
def pocket_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_benchmarks(World.from_seed(1), folder)
    return folder


def write_task(folder: Path, rows: list | str, **changes) -> Path:
    config = {**CHOICE_TASK, **changes}
    path = folder / f"{config['task']}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "toy.jsonl").write_text(text)
    return path


def test_a_task_is_found_by_its_name_in_the_folder_or_by_its_path(pocket_folder):
    assert list_tasks(pocket_folder) == ("pocket_facts", "pocket_math", "pocket_myths")
    assert find_task_file("pocket_math", pocket_folder) == pocket_folder / "pocket_math.yaml"
    assert find_task_file(str(pocket_folder / "pocket_math.yaml"), None) == pocket_folder / "pocket_math.yaml"
    assert find_task_file("../pocket_math", pocket_folder / "inner") is None
    assert find_task_file("pocket_math", None) is None


@pytest.mark.parametrize("name", ["pocket_math", "pocket_facts", "pocket_myths"])
def test_the_pocket_tasks_load_from_any_directory_and_leave_no_cache(pocket_folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    task = load_task(name, task_folder=pocket_folder)
    num_items = len(
        (pocket_folder / f"{name}{'_test' if name == 'pocket_math' else ''}.jsonl").read_text().splitlines()
    )
    assert len(task.requests()) == num_items
    assert f"0-shot; split test, n = {num_items}" in task.protocol
    assert list(tmp_path.iterdir()) == []


def test_the_protocol_states_shots_split_items_filters_and_versions(tmp_path):
    write_task(tmp_path, [CHOICE_ROW, CHOICE_ROW])
    task = load_task("toy_choice", task_folder=tmp_path)
    assert task.version == "7"
    assert task.protocol.startswith("0-shot; split test, n = 2; task version 7, lm-eval 0.4.")
    assert task.metrics == ("acc,none",)


def test_changed_data_are_seen_at_the_next_load(tmp_path):
    write_task(tmp_path, [CHOICE_ROW])
    assert len(load_task("toy_choice", task_folder=tmp_path).requests()) == 1
    write_task(tmp_path, [CHOICE_ROW] * 3)
    assert len(load_task("toy_choice", task_folder=tmp_path).requests()) == 3


def count_items(folder: Path) -> int:
    return len(load_task("pocket_math", task_folder=folder).requests(limit=50))


def test_two_processes_load_the_same_task_at_once(pocket_folder):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(count_items, [pocket_folder] * 4, chunksize=1) == [50] * 4


def test_other_local_formats_are_read_relative_to_the_task_without_a_lasting_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_task(
        tmp_path,
        "",
        dataset_path="csv",
        dataset_kwargs={"data_files": {"test": "*.csv"}},
        doc_to_choice=["no", "yes"],
    )
    (tmp_path / "rows.csv").write_text("question,label\nIs it?,1\nIs it not?,0\n")
    (first, _), (second, _) = load_task("toy_choice", task_folder=tmp_path).requests()
    assert [first.args[0], second.args[0]] == ["Is it?", "Is it not?"]
    assert not (tmp_path / "cache").exists()


def test_a_json_array_is_read_too(tmp_path):
    write_task(tmp_path, "", dataset_kwargs={"data_files": {"test": ["toy.json"]}})
    (tmp_path / "toy.json").write_text(json.dumps([CHOICE_ROW, CHOICE_ROW]))
    assert len(load_task("toy_choice", task_folder=tmp_path).requests()) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", r"toy\.jsonl: holds no rows"),
        ('{"question": "Which?"\n', r"toy\.jsonl:1: not valid JSON"),
        (json.dumps(CHOICE_ROW) + "\n\n[1]\n", r"toy\.jsonl:3: expected one JSON object, got list"),
        ([CHOICE_ROW, {"question": "Which?", "choices": ["a"]}], r"toy\.jsonl:2: no value for column 'label'"),
        ([{"text": "Which?"}], "no value for column 'question'.* the file's columns are 'text'"),
        ([CHOICE_ROW, {**CHOICE_ROW, "label": "one"}], "values of different types"),
        ([CHOICE_ROW, {**CHOICE_ROW, "label": 2}], "item 1 has label 2, but its 2 choices"),
    ],
)
def test_a_malformed_data_file_is_refused_with_its_place(tmp_path, rows, message):
    write_task(tmp_path, rows)
    with pytest.raises(UsageError, match=message):
        load_task("toy_choice", task_folder=tmp_path)


def test_a_column_used_under_a_condition_may_be_missing_in_some_rows(tmp_path):
    template = "{% if hint %}{{hint}} {% endif %}{{question}}"
    write_task(tmp_path, [CHOICE_ROW, {**CHOICE_ROW, "hint": "It is b."}], doc_to_text=template)
    task = load_task("toy_choice", task_folder=tmp_path)
    assert [requests[0].args[0] for requests in task.requests()] == ["Which?", "It is b. Which?"]


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("{% if hint %}Hint. {% endif %}{{context}}{{question}}", {"context": None}),
        ("{{question}}{% for word in context %}{{word}}{% endfor %}", {"context": None}),
        ("{{question}}{% if context > 2 %}!{% endif %}", {"context": None}),
    ],
)
def test_a_template_with_conditions_never_prints_a_missing_value(tmp_path, template, row):
    rows = [{**CHOICE_ROW, "hint": "x", "context": 3 if ">" in template else "c"}, {**CHOICE_ROW, "hint": None, **row}]
    write_task(tmp_path, rows, doc_to_text=template)
    with pytest.raises(UsageError, match=r"toy\.jsonl:2: doc_to_text of task 'toy_choice' would print a missing value"):
        load_task("toy_choice", task_folder=tmp_path)


GOLD_TASK = {
    "task": "gold",
    "output_type": "generate_until",
    "training_split": "train",
    "doc_to_choice": None,
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def gold_task(folder, content, file_format="csv", **options):
    """A generative task on one file of either split."""
    path = folder / f"rows.{file_format}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    files = {"data_files": {"train": path.name, "test": path.name}, **options}
    write_task(folder, "", **{**GOLD_TASK, "dataset_path": file_format, "dataset_kwargs": files})
    return load_task("gold", task_folder=folder)


def test_the_gold_text_of_a_csv_is_the_cell(tmp_path):
    task = gold_task(tmp_path, "question,answer\n1?,007\n2?,1.50\n3?,NA\n")
    assert [example.gold for example in task.examples("train")] == [" 007", " 1.50", " NA"]


def parquet(answers):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"question": ["1?", "2?"], "answer": answers}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file_format", "content", "told"),
    [
        ("csv", "question,answer\n1+1?,\n2+2?,4\n", r"rows\.csv:2: no value for column 'answer'"),
        ("json", '{"question": "1?", "answer": "2"}\n{"question": "2?", "answer": null}\n', r"rows\.json:2: no value"),
        ("json", '{"question": "1?", "answer": "2"}\n{"question": "2?"}\n', r"rows\.json:2: no value"),
        ("parquet", parquet(["x", None]), r"rows\.parquet, row 2: no value for column 'answer'"),
        ("parquet", parquet([float("nan"), 1.0]), r"rows\.parquet, row 1: no value for column 'answer'"),
        ("csv", "question, answer\n1?,2\n", "no value for column 'answer'.* columns are ' answer', 'question'"),
        ("csv", "question,answer\n1?,2,3\n", r"rows\.csv:2: 3 cells"),
        ("csv", "question,answer\n1?,\xe9\n".encode("latin-1"), r"rows\.csv:2: not UTF-8 text"),
        ("json", '{"question": "1?", "answer": 1}\n{"question": "2?", "answer": 2.5}\n', r"2: .*types \(float, int\)"),
        ("json", '{"question": "1?", "answer": 1}\n{"question": "2?", "answer": true}\n', r"2: .*types \(bool, int\)"),
        ("json", '{"question": "1?", "answer": [1, 2.5]}\n', r"json:1: column 'answer' has values of different types"),
    ],
)  # fmt: skip
def test_rows_of_every_format_have_one_set_of_checks(tmp_path, file_format, content, told):
    with pytest.raises(UsageError, match=told):
        gold_task(tmp_path, content, file_format)


def test_text_and_parquet_are_read_from_a_folder_with_brackets(tmp_path):
    (folder := tmp_path / "a[1] b").mkdir()
    assert [e.gold for e in gold_task(folder, parquet(["x", "y"]), "parquet").examples("train")] == [" x", " y"]
    (folder / "rows.txt").write_text("one\u2028two\n")
    files = {"data_files": {"train": "rows.txt", "test": "rows.txt"}}
    changes = {"dataset_path": "text", "dataset_kwargs": files, "doc_to_text": "text", "doc_to_target": "text"}
    write_task(folder, "", **{**GOLD_TASK, **changes})
    (example,) = load_task("gold", task_folder=folder).examples("train")
    assert (example.prompt, example.gold) == ("one\u2028two", " one\u2028two")


def test_a_missing_data_file_is_named(tmp_path):
    write_task(tmp_path, [CHOICE_ROW])
    (tmp_path / "toy.jsonl").unlink()
    with pytest.raises(UsageError, match=r"test data .*toy\.jsonl do not exist"):
        load_task("toy_choice", task_folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unsafe_code": True}, "runs code that the model wrote"),
        ({"doc_to_image": "image"}, "shows images"),
        ({"doc_to_text": "{{question"}, "doc_to_text is not a valid template"),
        ({"test_split": "tset"}, "lm-eval cannot build the task"),
        ({"output_type": "choose"}, "lm-eval cannot build the task"),
        ({"dataset_path": "somebody/something", "dataset_kwargs": None}, "cannot be loaded"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path, changes, message):
    path = write_task(tmp_path, [CHOICE_ROW], **changes)
    with pytest.raises(UsageError, match=message):
        load_task(str(path))


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    (tmp_path / "toy.yaml").write_text("task: [")
    with pytest.raises(UsageError, match=r"toy\.yaml: cannot be read"):
        load_task("toy", task_folder=tmp_path)


def test_an_unknown_name_suggests_the_nearest(pocket_folder):
    with pytest.raises(UsageError, match=r"unknown task 'pocket_maths'. Did you mean 'pocket_math'"):
        load_task("pocket_maths", task_folder=pocket_folder)
    with pytest.raises(UsageError, match=r"Did you mean 'gsm8k'"):
        load_task("gsm8kk")


def test_a_group_whose_members_are_scored_differently_is_refused(tmp_path, monkeypatch):
    one = write_task(tmp_path, [CHOICE_ROW])
    other = tmp_path / "other.yaml"
    other.write_text(one.read_text().replace("metric: acc\n", "metric: acc_norm\n").replace("toy_choice", "other"))
    monkeypatch.setattr(load, "_find_in_lm_eval", lambda name, folder: [one, other])
    with pytest.raises(UsageError, match=r"'many' is a group whose members differ .* such as toy_choice, other"):
        load_task("many")


def test_lm_evals_own_task_is_taken_where_the_folder_has_none(tmp_path):
    with pytest.raises(UsageError, match=r"gsm8k\.yaml: its data set 'openai/gsm8k' cannot be loaded"):
        load_task("gsm8k", task_folder=tmp_path)


def test_a_task_that_is_python_is_refused():
    with pytest.raises(UsageError, match="is written as a Python class"):
        load_task("squadv2")
