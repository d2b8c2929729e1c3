"""What a task file may do: its templates are rendered sandboxed, and its Python runs only where the user says so."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import lm_eval.tasks
import pytest
import yaml
from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateError, meta
from lm_eval import utils
from lm_eval.tasks._yaml_loader import load_yaml

from statewise.assets import POCKET_MODEL
from statewise.errors import UsageError
from statewise.models.evaluation import plan_evaluation
from statewise.models.evaluation_request import EvaluationRequest
from statewise.plan.benchmarks import build_task
from statewise.plan.request import StudyRequest, plan_study
from statewise.tasks.load import load_task
from statewise.tasks.task_file import read_task_file

BUILT_IN = Path(lm_eval.tasks.__file__).parent
TASK = {
    "task": "toy",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "rows.jsonl", "test": "rows.jsonl"}},
    "output_type": "generate_until",
    "training_split": "train",
    "test_split": "test",
    "fewshot_split": "train",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "num_fewshot": 1,
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ATTACK = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}{{question}}"
CHOICES = {"output_type": "multiple_choice", "generation_kwargs": None, "metric_list": [{"metric": "acc"}]}


def write(folder: Path, name: str = "toy.yaml", code: str = "", **changes) -> Path:
    """A task in `folder`; `code`: lines of YAML that `safe_dump` cannot write."""
    rows = [{"question": f"{i}?", "answer": f"{i}", "choices": ["0", "1"]} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
    (folder / name).write_text(yaml.safe_dump(config, sort_keys=False) + code)
    return folder / name


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """A file that appears where code of a task was run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "MARK"


def use(path: Path, **options) -> None:
    """Everything that renders a template: prompts with worked examples, gold, requests, in both splits."""
    task = load_task(str(path), **options)
    if task.is_generative:
        task.examples("train")
        task.examples("test")
    task.requests()
    task.memory_prompts(2)


@pytest.mark.parametrize(
    "changes",
    [
        {"doc_to_text": ATTACK},
        {"doc_to_target": ATTACK},
        {"description": ATTACK},
        {"gen_prefix": ATTACK},
        {"doc_to_choice": ATTACK, "doc_to_target": 0, **CHOICES},
        {"fewshot_config": {"doc_to_text": ATTACK}},
        {"fewshot_config": {"doc_to_target": ATTACK}},
        {"fewshot_config": {"gen_prefix": ATTACK}},
        {"doc_to_choice": "choices", "doc_to_target": 0, "fewshot_config": {"doc_to_choice": ATTACK}, **CHOICES},
        {"doc_to_text": "{% if question == '3?' %}" + ATTACK + "{% endif %}{{question}}"},
        {"doc_to_text": "{{ ('{0.__class__}').format(question) }}{{ question|attr('__class__') }}"},
        {"doc_to_text": "{{ choices.append('2') }}{{ question }}"},
    ],
)
def test_no_template_reaches_python(tmp_path, mark, changes):
    with pytest.raises(UsageError, match=r"task's template .*(unsafe|not safely callable)"):
        use(write(tmp_path, **changes))
    assert not mark.exists()


def values_for(template: str, kind: int) -> dict:
    """Documents of several shapes for the variables of a template."""
    names = meta.find_undeclared_variables(utils.env.parse(template))
    shapes = [" Some text. (a) ", 1, ["one", "two", "three", "four"], {"text": ["one", "two"], "label": [0, 1]}]
    return {name: shapes[(kind + place * (kind > 3)) % 4] for place, name in enumerate(sorted(names))}


