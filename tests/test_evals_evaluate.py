import copy
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import lm_eval
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import Qwen3Config, Qwen3ForCausalLM

from statewise.errors import UsageError
from statewise.evals import likelihood
from statewise.evals.evaluate import NEXT_ANSWER, EvalProtocol, _chance, evaluate, pass_at_k
from statewise.evals.policy_lm import PolicyLM, Written
from statewise.evals.preserve import preserve_rng_and_mode
from statewise.folder.item_scores import Column, _in_order
from statewise.folder.protocol import evaluate_into
from statewise.logs.find import read_log
from statewise.logs.write_samples import EvaluatedTask, write_samples
from statewise.pocket.world import World, write_benchmarks
from statewise.policy.load import Policy
from statewise.policy.sampler import Sampling, sample
from statewise.policy.texts import decode, encode
from statewise.storage.records import ITEM_SCHEMA, read_table
from statewise.tasks.items import choose
from statewise.tasks.load import load_task
from statewise.tasks.task_file import read_task_file

NUM_ITEMS = 40
POCKET_TASKS = ("pocket_math", "pocket_facts", "pocket_myths")


@pytest.fixture(scope="module")
def policy(toy_policy) -> Policy:
    """The toy policy with room for whole problems, and with as many logits as tokens (HFLM would write the padding)."""
    config = Qwen3Config.from_dict({**toy_policy.model.config.to_dict(), "vocab_size": 257})
    config.max_position_embeddings = 400
    config.eos_token_id = toy_policy.end_token_id  # by which `generate`, and so HFLM, stops
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    return replace(toy_policy, model=model.eval())


@pytest.fixture(scope="module")
def pocket_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_benchmarks(World.from_seed(1), folder)
    return folder


@pytest.fixture(scope="module")
def hflm(policy) -> HFLM:
    return HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=20)


