"""`statewise eval` on the embedded model with a few items: what is stored, kept, refused, and where tasks are found."""

from __future__ import annotations

import json
import shutil

import pytest
from run_fixture import seal_plan, trained, write_run

from statewise.assets import POCKET_MODEL
from statewise.errors import UsageError
from statewise.evals.evaluate import EvalProtocol, evaluate
from statewise.folder.protocol import ask_items, digest_items
from statewise.locality.adapter import Lora
from statewise.models.compare import compare
from statewise.models.evaluation import plan_evaluation, run_evaluation, scores_of
from statewise.models.evaluation_request import EvaluationRequest
from statewise.models.export import ExportRequest, export_model
from statewise.models.sides import read_side
from statewise.plan.catalog import pocket_tasks
from statewise.plan.digest import digest_weights
from statewise.policy.load import load_policy
from statewise.report.card import render_card
from statewise.storage import records
from statewise.tasks.items import choose
from statewise.tasks.load import load_task

LIMIT = 4
TASK = "pocket_facts"


def evaluate_into(out, model="pocket", tasks=(TASK,), **settings):
    done = []
    plan = plan_evaluation(EvaluationRequest(str(model), tasks, **{"limit": LIMIT, "out": out, **settings}))
    stored = run_evaluation(plan, done.append)
    return plan, stored, done


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    """The folder of an evaluation of the embedded model on two tasks."""
    out = tmp_path_factory.mktemp("evals") / "pocket"
    evaluate_into(out, tasks=(TASK, "pocket_math"), max_new_tokens=24)
    return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports of a hand-made run on the embedded model: all its weights, its adapter, and that one merged."""
    folder = tmp_path_factory.mktemp("exported")
    run = write_run(folder / "run", POCKET_MODEL, "pocket")
    sft, slim = (run / "arms" / arm / "0" for arm in ("sft", "slim"))
    for arm in (sft, slim):
        arm.mkdir(parents=True)
    (sft / "model").mkdir()
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copyfile(POCKET_MODEL / name, sft / "model" / name)
    learner = load_policy(POCKET_MODEL, "learner")
    adapter = Lora(rank=2)
    parameters = adapter.attach(learner.model, 0)
    for name, parameter in parameters.items():
        parameter.data += 0.05 * ("lora_B" in name)
    adapter.save(learner, slim, "pocket")
    for arm in ("sft", "slim"):
        trained(run, arm, 0)
    export_model(ExportRequest(run, "sft"), folder / "sft", render_card)
    export_model(ExportRequest(run, "slim"), folder / "slim", render_card)
    export_model(ExportRequest(run, "slim", is_merged=True), folder / "merged", render_card)
    return folder


def test_the_items_are_those_of_evaluate(pocket):
    task = load_task(TASK, task_folder=POCKET_MODEL / "tasks")
    rows = evaluate(load_policy(POCKET_MODEL, "pocket"), task, EvalProtocol(LIMIT))
    recorded = records.read_table(pocket / "evals" / f"{TASK}.parquet")
    assert [{key: row[key] for key in rows[0]} for row in recorded] == rows
    prompts = [requests[0].args[0] for requests in task.requests(LIMIT)]
    assert [row["prompt"] for row in recorded] == prompts
    # A larger limit has the same items, by number and digest.
    asked, more = (ask_items(task, limit).items for limit in (LIMIT, LIMIT + 5))
    assert {row["item"]: (row["item_sha256"], row["prompt"]) for row in recorded} == asked
    assert asked.items() < more.items()


def test_the_header_says_which_model_how_and_with_what(pocket):
    stored = records.read_json(pocket / "eval.json")
    assert stored["model"]["weights_sha256"] == digest_weights(POCKET_MODEL)
    assert stored["settings"] == {
        "limit": LIMIT, "data": None, "seed": 0, "max_new_tokens": 24, "chat": False, "num_fewshot": None,
        "items": "sample", "samples": None,
    }  # fmt: skip
    task = stored["tasks"]["pocket_math"]
    assert task["protocol"].endswith(
        "greedy and sampled, at most 24 new tokens; 4 items only; a seeded sample of the items"
    )
    assert task["num_items"] == LIMIT
    assert len(task["items_sha256"]) == 64
    assert task["device"] == "cpu, float32"
    assert set(task["versions"]) == {"statewise", "torch", "transformers", "lm-eval"}
    assert not list(pocket.rglob("*.tmp"))


def test_the_scores_are_means_over_the_items(pocket):
    stored = records.read_json(pocket / "eval.json")
    rows = scores_of(pocket, (TASK, "pocket_math"), stored)
    items = records.read_table(pocket / "evals" / f"{TASK}.parquet")
    assert rows[0]["estimate"]["value"] == sum(row["score"] for row in items) / LIMIT
    assert {(row["task"], row["decoding"]) for row in rows} == {
        (TASK, "choices"), ("pocket_math", "greedy"), ("pocket_math", "sampled")
    }  # fmt: skip
    json.dumps(rows, allow_nan=False)


def test_done_tasks_are_kept_and_missing_ones_done_again(pocket, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(pocket, out)
    both = (TASK, "pocket_math")
    before = (out / "evals" / f"{TASK}.parquet").read_bytes()
    assert evaluate_into(out, tasks=both, max_new_tokens=24)[2] == []
    (out / "evals" / f"{TASK}.parquet").unlink()
    assert evaluate_into(out, tasks=both, max_new_tokens=24)[2] == [TASK]
    assert (out / "evals" / f"{TASK}.parquet").read_bytes() == before


def test_a_task_can_be_added_later(tmp_path):
    evaluate_into(tmp_path / "out")
    _, stored, done = evaluate_into(tmp_path / "out", tasks=(TASK, "pocket_myths"))
    assert done == ["pocket_myths"]
    assert set(stored["tasks"]) == {TASK, "pocket_myths"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit": 5}, "limit = 4"),
        ({"seed": 1}, "seed = 0"),
        ({"max_new_tokens": 25}, "max_new_tokens = 24"),
        ({"data": POCKET_MODEL}, "data = None"),
        ({"num_fewshot": 2}, "num_fewshot = None"),
        ({"is_chat": True}, "chat = False"),
        ({"items": "first"}, "items = sample"),
        ({"samples": 2}, "samples = None"),
    ],
)
def test_other_settings_in_the_folder_are_refused(pocket, settings, words):
    request = EvaluationRequest("pocket", (TASK,), **{"limit": LIMIT, "max_new_tokens": 24, "out": pocket, **settings})
    with pytest.raises(UsageError, match=f"holds an evaluation with {words}"):
        plan_evaluation(request)


def test_another_model_in_the_folder_is_refused(pocket, exported):
    request = EvaluationRequest(str(exported / "merged"), (TASK,), LIMIT, max_new_tokens=24, out=pocket)
    with pytest.raises(UsageError, match=r"holds an evaluation with other weights \(pocket\)"):
        plan_evaluation(request)


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(UsageError, match="not a folder of `statewise eval`"):
        plan_evaluation(EvaluationRequest("pocket", (TASK,), out=tmp_path))


@pytest.mark.parametrize(
    ("model", "tasks", "words"),
    [
        ("poket", (TASK,), "model 'poket'"),
        ("pocket", ("pocket_fact",), "--tasks: unknown task 'pocket_fact'. Did you mean 'pocket_facts'"),
        ("pocket", ("none.yaml",), "none.yaml: no such task file"),
    ],
)
def test_a_mistyped_name_is_refused_before_anything_is_loaded(model, tasks, words):
    with pytest.raises(UsageError, match=words):
        plan_evaluation(EvaluationRequest(model, tasks))


def test_an_exported_model_knows_its_base_models_tasks_and_answers_as_before(pocket, exported, tmp_path):
    assert not (exported / "sft" / "tasks").exists()
    evaluate_into(tmp_path / "out", exported / "sft")
    ours, theirs = (records.read_table(p / "evals" / f"{TASK}.parquet") for p in (pocket, tmp_path / "out"))
    assert ours == theirs
    comparison = compare(read_side(str(pocket)), read_side(str(tmp_path / "out")))
    assert [score.difference.value for score in comparison.scores] == [0.0]
    assert "on one side only: pocket_math" in comparison.notes


def test_an_adapter_answers_as_its_merged_weights_do(exported, tmp_path):
    scores = []
    for name in ("slim", "merged"):
        evaluate_into(tmp_path / name, exported / name, tasks=("pocket_math",), max_new_tokens=24)
        rows = records.read_table(tmp_path / name / "evals" / "pocket_math.parquet")
        scores.append([row["response"] for row in rows if row["decoding"] == "greedy"])
    assert scores[0] == scores[1]
    plain = load_policy(POCKET_MODEL, "pocket")
    rows = evaluate(
        plain, load_task("pocket_math", task_folder=POCKET_MODEL / "tasks"), EvalProtocol(LIMIT, ("greedy",), 0, 24)
    )
    assert scores[0] != [row["response"] for row in rows]


def test_merged_weights_stop_where_the_policies_of_their_run_stop(exported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exported / "run", run)
    study = run / "study.toml"
    study.write_text(study.read_text().replace("[shared]\n", '[shared]\nend_of_text = "."\n', 1))
    seal_plan(run, POCKET_MODEL)
    export_model(ExportRequest(run, "slim", is_merged=True), tmp_path / "merged", render_card)
    ends = [load_policy(folder, "exported").end_token_ids for folder in (exported / "merged", tmp_path / "merged")]
    stop = load_policy(POCKET_MODEL, "pocket").tokenizer.get_vocab()["."]
    assert (stop in ends[0], ends[1][0]) == (False, stop)


def test_a_stored_adapter_of_a_run_is_named_after_run_arm_and_seed(exported, tmp_path):
    folder = exported / "run" / "arms" / "slim" / "0" / "adapter"
    plan = plan_evaluation(EvaluationRequest(str(folder), (TASK,), LIMIT))
    assert str(plan.out) == "evals/run-slim-0"
    assert plan.task_folders == {TASK: POCKET_MODEL / "tasks"}
    assert (plan.origin.arm, plan.origin.base_sha256) == ("slim", digest_weights(POCKET_MODEL))
    assert str(plan_evaluation(EvaluationRequest("pocket", (TASK,))).out) == "evals/pocket"


def test_tasks_of_a_base_model_that_is_gone_are_not_taken_from_another_world(exported, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(exported / "sft", model)
    facts = records.read_json(model / "statewise.json")
    assert facts["base_tasks"] == list(pocket_tasks())
    records.write_json(model / "statewise.json", {**facts, "base_model": "world-7"})
    with pytest.raises(UsageError, match="came with the base model 'world-7'"):
        plan_evaluation(EvaluationRequest(str(model), (TASK,)))


def test_a_model_folders_own_tasks_come_first(exported, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(exported / "sft", model)
    shutil.copytree(POCKET_MODEL / "tasks", model / "tasks")
    plan = plan_evaluation(EvaluationRequest(str(model), (TASK, str(model / "tasks" / "pocket_myths.yaml"))))
    assert list(plan.task_folders.values()) == [model / "tasks", None]


def test_lm_evals_own_task_reads_local_data(tmp_path):
    folder = tmp_path / "data" / "ai2_arc" / "ARC-Easy"
    folder.mkdir(parents=True)
    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    rows = [{"question": f"Colour {i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(4)]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, stored, _ = evaluate_into(tmp_path / "out", tasks=("arc_easy",), limit=None, data=tmp_path / "data")
    assert stored["tasks"]["arc_easy"]["num_items"] == 4
    (acc,) = [row for row in scores_of(tmp_path / "out", ("arc_easy",), stored) if row["metric"] == "acc,none"]
    assert 0 <= acc["estimate"]["value"] <= 1


def test_two_tasks_of_one_name_are_refused(tmp_path):
    copy = tmp_path / "tasks"
    shutil.copytree(POCKET_MODEL / "tasks", copy)
    with pytest.raises(UsageError, match="both called 'pocket_facts'"):
        evaluate_into(tmp_path / "out", tasks=(TASK, str(copy / f"{TASK}.yaml")))


def test_an_adapter_that_is_not_plain_lora_is_refused(exported, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(exported / "slim", model)
    config = records.read_json(model / "adapter_config.json")
    records.write_json(model / "adapter_config.json", {**config, "use_rslora": True})
    with pytest.raises(UsageError, match="use_rslora = True is not plain LoRA"):
        plan_evaluation(EvaluationRequest(str(model), (TASK,)))


def test_the_digest_of_the_items_tells_other_documents_apart(tmp_path):
    def digest(folder, limit=LIMIT):
        return digest_items(load_task(TASK, task_folder=folder), limit)

    copy = tmp_path / "tasks"
    shutil.copytree(POCKET_MODEL / "tasks", copy)
    assert digest(copy) == digest(POCKET_MODEL / "tasks") != digest(copy, 5)
    assert digest(copy) != digest_items(load_task(TASK, task_folder=copy), LIMIT, "first")
    lines = (copy / f"{TASK}.jsonl").read_text().splitlines()
    ((first, *_),) = choose({TASK: len(lines)}, LIMIT, "sample")
    row = json.loads(lines[first])
    lines[first] = json.dumps({**row, "label": (row["label"] + 1) % 4})
    (copy / f"{TASK}.jsonl").write_text("\n".join(lines))
    assert digest(copy) != digest(POCKET_MODEL / "tasks")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["pocket"], "names no task; give --tasks, or --study for those of a study"),
        (["pocket", "--tasks", TASK, "--study", "pocket"], "--study and --tasks are given, but the study says that"),
        (["pocket", "--study", "pocket", "--first"], "--study and --first are given"),
        (["pocket", "--study", "pocket", "--max-new-tokens", "128"], "--study and --max-new-tokens are given"),
        (["pocket", "--study", "pocket", "--num-fewshot", "0"], "--study and --num-fewshot are given"),
        (["pocket", "--study", "pockt"], "unknown study 'pockt'. Did you mean 'pocket'?"),
        (["pocket", "--study", "no.toml"], "no.toml: no such study file"),
        (["pocket", "--tasks", "apples.toml"], "--tasks apples.toml: a study file; give it as --study apples.toml"),
        (["pocket", "--tasks", TASK, "--data", "a.jsonl"], "Rows of your own are the [data] of a study: --study"),
    ],
)
def test_tasks_come_by_name_or_from_a_study(call, given, told):
    code, out, err = call("eval", *given)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())


def test_a_study_says_how_its_tasks_are_asked(tmp_path):
    (tmp_path / "own.toml").write_text(
        '[study]\nname = "own"\nseeds = [3]\n[shared]\nretention = ["pocket_facts"]\n'
        "evaluation = { limit = 5, max_new_tokens = 7, samples = 2, items = 'first' }\n"
        "protocol.pocket_facts.num_fewshot = 1\nupdate = { num_updates = 1, lr = 1e-4 }\n"
        '[arms.sft]\nsource = { kind = "dataset" }\nsignal = { kind = "imitate" }\n'
    )
    request = EvaluationRequest("pocket", study=str(tmp_path / "own.toml"), out=tmp_path / "out")
    plan = plan_evaluation(request)
    assert (plan.request.tasks, plan.request.seed) == (("pocket_math", "pocket_facts"), 3)
    settings = plan.stored["settings"]
    assert {key: settings[key] for key in ("limit", "max_new_tokens", "samples", "items", "protocol")} == {
        "limit": 5, "max_new_tokens": 7, "samples": 2, "items": "first", "protocol": {"pocket_facts": 1},
    }  # fmt: skip
    assert plan.stored["model"]["retention"] == ["pocket_facts"]
    fewer = plan_evaluation(
        EvaluationRequest("pocket", study=str(tmp_path / "own.toml"), limit=2, out=tmp_path / "out")
    )
    assert fewer.stored["settings"]["limit"] == 2
    assert fewer.stored["fingerprint"] != plan.stored["fingerprint"]
    assert set(plan.task_folders) == {"pocket_math", "pocket_facts"}  # whose files are digested
    (tmp_path / "own.toml").write_text((tmp_path / "own.toml").read_text().replace("pocket_facts", "pocket_myths"))
    assert plan_evaluation(request).stored["fingerprint"] != plan.stored["fingerprint"]


def test_a_task_file_that_was_edited_is_not_kept_from_before(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "1 + 1 =", "a": "2"}\n{"q": "1 + 2 =", "a": "3"}\n')
    task = tmp_path / "sums.yaml"
    task.write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: rows.jsonl\ntest_split: test\n"
        'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
    )
    settings = {"tasks": (str(task),), "limit": None, "max_new_tokens": 2}
    evaluate_into(tmp_path / "out", **settings)
    assert evaluate_into(tmp_path / "out", **settings)[2] == []
    (tmp_path / "rows.jsonl").write_text('{"q": "1 + 1 =", "a": "2"}\n{"q": "1 + 2 =", "a": "4"}\n')
    with pytest.raises(
        UsageError, match=r"out: task '.*sums\.yaml' or its data changed since it was evaluated; choose"
    ):
        evaluate_into(tmp_path / "out", **settings)
