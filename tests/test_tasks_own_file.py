"""Task files of the user's own, named by path as the target or as retention of a study."""

from __future__ import annotations

import json
import shutil

import pytest
from study_fixture import fake_model
from toy_jobs import DONE

from statewise.assets import POCKET_MODEL
from statewise.config.read import read_resolved, read_study, read_study_and_place, to_toml
from statewise.errors import UsageError
from statewise.folder.store import Store
from statewise.plan.benchmarks import build_task, check_texts
from statewise.plan.catalog import POCKET_REWARD, built_in_studies, place_of_task
from statewise.plan.dag import make_plan
from statewise.plan.materials import is_known_to_be_sound
from statewise.plan.request import StudyRequest, plan_study
from statewise.tasks.find import find_first_metric
from statewise.tasks.load import load_task

TASK = """\
task: sums
include: common.yml
dataset_path: json
dataset_kwargs:
  data_files:
    train: train.jsonl
    test: ../test.jsonl
training_split: train
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""
COMMON = """\
output_type: generate_until
target_delimiter: " "
generation_kwargs:
  until: ["\\n"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
STUDY = """\
[study]
name = "own"
factors = ["source", "signal"]
[shared]
model = "pocket"
target = "tasks/sums.yaml"
retention = ["pocket_facts"]
evaluation = { limit = 4, max_new_tokens = 8 }
drift = { num_prompts = 4 }
update = { num_updates = 1, lr = 1e-3 }
[arms.sft]
source = { kind = "dataset" }
signal = { kind = "imitate" }
[arms.rl]
source = { kind = "rollout", samples_per_prompt = 2 }
signal = { kind = "reward" }
"""
ROWS = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    """A study file, and its target in a folder beside it."""
    (tmp_path / "tasks").mkdir()
    for name, text in {"tasks/sums.yaml": TASK, "tasks/common.yml": COMMON, "own.toml": STUDY}.items():
        (tmp_path / name).write_text(text)
    for name in ("tasks/train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def plan_of(folder, *overrides, **settings):
    return plan_study(StudyRequest(str(folder / "own.toml"), overrides, is_dry=True, **settings))


def prints(plan):
    return [plan.fingerprint, *(job.fingerprint for job in plan.jobs)]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_task_given_by_path_is_known_by_its_name(folder):
    edit(folder / "own.toml", '["pocket_facts"]', '["pocket_facts", "more.yaml"]')
    (folder / "more.yaml").write_text(TASK.replace("sums", "more").replace("common", "tasks/common"))
    shutil.copy(folder / "tasks" / "train.jsonl", folder)
    edit(folder / "more.yaml", "../test", "test")
    plan = plan_of(folder)
    assert plan.tasks == ("sums", "pocket_facts", "more")
    assert plan.config.shared.reward_metric == "exact_match,none"
    assert plan.reward == "exact_match,none of sums"
    assert not is_known_to_be_sound(plan)
    tasks = [build_task(plan, name) for name in plan.tasks]
    assert [task.name for task in tasks] == [*plan.tasks]
    assert [one.prompt for one in tasks[2].examples("test")] == [row["question"] for row in ROWS]


def test_a_fingerprint_knows_the_files_but_not_where_they_lie(folder, tmp_path_factory, monkeypatch):
    before = prints(plan_of(folder))
    other = tmp_path_factory.mktemp("other") / "moved"
    shutil.copytree(folder, other)
    monkeypatch.chdir(other)
    assert prints(plan_of(other)) == before
    assert prints(plan_study(StudyRequest("own.toml", is_dry=True))) == before
    changes = {
        "tasks/sums.yaml": ("{{question}}", "{{question}} "), "tasks/common.yml": ("mean", "median"),
        "tasks/train.jsonl": ("0 + 1", "1 + 0"), "test.jsonl": ("0 + 1", "1 + 0"),
    }  # fmt: skip
    for name, change in changes.items():
        edit(other / name, *change)
        assert not {*prints(plan_of(other))} & {*before}, name
        edit(other / name, *reversed(change))
    assert prints(plan_of(other)) == before


def test_a_retention_task_of_ones_own_is_in_the_prints_of_evaluations_and_of_what_remembers_it(folder):
    edit(folder / "own.toml", "tasks/sums.yaml", "pocket_math")
    edit(folder / "own.toml", '["pocket_facts"]', '["tasks/sums.yaml"]')
    edit(folder / "own.toml", '[arms.rl]', '[arms.held]\nlocality = { kind = "ewc" }\n'
         'source = { kind = "dataset" }\nsignal = { kind = "imitate" }\n[arms.rl]')  # fmt: skip
    edit(folder / "own.toml", '"signal"]', '"signal", "locality"]')
    before = {job.id: job.fingerprint for job in plan_of(folder).jobs}
    edit(folder / "tasks" / "train.jsonl", "0 + 1", "1 + 0")
    after = {job.id: job.fingerprint for job in plan_of(folder).jobs}
    assert {job for job in before if before[job] == after[job]} == {"train:sft:0", "train:rl:0"}


def test_a_resolved_study_is_read_from_anywhere(folder, tmp_path_factory):
    plan = plan_of(folder)
    again = tmp_path_factory.mktemp("elsewhere") / "study.toml"
    again.write_text(to_toml(plan.config))
    assert read_study(again) == plan.config
    assert prints(plan_study(StudyRequest(str(again), is_dry=True))) == prints(plan)
    shutil.rmtree(folder / "tasks")
    assert read_resolved(again) == plan.config
    with pytest.raises(UsageError, match=r"\[tasks\]|study\.toml:\d+: there is no task file .*sums\.yaml"):
        read_study(again)


def test_another_task_file_is_named_where_a_folder_holds_another_study(folder):
    store = Store(folder / "run")
    with store.lock():
        assert list(store.open_for(plan_of(folder))) == []
    edit(folder / "tasks" / "sums.yaml", "{{question}}", "Q: {{question}}")
    with pytest.raises(UsageError, match=r"tasks\.sums is \["), store.lock():
        list(store.open_for(plan_of(folder)))


def test_files_that_changed_since_the_study_was_read_are_refused(folder):
    plan = plan_of(folder)
    edit(folder / "test.jsonl", "0 + 1", "1 + 0")
    with pytest.raises(UsageError, match=r"test\.jsonl changed since the study was read; run the same command again"):
        build_task(plan, "sums")


def test_a_path_of_the_command_line_is_relative_to_where_it_was_typed(folder, monkeypatch):
    monkeypatch.chdir(folder / "tasks")
    plan = plan_study(StudyRequest("pocket", ('shared.retention=["sums.yaml"]',), is_dry=True))
    assert plan.config.tasks["sums"].file == str(folder / "tasks" / "sums.yaml")
    assert plan_of(folder).config.tasks["sums"].file == str(folder / "tasks" / "sums.yaml")


@pytest.mark.parametrize(
    ("retention", "told"),
    [
        ('["tasks/sums.yaml"]', r"own\.toml:7: task 'tasks/sums\.yaml' is given twice"),
        ('["sums"]', r"tasks 'tasks/sums\.yaml' and 'sums' are both called 'sums'; give `task` in the YAML file anot"),
        ('["gsm8k", "tasks/gsm.yaml"]', r"tasks 'gsm8k' and 'tasks/gsm\.yaml' are both called 'gsm8k'"),
        ('["tasks/gsm.yaml", "gsm8k"]', r"tasks 'tasks/gsm\.yaml' and 'gsm8k' are both called 'gsm8k'"),
        ('["tasks/sum.yaml"]', r"own\.toml:7: there is no task file .*tasks/sum\.yaml"),
        ('["tasks/common.yml"]', r"common\.yml: expected a path that ends in \.yaml, or a task's name"),
        ('["sum.yaml"]', r"own\.toml:7: there is no task file "),
        ('["pocket_fact"]', r"unknown task 'pocket_fact'\. Did you mean 'pocket_facts'"),
    ],
)
def test_a_mistake_is_told_where_it_stands(folder, retention, told):
    (folder / "tasks" / "gsm.yaml").write_text(TASK.replace("task: sums", "task: gsm8k"))
    edit(folder / "own.toml", '["pocket_facts"]', retention)
    with pytest.raises(UsageError, match=told):
        plan_of(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("task: sums\n", ""), r"sums\.yaml: no `task` key"),
        (("task: sums", "task: ../sums"), r"task: '\.\./sums' is no name of a task"),
        (("train.jsonl", "tran.jsonl"), r"task 'sums': its train data .*tran\.jsonl do not exist"),
        (("train.jsonl", "3"), r"task 'sums': dataset_kwargs\.data_files: 3 is no file"),
        (("data_files:\n    train: train.jsonl\n    test: ../test.jsonl", "data_dir: x"), "name the files of local da"),
        (("common.yml", "comon.yml"), r"includes 'comon\.yml', but there is no file"),
    ],
)
def test_a_file_that_is_no_task_is_refused_by_the_plan(folder, change, told):
    edit(folder / "tasks" / "sums.yaml", *change)
    with pytest.raises(UsageError, match=rf"own\.toml:6: .*{told}"):
        plan_of(folder)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ('[tasks.more]\nfile = "tasks/sums.yaml"', r"\[tasks\.more\]: .*sums\.yaml calls its task 'sums'"),
        ('[tasks.gsm8k]\nfile = "tasks/gsm.yaml"', r"task 'gsm8k' is neither shared\.target nor in shared\.retention"),
    ],
)
def test_a_section_of_tasks_is_of_use_and_rightly_named(folder, section, told):
    (folder / "tasks" / "gsm.yaml").write_text(TASK.replace("task: sums", "task: gsm8k"))
    (folder / "own.toml").write_text(f"{STUDY}\n{section}\n")
    with pytest.raises(UsageError, match=told):
        plan_of(folder)