@pytest.fixture(scope="module")
def reference(hflm, pocket_folder, tmp_path_factory) -> dict:
    """What lm-eval alone makes of the three tasks: its YAML and data loading, its model class, its evaluator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pocket_folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        results = lm_eval.simple_evaluate(
            model=hflm,
            tasks=list(POCKET_TASKS),
            task_manager=TaskManager(include_path=str(pocket_folder), include_defaults=False),
            limit=NUM_ITEMS,
            bootstrap_iters=0,
        )
    return results["samples"]


@pytest.mark.parametrize("name", POCKET_TASKS)
def test_every_item_scores_as_in_lm_eval(policy, pocket_folder, reference, name):
    task = load_task(name, task_folder=pocket_folder)
    rows = evaluate(policy, task, EvalProtocol(limit=NUM_ITEMS, decodings=("greedy",), items="first"))
    ours = {(row["metric"], row["item"]): row["score"] for row in rows}
    theirs = {
        (f"{metric},{sample['filter']}", sample["doc_id"]): sample[metric]
        for sample in reference[name]
        for metric in sample["metrics"]
    }
    assert {key: score for key, score in ours.items() if not key[0].startswith("style,")} == theirs
    # lm-eval knows nothing of the styles that a task file names.
    styles = {metric for metric, _ in ours} - set(task.metrics)
    assert styles == ({"style,bare", "style,graded", "style,worked"} if name == "pocket_math" else set())


@pytest.mark.parametrize("name", ["pocket_math", "pocket_facts"])
def test_the_samples_written_of_an_evaluation_are_those_of_lm_eval(policy, pocket_folder, reference, tmp_path, name):
    task = load_task(name, task_folder=pocket_folder)
    protocol = EvalProtocol(limit=NUM_ITEMS, decodings=("greedy",), items="first", max_new_tokens=128)
    recorded = evaluate_into(tmp_path / "rows.parquet", policy, task, protocol)
    rows = read_table(tmp_path / "rows.parquet")
    evaluated = EvaluatedTask(task, rows, NUM_ITEMS, "first", recorded["protocol"])
    samples, results = write_samples(tmp_path / "ours", "org/toy", [evaluated])
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.model_name_sanitized, tracker.date_id = "toy", "now"
    tracker.save_results_samples(name, copy.deepcopy(reference[name]))
    ours, theirs = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (samples, tmp_path / "theirs" / "toy" / f"samples_{name}_now.jsonl")
    )
    resps = [[row.pop(key) for row in side for key in ("resps", "filtered_resps")] for side in (ours, theirs)]
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    assert ours == theirs
    if name == "pocket_math":
        assert resps[0] == resps[1]
    else:  # log-likelihoods, in batches of another size
        texts = (np.array([np.ravel(one) for one in side]) for side in resps)
        (ours, our_greedy), (theirs, their_greedy) = ((one[:, ::2].astype(float), one[:, 1::2]) for one in texts)
        assert np.allclose(ours, theirs, atol=1e-4)
        assert (our_greedy == their_greedy).all()
    assert samples.parent.name == "org__toy"
    log = read_log(results)
    assert log.protocols == {name: recorded["protocol"]}
    ours = read_scores_of(rows)
    for column, scores in log.scores.items():
        assert scores.digests == ours[column].digests
        assert scores.values.tolist() == ours[column].values.tolist()
        assert np.array_equal(scores.chances, ours[column].chances, equal_nan=True)


def read_scores_of(rows):
    """The recorded rows by column, as `read_scores` makes them of a folder."""
    columns = {}
    for row in rows:
        columns.setdefault(Column(row["task"], row["decoding"], row["metric"]), []).append(row)
    return {column: _in_order(of_column) for column, of_column in columns.items()}


class FixedAnswers(LM):
    """A model of lm-eval that answers item i with text i."""

    def __init__(self, texts: list[str]):
        super().__init__()
        self.texts = texts

    def generate_until(self, requests):
        return [self.texts[request.doc_id] for request in requests]

    loglikelihood = loglikelihood_rolling = None


def test_answers_are_graded_as_in_lm_eval(pocket_folder):
    task = load_task("pocket_math", task_folder=pocket_folder)
    forms = ("{}", " #### 7", " So it is {}", "$5.00 {}", "{}.", "", "none", " #### 1,0 {}")
    golds = [example.gold for example in task.examples("test")[:NUM_ITEMS]]
    texts = [forms[item % len(forms)].format(gold) for item, gold in enumerate(golds)]
    tasks = {"tasks": {"pocket_math": load_task("pocket_math", task_folder=pocket_folder).lm_eval_task}}
    samples = lm_eval.evaluate(FixedAnswers(texts), tasks, limit=NUM_ITEMS, bootstrap_iters=0)["samples"]["pocket_math"]
    items = task.requests(limit=NUM_ITEMS, items="first")
    for requests, text in zip(items, texts, strict=True):
        requests[0].resps.append(text)
    grades = [task.grade(requests) for requests in items]
    for theirs in samples:
        assert grades[theirs["doc_id"]][f"exact_match,{theirs['filter']}"] == theirs["exact_match"]
    assert {score for grade in grades for score in grade.values()} == {0.0, 1.0}


def test_greedy_texts_are_those_of_lm_eval(policy, pocket_folder, reference):
    task = load_task("pocket_math", task_folder=pocket_folder)
    rows = evaluate(policy, task, EvalProtocol(limit=NUM_ITEMS, decodings=("greedy",), items="first"))
    theirs = {sample["doc_id"]: sample["resps"][0][0] for sample in reference["pocket_math"]}
    assert {row["item"]: row["response"] for row in rows} == theirs
    assert len(set(theirs.values())) > NUM_ITEMS / 2


def test_log_likelihoods_of_choices_are_those_of_lm_eval(policy, pocket_folder, reference):
    requests = [
        r
        for rs in load_task("pocket_facts", task_folder=pocket_folder).requests(limit=NUM_ITEMS, items="first")
        for r in rs
    ]
    ours = PolicyLM(policy).loglikelihood(requests, disable_tqdm=True)
    theirs = [
        resps[0] for sample in sorted(reference["pocket_facts"], key=lambda s: s["doc_id"]) for resps in sample["resps"]
    ]
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-4)
    assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in theirs]


def ask(*texts: str) -> Instance:
    return Instance("loglikelihood", {}, texts, 0)


def greedy_text(policy: Policy, context: str, num_tokens: int) -> str:
    kwargs = {"max_gen_toks": num_tokens, "until": []}
    request = Instance("generate_until", {}, (context, kwargs), 0, ("toy", 0, 1))
    return PolicyLM(policy).generate_until([request])[0]


def greedy_pair(policy: Policy) -> tuple[str, str]:
    """A context and what greedy decoding writes after it, where that is text (random weights write mere bytes)."""
    pairs = ((context, greedy_text(policy, context, 2)) for context in map(chr, range(33, 127)))
    return next((context, text) for context, text in pairs if len(text) == 2 and text.isascii() and text.isprintable())


@pytest.fixture(scope="module")
def odd_pairs(policy) -> list[Instance]:
    return [
        ask("Which?", " this"),
        ask("Which? ", "this"),  # a trailing space moves to the continuation
        ask("Which?", " thin"),  # shares its pass with " this"
        ask("Which?", " thi"),
        ask("", "Once upon a time"),  # no context: after the end-of-text token
        ask("Which?\n", " é…"),
        ask(*greedy_pair(policy)),
    ]


def test_odd_pairs_score_as_in_lm_eval(policy, hflm, odd_pairs):
    ours = PolicyLM(policy).loglikelihood(odd_pairs, disable_tqdm=True)
    theirs = hflm.loglikelihood(odd_pairs, disable_tqdm=True)
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-4)
    assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in theirs]
    assert ours[-1][1]
    assert not ours[0][1]


def test_micro_batches_do_not_change_a_log_likelihood(policy, odd_pairs, monkeypatch):
    whole = PolicyLM(policy).loglikelihood(odd_pairs, disable_tqdm=True)
    monkeypatch.setattr(likelihood, "SCORING_TOKENS", 1)
    assert PolicyLM(policy).loglikelihood(odd_pairs, disable_tqdm=True) == [
        (pytest.approx(logprob, abs=1e-4), is_greedy) for logprob, is_greedy in whole
    ]


def test_a_log_likelihood_is_that_of_the_models_own_logits(policy):
    ids = encode(policy, "Which? this")
    with torch.no_grad():
        logprobs = policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(logprobs[t - 1, ids[t]].item() for t in range(len("Which?"), len(ids)))
    ((ours, _),) = PolicyLM(policy).loglikelihood([ask("Which?", " this")], disable_tqdm=True)
    assert ours == pytest.approx(expected, abs=1e-4)


def test_a_context_that_is_too_long_loses_its_beginning_as_in_lm_eval(policy, hflm):
    requests = [ask("Once " * 100, " more"), ask("Once", " more")]
    with pytest.warns(UserWarning, match=r"1 of 2 contexts do not fit 'toy' \(context 400\)"):
        ours = PolicyLM(policy).loglikelihood(requests, disable_tqdm=True)
    theirs = hflm.loglikelihood(requests, disable_tqdm=True)
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-4)


def test_a_choice_that_cannot_be_scored_is_refused(policy):
    with pytest.raises(UsageError, match="a choice of 500 tokens cannot be scored by 'toy', whose context has 400"):
        PolicyLM(policy).loglikelihood([ask("Which?", "x" * 500)], disable_tqdm=True)
    with pytest.raises(UsageError, match="a choice of 0 tokens"):
        PolicyLM(policy).loglikelihood([ask("Which?", "")], disable_tqdm=True)


def test_rolling_log_likelihoods_are_those_of_lm_eval(policy, hflm):
    texts = ["Once upon a time. " * 60, "Short.", "x" * 401]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    assert PolicyLM(policy).loglikelihood_rolling(requests) == pytest.approx(
        hflm.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-5
    )


def test_lm_eval_can_evaluate_a_policy_itself(policy, pocket_folder, reference):
    task = load_task("pocket_facts", task_folder=pocket_folder).lm_eval_task
    results = lm_eval.evaluate(PolicyLM(policy), {"tasks": {"pocket_facts": task}}, limit=NUM_ITEMS, bootstrap_iters=0)
    expected = np.mean([sample["acc"] for sample in reference["pocket_facts"]])
    assert results["results"]["pocket_facts"]["acc,none"] == pytest.approx(expected)


def test_rows_fit_the_schema_and_come_item_by_item(policy, pocket_folder):
    rows = evaluate(
        policy,
        load_task("pocket_math", task_folder=pocket_folder),
        EvalProtocol(limit=3, max_new_tokens=8, items="first"),
    )
    schema = pa.schema([field for field in ITEM_SCHEMA if field.name not in ("item_sha256", "prompt")])
    assert pa.Table.from_pylist(rows, schema=schema).to_pylist() == rows
    assert [(row["decoding"], row["item"], row["metric"].split(",")[1]) for row in rows] == [
        (decoding, item, name)
        for decoding in ("greedy", "sampled")
        for item in range(3)
        for name in ("strict-match", "flexible-extract", "bare", "graded", "worked")
    ]


def test_the_response_to_a_choice_is_the_likeliest(policy, pocket_folder, reference):
    rows = evaluate(
        policy, load_task("pocket_facts", task_folder=pocket_folder), EvalProtocol(limit=NUM_ITEMS, items="first")
    )
    assert {row["decoding"] for row in rows} == {"choices"}
    for row, theirs in zip(rows, sorted(reference["pocket_facts"], key=lambda s: s["doc_id"]), strict=True):
        is_right = row["response"] == theirs["doc"]["choices"][theirs["doc"]["label"]]
        assert is_right == (row["score"] == 1)


def sampled(policy: Policy, folder: Path, **changes) -> list[str]:
    protocol = EvalProtocol(decodings=("sampled",), **{"limit": 6, "max_new_tokens": 12, "items": "first", **changes})
    rows = evaluate(policy, load_task("pocket_math", task_folder=folder), protocol)
    return [row["response"] for row in rows if row["metric"].endswith("strict-match")]


def test_a_sampled_answer_depends_on_seed_and_item_alone(policy, pocket_folder):
    answers = sampled(policy, pocket_folder)
    assert answers == sampled(policy, pocket_folder)
    assert answers[:3] == sampled(policy, pocket_folder, limit=3)
    assert answers != sampled(policy, pocket_folder, seed=1)


def write_task(folder: Path, rows: list[dict], **changes) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Q"], "max_gen_toks": 12},
        **changes,
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


ROWS = [{"question": "Q: 1?", "answer": "1"}, {"question": "Q: 2?", "answer": "2"}]


def test_repeated_answers_to_one_item_differ(policy, tmp_path):
    (tmp_path / "grader.py").write_text(
        "def grade(doc, results):\n    return {'exact_match': len(set(results[0])) / len(results[0])}\n"
    )
    path = write_task(
        tmp_path, ROWS, repeats=4, filter_list=[{"name": "all", "filter": [{"function": "take_first_k", "k": 4}]}]
    )
    path.write_text(
        path.read_text() + "metric_list: [{metric: exact_match}]\nprocess_results: !function grader.grade\n"
    )
    rows = evaluate(policy, load_task(str(path), trusted=read_task_file(path).told_code), EvalProtocol())
    assert {(row["decoding"], row["score"]) for row in rows} == {("greedy", 0.25), ("sampled", 1.0)}


def test_an_answer_that_cannot_be_scored_has_no_score(policy, tmp_path):
    (tmp_path / "grader.py").write_text(
        "def grade(doc, results):\n    return {'exact_match': 1 / (int(doc['answer']) - 1), 'f1': (1, 0)}\n"
    )
    path = write_task(tmp_path, ROWS)
    path.write_text(
        path.read_text()
        + "metric_list: [{metric: exact_match}, {metric: f1}]\nprocess_results: !function grader.grade\n"
    )
    rows = evaluate(
        policy, load_task(str(path), trusted=read_task_file(path).told_code), EvalProtocol(decodings=("greedy",))
    )
    assert [(row["metric"], row["score"]) for row in rows] == [("exact_match,none", None), ("exact_match,none", 1.0)]


def test_a_loglikelihood_task_is_scored_by_its_greedy_match(policy, tmp_path):
    context, answer = greedy_pair(policy)
    rows = [{"question": context, "answer": answer}, {"question": context, "answer": "never"}]
    metrics = [{"metric": "acc"}]
    path = write_task(tmp_path, rows, output_type="loglikelihood", generation_kwargs=None, metric_list=metrics)
    scored = evaluate(policy, load_task(str(path)), EvalProtocol())
    assert [(row["decoding"], row["score"], row["response"]) for row in scored] == [
        ("choices", 1, ""),
        ("choices", 0, ""),
    ]


def test_a_task_that_scores_a_corpus_is_refused(policy, tmp_path):
    metrics = [{"metric": "word_perplexity"}]
    path = write_task(tmp_path, ROWS, output_type="loglikelihood_rolling", generation_kwargs=None, metric_list=metrics)
    with pytest.raises(UsageError, match="'toy' scores a corpus, not items"):
        evaluate(policy, load_task(str(path)), EvalProtocol())


def test_prompts_leave_room_for_the_answer(policy, tmp_path):
    long = [{"question": "Q: 1? " * 100, "answer": "1"}]
    path = write_task(tmp_path, long, generation_kwargs={"until": ["Q"], "max_gen_toks": 500})
    with pytest.raises(UsageError, match=r"answers of 500 tokens leave no room .* lower max_new_tokens"):
        evaluate(policy, load_task(str(path)), EvalProtocol(max_new_tokens=1000))
    with pytest.warns(UserWarning, match="1 of 1 contexts do not fit"):
        evaluate(policy, load_task(str(path)), EvalProtocol(max_new_tokens=10))


@pytest.mark.parametrize("is_training", [True, False])
def test_evaluation_leaves_generators_and_the_models_mode_as_they_were(policy, pocket_folder, is_training):
    task = load_task("pocket_math", task_folder=pocket_folder)
    policy.model.train(is_training)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    evaluate(policy, task, EvalProtocol(limit=2, max_new_tokens=4))
    load_task("pocket_facts", task_folder=pocket_folder).requests()
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert policy.model.training == is_training
    policy.model.eval()


def test_a_bystander_restores_what_was_disturbed_even_after_an_error(policy):
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with pytest.raises(ValueError, match="within"), preserve_rng_and_mode(policy):
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        policy.model.train()
        assert not torch.is_grad_enabled()
        raise ValueError("within")
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert not policy.model.training
    assert torch.is_grad_enabled()


def test_evaluation_writes_nothing_to_the_terminal(policy, pocket_folder, capfd):
    for name in ("pocket_math", "pocket_facts"):
        evaluate(policy, load_task(name, task_folder=pocket_folder), EvalProtocol(limit=2, max_new_tokens=4))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"decodings": ()}, "no decodings; name at least one of greedy, sampled"),
        ({"samples": 1}, "samples is 1; it must be at least 2"),
        ({"samples": 4, "decodings": ("greedy",)}, "samples is 4, but nothing is sampled; add it to the decodings"),
        ({"items": "random"}, "unknown choice of items 'random'"),
        ({"decodings": ("gready",)}, "unknown decoding 'gready'. Did you mean 'greedy'"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        EvalProtocol(**changes)


def test_pass_at_k_is_that_of_the_hand():
    answers = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    # 3 of 8 are right; of the 70 choices of 4, the C(5, 4) = 5 of wrong ones alone fail.
    assert pass_at_k(answers, 4) == pytest.approx(65 / 70)
    assert pass_at_k(answers, 1) == pytest.approx(3 / 8)
    assert pass_at_k(answers, 8) == 1.0
    assert pass_at_k([0.0] * 8, 8) == 0.0
    # Graded answers: the best of each pair of 0, 1/2, 1 is 1/2, 1, 1.
    assert pass_at_k([1.0, 0.0, 0.5], 2) == pytest.approx(2.5 / 3)
    assert np.isnan(pass_at_k([1.0, np.nan], 2))


def test_pass_at_k_is_unbiased():
    # All outcomes of three answers that are right with .3: the mean of pass@2 is 1 - .7^2 = .51.
    mean = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=3):
        mean += np.prod([0.3 if right else 0.7 for right in outcome]) * pass_at_k(outcome, 2)
    assert mean == pytest.approx(0.51)


class FixedSamples(PolicyLM):
    """A policy whose k-th sampled answer to an item is written in `ANSWERS`."""

    ANSWERS = ("#### 1", "#### 2", "#### 1")

    def write(self, requests):
        counts = {}
        for request in requests:
            counts[request.doc_id] = counts.get(request.doc_id, -1) + 1
            yield Written(self.ANSWERS[counts[request.doc_id]], is_finished=True)


def test_the_best_of_several_samples_is_scored_and_the_first_is_the_sampled_one(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("statewise.evals.evaluate.PolicyLM", FixedSamples)
    path = write_task(tmp_path, [{"question": "Q: 1?", "answer": a} for a in ("#### 1", "#### 2", "#### 3")])
    rows = evaluate(policy, load_task(str(path)), EvalProtocol(decodings=("sampled",), samples=3))
    scores = {(row["decoding"], row["item"]): row["score"] for row in rows}
    assert [scores["sampled", item] for item in range(3)] == [1.0, 0.0, 0.0]
    assert [scores["pass@3", item] for item in range(3)] == [1.0, 1.0, 0.0]
    (all_three,) = {row["response"] for row in rows if row["decoding"] == "pass@3"}
    assert all_three.split(NEXT_ANSWER) == list(FixedSamples.ANSWERS)


def test_an_answer_that_was_cut_at_the_limit_of_tokens_is_recorded_as_such(policy, pocket_folder):
    task = load_task("pocket_math", task_folder=pocket_folder)
    rows = evaluate(policy, task, EvalProtocol(limit=20, max_new_tokens=1, samples=2))
    single = [row for row in rows if row["decoding"] != "pass@2"]
    # One token is either the end, of which no text is left, or a text that was cut.
    assert [row["is_finished"] for row in single] == [row["response"] == "" for row in single]
    assert {row["is_finished"] for row in single} == {True, False}
    assert {row["is_finished"] for row in rows if row["decoding"] == "pass@2"} == {None}
    facts = evaluate(policy, load_task("pocket_facts", task_folder=pocket_folder), EvalProtocol(limit=2))
    assert {row["is_finished"] for row in facts} == {None}


def test_an_answer_ends_at_a_stop_string(policy, tmp_path):
    prompt = "Q: 1?"
    ids = policy.tokenizer.encode(prompt, add_special_tokens=False)
    (whole,) = sample(policy, [ids], [0], Sampling(temperature=0.0, max_new_tokens=12))
    first = decode(policy, whole.token_ids)[:1]
    for stop, expected in ((first, True), ("never", whole.is_finished)):
        path = write_task(tmp_path, [{"question": prompt, "answer": "1"}],
                          generation_kwargs={"until": [stop], "max_gen_toks": 12})  # fmt: skip
        (row,) = evaluate(policy, load_task(str(path)), EvalProtocol(decodings=("greedy",)))
        assert row["is_finished"] is expected


def test_further_samples_leave_the_first_as_it_was_and_differ_from_it(policy, pocket_folder):
    task, few = load_task("pocket_math", task_folder=pocket_folder), {"limit": 4, "max_new_tokens": 12}
    alone = evaluate(policy, task, EvalProtocol(**few))
    rows = evaluate(policy, task, EvalProtocol(**few, samples=3))
    assert [row for row in rows if row["decoding"] != "pass@3"] == alone
    for row in (row for row in rows if row["decoding"] == "pass@3"):
        answers = row["response"].split(NEXT_ANSWER)
        assert len(set(answers)) == 3
        assert answers[0] == next(
            one["response"] for one in alone if (one["item"], one["decoding"]) == (row["item"], "sampled")
        )


@pytest.mark.parametrize("name", POCKET_TASKS)
def test_a_limit_takes_the_same_sample_of_tasks_that_generate_and_that_choose(policy, pocket_folder, name):
    task = load_task(name, task_folder=pocket_folder)
    rows = evaluate(policy, task, EvalProtocol(limit=5, decodings=("greedy",), max_new_tokens=4))
    assert [sorted({row["item"] for row in rows})] == choose({name: 600}, 5, "sample") != [list(range(5))]


def test_an_item_belongs_to_what_its_field_says(policy, pocket_folder, tmp_path):
    task = load_task("pocket_math", task_folder=pocket_folder)
    documents = [json.loads(line) for line in (pocket_folder / "pocket_math_test.jsonl").read_text().splitlines()]
    rows = evaluate(policy, task, EvalProtocol(limit=30, decodings=("greedy",), max_new_tokens=4))
    assert {row["member"] for row in rows} == {"familiar", "rare"}
    assert all(row["member"] == documents[row["item"]]["group"] for row in rows)
    path = write_task(tmp_path, ROWS, metadata={"group_by": "kind"})
    with pytest.raises(UsageError, match=r"metadata\.group_by is 'kind', which item 0 has not"):
        evaluate(policy, load_task(str(path)), EvalProtocol())


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"styles": {"bare": "("}}, r"metadata\.styles is no table of regular expressions: missing \)"),
        ({"styles": ["bare"]}, r"metadata\.styles is no table of regular expressions"),
        ({"group_by": ["kind"]}, r"metadata\.group_by must name one field of its items"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused_before_anything_is_computed(tmp_path, metadata, words):
    path = write_task(tmp_path, ROWS, metadata=metadata)
    with pytest.raises(UsageError, match=words):
        load_task(str(path))


def test_the_best_of_several_answers_is_taken_only_where_more_is_better(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("statewise.evals.evaluate.PolicyLM", FixedSamples)
    worse = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}]
    path = write_task(tmp_path, ROWS, metric_list=worse)
    with pytest.raises(UsageError, match=r"pass@3 is the best of several answers, and of none of its metrics"):
        evaluate(policy, load_task(str(path)), EvalProtocol(decodings=("sampled",), samples=3))


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        (" The answer is 5.", "bare"),
        (" 2 + 3 = 5. The answer is 5.", "worked"),
        (" 2, 5. Answer: 5", "worked"),
        (" She has 2+3=<<2+3=5>>5 pens.\n#### 5", "graded"),
        ("", "worked"),
    ],
)
def test_every_answer_has_one_style(pocket_folder, answer, style):
    task = load_task("pocket_math", task_folder=pocket_folder)
    (requests,) = task.requests(limit=1)
    requests[0].resps.append(answer)
    grade = task.grade(requests)
    assert {name: grade[f"style,{name}"] for name in ("bare", "worked", "graded")} == {
        name: float(name == style) for name in ("bare", "worked", "graded")
    }


def test_the_chance_of_a_guess_is_that_of_the_item_s_own_member_of_a_group():
    def member(name, num_choices):
        return SimpleNamespace(
            config=SimpleNamespace(task=name), OUTPUT_TYPE="multiple_choice", multiple_input=False,
            doc_to_target=lambda doc: 0, doc_to_choice=lambda doc: ["x"] * num_choices,
        )  # fmt: skip

    members = {"two": member("two", 2), "six": member("six", 6)}
    group = SimpleNamespace(member_of=lambda request: members[request.task_name])
    assert [_chance(group, SimpleNamespace(task_name=name, doc={})) for name in ("two", "six")] == [1 / 2, 1 / 6]