def outcome(environment: Environment, template: str, doc: dict) -> str:
    try:
        return environment.from_string(template).render(**doc)
    except (TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        return type(error).__name__


def templates_of(path: Path) -> list[str]:
    config = load_yaml(path, resolve_func=False)
    fewshot = config.get("fewshot_config") or {}
    keys = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")
    return [table[key] for table in (config, fewshot) for key in keys if isinstance(table.get(key), str)]


def test_lm_evals_own_templates_render_as_in_lm_eval():
    plain = Environment(loader=BaseLoader, undefined=StrictUndefined, keep_trailing_newline=True)
    plain.filters["regex_replace"] = utils.regex_replace
    named = [*BUILT_IN.glob("gsm8k/*.yaml"), *BUILT_IN.glob("truthfulqa/*.yaml"), *BUILT_IN.glob("hendrycks*/*.yaml")]
    named += sorted(BUILT_IN.glob("mmlu/default/*.yaml"))[:5] + sorted(BUILT_IN.glob("*/*.yaml"))[::29]
    templates = {template for path in named for template in templates_of(path)}
    rendered = 0
    for template in sorted(templates):
        for kind in range(8):
            doc = values_for(template, kind)
            ours, theirs = outcome(utils.env, template, doc), outcome(plain, template, doc)
            assert ours == theirs, template
            rendered += not theirs.endswith("Error")
    assert len(templates) > 100 and rendered > 300
    assert utils.env is not plain and utils.env.sandboxed


GRADER = "def grade(doc, results):\n    return {'exact_match': 1.0}\nopen('MARK', 'w').close()\n"


@pytest.mark.parametrize(
    "code",
    [
        "process_results: !function grader.grade\n",
        "process_docs: !function grader.grade\n",
        "metric_list:\n  - metric: !function grader.grade\n    aggregation: mean\n    higher_is_better: true\n",
        "metric_list:\n  - metric: exact_match\n    aggregation: !function grader.grade\n",
        "filter_list:\n  - name: one\n    filter: [{function: custom, filter_fn: !function grader.grade}]\n",
        "fewshot_config:\n  samples: !function grader.grade\n",
        "custom_dataset: !function grader.grade\n",
        "class: !function grader.grade\n",
        "note:\n  - [{? !function grader.grade : 1}]\n",
        "doc_to_text: !function os.system\n",
    ],
)
def test_python_of_a_task_file_asks_for_trust_and_is_not_imported(tmp_path, mark, code):
    (tmp_path / "grader.py").write_text(GRADER)
    path = write(tmp_path, code=code)
    line = 1 + path.read_text().split("!function")[0].count("\n")
    with pytest.raises(UsageError, match=rf"toy\.yaml:{line}: .*(grader\.grade|os\.system).*--trust-task-code"):
        load_task(str(path))
    assert not mark.exists()


def test_python_that_was_named_and_trusted_runs(tmp_path, mark):
    (tmp_path / "grader.py").write_text(GRADER)
    path = write(tmp_path, code="process_results: !function grader.grade\n")
    told = read_task_file(path).told_code
    num_lines = len(path.read_text().splitlines())
    assert told == (f"{path}:{num_lines}: grader.grade of {tmp_path / 'grader.py'}",)
    task = load_task(str(path), trusted=told)
    assert mark.exists()
    assert task.reward(0, "anything") == 1


def model_with_code(folder: Path) -> Path:
    """The embedded model, with a grader of its own for its task of mathematics."""
    model = folder / "model"
    shutil.copytree(POCKET_MODEL, model)
    (model / "tasks" / "grader.py").write_text(GRADER)
    task = model / "tasks" / "pocket_math.yaml"
    task.write_text(task.read_text() + "process_results: !function grader.grade\n")
    return model


def test_trust_is_asked_for_at_the_plan_and_travels_to_the_workers(tmp_path, mark):
    request = StudyRequest("pocket", model=str(model_with_code(tmp_path)))
    with pytest.raises(UsageError, match=r"pocket_math\.yaml:\d+: grader\.grade of .*--trust-task-code"):
        plan_study(request)
    with pytest.raises(UsageError, match=r"--trust-task-code"):
        plan_evaluation(EvaluationRequest(request.model, ("pocket_math",)))
    assert not mark.exists()
    plan = plan_study(replace(request, trusts_task_code=True))
    assert not mark.exists()
    assert [line.split(": ")[1].split()[0] for line in plan.task_code] == ["grader.grade"]
    task = build_task(pickle.loads(pickle.dumps(plan)), "pocket_math")  # as a worker gets it
    assert mark.exists() and task.reward(0, "anything") == 1


def test_a_change_of_trusted_python_is_another_study(tmp_path):
    request = StudyRequest("pocket", model=str(model_with_code(tmp_path)), trusts_task_code=True)
    before = plan_study(request).fingerprint
    grader = Path(request.model) / "tasks" / "grader.py"
    grader.write_text(grader.read_text().replace("1.0", "0.5"))
    assert plan_study(request).fingerprint != before


def test_trust_in_one_function_is_no_trust_in_another(tmp_path, mark):
    (tmp_path / "grader.py").write_text(GRADER)
    path = write(tmp_path, code="process_results: !function grader.grade\n")
    told = read_task_file(path).told_code
    path.write_text(path.read_text() + "process_docs: !function grader.grade\n")
    with pytest.raises(UsageError, match=r"toy\.yaml:\d+: grader\.grade of .*--trust-task-code"):
        load_task(str(path), trusted=told)
    assert not mark.exists()


def test_python_of_lm_evals_own_tasks_is_trusted_by_its_place(tmp_path, mark):
    (tmp_path / "tasks").mkdir()
    for file in (tmp_path / "utils.py", tmp_path / "tasks" / "utils.py"):
        file.write_text(GRADER)  # of the same name as lm-eval's, and not to be taken for it
    path = write(tmp_path, code=f"include: {BUILT_IN / 'drop' / 'default.yaml'}\n", doc_to_text="question")
    file = read_task_file(path)
    assert file.told_code == ()
    config = file.resolved()
    assert config["process_results"].__module__ == "lm_eval.tasks.drop.utils"
    assert not mark.exists()


def test_an_included_file_of_the_users_own_is_not_trusted(tmp_path, mark):
    (tmp_path / "grader.py").write_text(GRADER)
    (tmp_path / "base.yaml").write_text("process_results: !function grader.grade\n")
    path = write(tmp_path, code="include: base.yaml\n")
    with pytest.raises(UsageError, match=r"base\.yaml:1: .*grader\.grade.*--trust-task-code"):
        load_task(str(path))
    assert not mark.exists()


def test_a_link_into_lm_evals_folder_is_lm_evals_and_a_link_out_of_the_users_is_refused(tmp_path, mark):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "grader.py").write_text(GRADER)
    (outside / "base.yaml").write_text("process_results: !function grader.grade\n")
    inside = tmp_path / "lm_eval" / "tasks"  # a path that merely looks like lm-eval's own
    inside.mkdir(parents=True)
    (inside / "link.yaml").symlink_to(outside / "base.yaml")
    (inside / "own.yaml").symlink_to(BUILT_IN / "drop" / "default.yaml")
    path = write(inside, code="include: own.yaml\n")
    assert read_task_file(path).told_code == ()
    for include in ("link.yaml", "../../outside/base.yaml", str(outside / "base.yaml")):
        path = write(inside, code=f"include: {include}\n")
        with pytest.raises(UsageError, match=r"toy\.yaml: includes .*base\.yaml, which lies outside"):
            load_task(str(path))
    assert not mark.exists()