def test_own_data_are_not_called_as_a_task_file(folder):
    edit(
        folder / "own.toml",
        'target = "tasks/sums.yaml"\nretention = ["pocket_facts"]',
        "retention = ['tasks/sums.yaml']",
    )
    edit(folder / "own.toml", "[shared]", '[data]\nname = "sums"\ntrain = "test.jsonl"\ntest_share = 0.5\n'
         'prompt = "question"\ncompletion = "answer"\n[shared]')  # fmt: skip
    with pytest.raises(UsageError, match=r"the study's own data are called 'sums', as this task; give data\.name"):
        plan_of(folder)


def test_python_of_a_task_file_is_named_and_needs_trust(folder):
    (folder / "tasks" / "own.py").write_text("def ask(doc):\n    return doc['question'] + ' ?'\n")
    edit(folder / "tasks" / "sums.yaml", '"{{question}}"', "!function own.ask")
    with pytest.raises(
        UsageError, match=r"own\.toml:6: .*sums\.yaml:10: own\.ask of .*own\.py: the task runs this Pyth"
    ):
        plan_of(folder)
    plan = plan_of(folder, trusts_task_code=True)
    assert len(plan.task_code) == 1
    assert build_task(plan, "sums").examples("test")[0].prompt == "0 + 1 = ?"
    before = prints(plan)
    edit(folder / "tasks" / "own.py", "?", "!")
    assert not {*prints(plan_of(folder, trusts_task_code=True))} & {*before}


