"""What config, tasks and tokenizer tell of a run is told by its plan: in a dry run, and before a folder is made."""

from __future__ import annotations

import json

import pytest

from statewise.assets import POCKET_MODEL
from statewise.plan.benchmarks import check_texts
from statewise.plan.catalog import built_in_studies
from statewise.plan.dag import make_plan
from statewise.plan.materials import is_known_to_be_sound
from statewise.plan.request import StudyRequest, plan_study
from statewise.policy.load import load_policy, load_without_weights
from statewise.policy.texts import encode

TASK = """\
task: own
dataset_path: json
dataset_kwargs:
  data_files:
    train: train.jsonl
    test: test.jsonl
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
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
target = "own"
retention = []
reward_metric = "exact_match,none"
[shared.evaluation]
max_new_tokens = 16
[shared.drift]
num_prompts = 4
[shared.update]
num_updates = 1
lr = 1e-4
[arms.sft]
source = { kind = "dataset" }
signal = { kind = "imitate" }
[arms.rl]
source = { kind = "rollout", num_prompts = 2, samples_per_prompt = 2 }
signal = { kind = "reward" }
"""
SHORT = {"question": "1 + 1 =", "answer": "2"}
LONG = {"question": "1 + 1 =", "answer": "2 " * 400}
HUGE = {"question": "1 + 1 = " * 300, "answer": "2"}


@pytest.fixture
def own(tmp_path, call):
    """A study on a task of the user's own beside the embedded model; returns a caller of `run --dry-run`."""
    model = tmp_path / "model"
    (model / "tasks").mkdir(parents=True)
    for file in POCKET_MODEL.iterdir():
        if file.is_file():
            (model / file.name).symlink_to(file)
    (model / "tasks" / "own.yaml").write_text(TASK)
    (tmp_path / "own.toml").write_text(STUDY)

    def dry_run(train=(SHORT,) * 4, test=(SHORT,) * 4, *options, run=("run", "--dry-run")):
        for name, rows in (("train", train), ("test", test)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (model / "tasks" / f"{name}.jsonl").write_text(text)
        return call(*run, "own.toml", "--model", model, *options)

    return dry_run


def test_a_sound_study_is_planned(own):
    code, out, err = own()
    assert (code, err) == (0, "")
    assert "rollout" in out


@pytest.mark.parametrize(
    ("train", "test", "options", "words"),
    [
        ((SHORT, LONG, SHORT, LONG), None, (), "task 'own': 2 training documents (1, 3) exceeding the context of 256"),
        ((HUGE, SHORT), None, (), "1 training document (0) exceeding the context of 256 tokens, the longest, 0"),
        ((SHORT, {"question": "?", "answer": ""}), None, (), "1 training document without gold text (1)"),
        (None, (SHORT, HUGE), (), "task 'own', on whose test prompts drift is measured: 1 prompt (1) exceeding"),
        (None, None, ("--chat",), "has no chat template"),
        (None, None, ("--set", "shared.reward_metric=exact_match,first"), "unknown reward metric 'exact_match,first'"),
        (None, None, ("--set", "shared.evaluation.max_new_tokens=512"), "leave no room for a prompt in the context"),
        (None, None, ("--set", "shared.end_of_text=<end>"), "end_of_text '<end>' is not a single token"),
    ],
)
def test_what_would_end_a_run_is_refused_by_its_plan(own, tmp_path, train, test, options, words):
    rows = {"train": train or (SHORT,) * 4, "test": test or (SHORT,) * 4}
    for run in (("run", "--dry-run"), ("run", "--out", str(tmp_path / "out"))):
        code, out, err = own(rows["train"], rows["test"], *options, run=run)
        assert (code, out) == (2, "")
        assert words in " ".join(err.split())
        assert not (tmp_path / "out").exists()


def test_a_users_columns_may_have_any_names(own, tmp_path):
    task = tmp_path / "model" / "tasks" / "own.yaml"
    task.write_text(TASK.replace("question", "prompt").replace("answer", "completion"))
    (tmp_path / "model" / "tasks" / "own_train.jsonl").write_text('{"prompt": "1 + 1 =", "completion": "2"}\n')
    rows = ({"prompt": "1 + 1 =", "completion": "2"},) * 4
    assert own(rows, rows)[0] == 0


def test_a_study_without_gold_texts_ignores_how_long_they_are(own):
    only_rl = (
        "--set",
        "sft.source.kind=rollout",
        "--set",
        "sft.source.samples_per_prompt=2",
        "--set",
        "sft.signal.kind=reward",
    )
    assert own((SHORT, LONG), (SHORT,) * 4, *only_rl)[0] == 0


def test_documents_that_are_left_out_are_told_by_the_plan(own):
    code, out, _ = own((SHORT, LONG, SHORT, HUGE), (SHORT,) * 4, "--set", "shared.too_long=skip")
    assert code == 0
    told = "2 of 4 training documents of own exceed the context of 256 tokens and are left out of every arm (1, 3)"
    assert told in " ".join(out.split())
    code, out, _ = own((SHORT, LONG), (SHORT,) * 4, "--set", "shared.too_long=skip", "--json")
    assert "1 of 2 training documents" in json.loads(out)["notes"][0]


def test_a_plan_without_the_hub_says_what_it_could_not_check(call):
    code, out, _ = call("run", "paper", "--dry-run")
    assert code == 0
    assert "Not checked: task file" in out
    assert "Not checked: whether texts fit Qwen/Qwen3-0.6B-Base, whose tokenizer is not on this machine" in out


def test_embedded_studies_need_no_check_since_it_finds_nothing():
    plans = [
        plan_study(StudyRequest(name)) for name in built_in_studies() if name not in ("paper", "paper-lr", "smollm2")
    ]
    assert plans
    assert all(is_known_to_be_sound(plan) for plan in plans)
    longest = max(plans, key=lambda plan: len(plan.arms))
    assert check_texts(longest) == ()
    assert not is_known_to_be_sound(
        plan_study(StudyRequest("pocket", ("shared.reward_metric=exact_match,strict-match",)))
    )


def test_a_policy_without_weights_encodes_as_the_loaded_one():
    light, whole = load_without_weights(POCKET_MODEL, "light"), load_policy(POCKET_MODEL, "whole")
    assert light.end_token_ids == whole.end_token_ids
    assert (light.context_length, light.vocab_size) == (whole.context_length, whole.vocab_size)
    assert encode(light, "12 + 30 = 42") == encode(whole, "12 + 30 = 42")
    assert all(parameter.is_meta for parameter in light.model.parameters())


def test_which_documents_are_left_out_is_part_of_the_fingerprint(tmp_path, own):
    own()
    request = StudyRequest("own.toml", model=str(tmp_path / "model"))
    plan = plan_study(request)
    skipping = plan_study(StudyRequest("own.toml", ("shared.too_long=skip",), model=str(tmp_path / "model")))
    by_id = {job.id: job.fingerprint for job in plan.jobs}
    assert all(by_id[job.id] != job.fingerprint for job in skipping.jobs)
    alone = skipping.config.model_copy(update={"arms": {"rl": skipping.config.arms["rl"]}})
    rl = next(job for job in make_plan(alone, skipping.model, "own.toml").jobs if job.id == "train:rl:0")
    # Beside an arm that needs gold texts, rl trains on fewer documents.
    assert rl.fingerprint != next(job.fingerprint for job in skipping.jobs if job.id == "train:rl:0")