@pytest.mark.parametrize("tag", ["object/apply:os.system ['touch MARK']", "name:os.system", "module:os"])
def test_python_tags_of_yaml_are_refused(tmp_path, mark, tag):
    path = write(tmp_path, code=f"note: !!python/{tag}\n")
    with pytest.raises(UsageError, match=r"toy\.yaml: cannot be read: .*could not determine a constructor"):
        load_task(str(path))
    assert not mark.exists()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch MARK",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_list": [{"metric": "./metric.py"}]}, r"metric_list: unknown metric './metric.py'"),
        ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, "hf_evaluate.*Python"),
        ({"use_prompt": "prompts.yaml:one"}, "use_prompt"),
        ({"dataset_path": "pandas", "dataset_kwargs": {"data_files": {"test": "bomb.pkl"}}}, "dataset_path 'pandas'"),
        ({"dataset_path": "./script.py", "dataset_kwargs": None}, r"dataset_path '\./script\.py'"),
        ({"dataset_path": "script", "dataset_kwargs": None}, "dataset_path 'script'"),
        ({"dataset_kwargs": {**TASK["dataset_kwargs"], "trust_remote_code": True}}, "trust_remote_code"),
        ({"dataset_kwargs": {**TASK["dataset_kwargs"], "cache_dir": "elsewhere"}}, "cache_dir"),
        ({"unsafe_code": True}, "runs code that the model wrote"),
    ],
)
def test_other_ways_to_run_code_are_refused(tmp_path, mark, changes, message):
    code = "open('MARK', 'w').close()\n"
    (tmp_path / "metric.py").write_text(code)
    (tmp_path / "script.py").write_text(code)
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(code)
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UsageError, match=message):
        load_task(str(write(tmp_path, **changes)))
    assert not mark.exists()


def test_a_file_cannot_take_back_that_what_it_includes_runs_code_of_a_model(tmp_path):
    code = f"include: {BUILT_IN / 'humaneval' / 'humaneval.yaml'}\nunsafe_code: false\n"
    with pytest.raises(UsageError, match="runs code that the model wrote"):
        load_task(str(write(tmp_path, code=code)))


@pytest.mark.parametrize("name", ["../../outside", ".", "..", "", "a/b", "a\nb", ".hidden", "-x", "\x1b[31m", ["a"], 7])
def test_a_task_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"toy\.yaml: task: .* is no name"):
        load_task(str(write(tmp_path, task=name)))


def test_every_name_of_lm_evals_own_is_one():
    from statewise.tasks.find import NAME, lm_eval_names

    assert len(lm_eval_names()) > 13_000
    assert [name for name in lm_eval_names() if not NAME.fullmatch(name)] == []
    assert "egymmlu_arabic_language_(grammar)" in lm_eval_names()


def test_names_of_lm_eval_are_found_wherever_a_file_has_them():
    from statewise.tasks.find import lm_eval_names

    # Below worked examples; in a list of tags; in a file that tasks include.
    assert {"gsm8k_cot", "adr_prompt_1", "acp_bench", "acp_gen_2shot"} <= set(lm_eval_names())
    assert not {"mml", "null"} & set(lm_eval_names())  # half a name, and none


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (bomb(9), "more than .* values"),
        ("note: " + "[" * 5000 + "]" * 5000 + "\n", "nested more than"),
        ("note: &a [*a]\n", "holds itself"),
        ("note: " + "9" * 5000 + "\n", "cannot be read"),
    ],
)
def test_a_task_file_that_unfolds_without_bound_is_refused(tmp_path, code, message):
    with pytest.raises(UsageError, match=rf"toy\.yaml.*{message}"):
        load_task(str(write(tmp_path, code=code)))


def test_anchors_and_merges_are_read(tmp_path):
    code = "one: &one {metric: exact_match, aggregation: mean}\nmetric_list: [{<<: *one, higher_is_better: true}]\n"
    path = write(tmp_path, metric_list=None, code=code)
    assert read_task_file(path).config["metric_list"] == TASK["metric_list"]