def test_a_model_with_tasks_of_its_own_hides_none_of_the_embedded_ones(folder):
    model = folder / "model"
    shutil.copytree(folder / "tasks", model / "tasks")
    config = read_study(folder / "own.toml")
    without = config.model_copy(update={"tasks": {}})
    assert place_of_task("sums", without, model) == ("sums", model / "tasks")
    assert place_of_task("pocket_facts", without, model) == ("pocket_facts", POCKET_MODEL / "tasks")
    assert place_of_task("pocket_facts", config, model) == ("pocket_facts", POCKET_MODEL / "tasks")
    assert place_of_task("sums", config, model)[0] == str(folder / "tasks" / "sums.yaml")


def test_a_record_made_on_another_task_of_that_name_is_not_replayed(folder, monkeypatch):
    monkeypatch.setattr("statewise.plan.replay._Parts.check", lambda parts: None)  # there are no states
    plan = plan_of(folder)
    store = Store(folder / "run")
    with store.lock():
        assert list(store.open_for(plan)) == []
    arm = store.arm_folder("sft", 0)
    arm.mkdir(parents=True)
    job = next(one for one in plan.jobs if one.id == "train:sft:0")
    store.finish(job, {**DONE, "state_hash": "0", "reward_hash": "0"})
    edit(folder / "own.toml", 'source = { kind = "dataset" }', f'source = {{ kind = "log", path = "{arm}" }}')
    plan_of(folder)
    edit(folder / "test.jsonl", "0 + 1", "1 + 0")
    with pytest.raises(UsageError, match="was trained on another task 'sums' than that of this study"):
        plan_of(folder)


def test_a_model_beside_the_study_file_is_known_by_its_whole_path(folder, monkeypatch, tmp_path_factory):
    model = fake_model(folder)
    edit(folder / "own.toml", '"pocket"', f'"{model.name}"')
    edit(folder / "own.toml", "tasks/sums.yaml", "pocket_math")

    def read(*overrides):
        config, place = read_study_and_place(folder / "own.toml", overrides)
        return config.shared.model, prints(make_plan(config, model, place))

    by_whole_path = read(f"shared.model={model}")
    assert read() == by_whole_path
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert read() == by_whole_path
    assert read("shared.model=pocket")[0] == "pocket"
    assert read("shared.model=org/name@v2")[0] == "org/name@v2"


def test_a_model_of_the_command_line_is_relative_to_where_it_was_typed(folder, monkeypatch):
    for place in (folder, folder / "tasks"):
        (place / "model").mkdir()
        (place / "pocket").mkdir()
    monkeypatch.chdir(folder / "tasks")
    config = read_study(folder / "own.toml", ("shared.model=model",))
    assert config.shared.model == str(folder / "tasks" / "model")
    edit(folder / "own.toml", 'model = "pocket"', 'model = "model"')
    assert read_study(folder / "own.toml").shared.model == str(folder / "model")
    # A folder that is called so is not the embedded model.
    assert read_study(folder / "own.toml", ("shared.model=pocket",)).shared.model == "pocket"


METRICS = COMMON[COMMON.index("metric_list") :]
FILTERS = """\
filter_list:
  - name: last
    filter:
      - function: take_first
  - name: plain
    filter:
      - function: take_first
"""
OWN_METRIC = """\
process_results: !function own.grade
metric_list:
  - metric: !function own.share
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ("", "exact_match,none"),
        (METRICS + "  - metric: bleu\n", "exact_match,none"),
        (METRICS + FILTERS, "exact_match,last"),
        (OWN_METRIC.replace("!function own.share", "share"), "share,none"),
        (OWN_METRIC.replace("process_results: !function own.grade\n", ""), "share,none"),
    ],
)
def test_the_first_metric_is_read_as_lm_eval_reads_it(folder, metrics, expected):
    (folder / "tasks" / "own.py").write_text(
        "def share(*given, **more): return 1.0\ndef grade(doc, results): return {'share': 1.0}\n"
    )
    edit(folder / "tasks" / "common.yml", METRICS, metrics)
    plan = plan_of(folder, trusts_task_code=True)
    task = load_task(plan.config.tasks["sums"].file, trusted=plan.task_code)
    assert plan.config.shared.reward_metric == task.reward_metric == expected


def test_the_first_metrics_of_lm_evals_own_tasks_are_known():
    assert find_first_metric("gsm8k", None) == "exact_match,strict-match"
    assert find_first_metric("hendrycks_math", None) == ""  # a group, which is no target


def test_what_a_user_says_of_the_reward_goes_before_the_first_metric(folder):
    edit(folder / "tasks" / "common.yml", METRICS, METRICS + FILTERS)
    assert plan_of(folder, "shared.reward_metric=exact_match,plain").reward == "exact_match,plain of sums"
    # As `statewise pretrain` and the embedded world have it, unless the file is the user's own.
    assert plan_of(folder, "shared.target=pocket_math").config.shared.reward_metric == POCKET_REWARD


def test_a_metric_of_all_answers_at_once_is_refused_as_a_reward(folder):
    edit(folder / "tasks" / "common.yml", "exact_match", "bleu")
    with pytest.raises(UsageError, match="reward_metric 'bleu,none' is no score of a single answer, which a reward is"):
        check_texts(plan_of(folder))


def test_the_rewards_of_the_built_in_studies_are_as_they_were():
    metrics = {plan_study(StudyRequest(name, is_dry=True)).config.shared.reward_metric for name in built_in_studies()}
    assert metrics == {"exact_match,flexible-extract"}
