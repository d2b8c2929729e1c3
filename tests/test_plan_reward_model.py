"""A model as the reward of a study's own data: its plan, what it is called in fingerprints, its task and its cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from classifier_fixture import build_classifier
from conftest import byte_tokenizer
from families_fixture import LLAMA, build_model
from toy_arm import ToyTask, make_setup, make_source

from statewise.config.read import read_study_and_place, to_toml
from statewise.errors import UsageError
from statewise.evals.evaluate import EvalProtocol, evaluate
from statewise.models.evaluation import load_asked, plan_evaluation
from statewise.models.evaluation_request import EvaluationRequest, identity_of, study_of
from statewise.plan import replay
from statewise.plan.benchmarks import build_task, check_texts
from statewise.plan.dag import Plan
from statewise.plan.estimate import estimate_plan
from statewise.plan.memory import estimate_memory
from statewise.plan.request import StudyRequest, choose_workers, plan_study
from statewise.policy.reward_model import RewardModel
from statewise.signals import SIGNALS
from statewise.storage import integrity
from statewise.tasks.own_data import DataSection
from statewise.tasks.own_task import own_task

STUDY = """
[study]
name = "sums"
seeds = [0]
factors = ["source", "signal"]
[data]
train = "train.jsonl"
test_share = 0.3
prompt = "question"
completion = ""
reward = "model:rm"
stop = ["\\n"]
[models.rm]
model = "rm"
[shared]
retention = []
update = { num_updates = 1, lr = 1e-3 }
[arms.base-text]
source = { kind = "rollout", by = "base" }
signal = { kind = "imitate" }
[arms.rl]
source = { kind = "rollout", samples_per_prompt = 2 }
signal = { kind = "reward" }
"""
REWARDED = '[models.rm]\nmodel = "rm"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty prompts and a reward model of 96 tokens."""
    folder = tmp_path_factory.mktemp("study")
    lines = [json.dumps({"question": f"{i} + 1 ="}) + "\n" for i in range(20)]
    (folder / "train.jsonl").write_text("".join(lines))
    build_classifier(folder / "rm")
    return folder


def plan_of(folder, text=STUDY, **changes) -> Plan:
    (folder / "study.toml").write_text(text)
    return plan_study(StudyRequest(str(folder / "study.toml"), **changes))


def prints(plan):
    return {job.id: job.fingerprint for job in plan.jobs}


def test_the_same_answers_are_rewarded_one_at_a_time_and_in_batches(folder):
    plan = plan_of(folder)
    task = build_task(plan, "sums")
    texts = [" 2", " 17 apples\nand more", "", " " + "9" * 100]
    together, flops = task.rewards([0, 1, 2, 3], texts)
    alone = [task.reward(index, text) for index, text in enumerate(texts)]
    assert together == pytest.approx(alone, abs=1e-5, nan_ok=True)
    assert [math.isnan(reward) for reward in together] == [False, False, False, True]  # the last is too long
    prompt = task.examples("train")[1].prompt
    cut = RewardModel("rm", folder / "rm").score_all([(prompt, " 17 apples")])[0]
    assert together[1:2] == pytest.approx(cut, abs=1e-5)
    assert flops > 0
    # Scores of other models of this name are told apart by it, and so are not compared.
    assert task.protocol.endswith(f"; reward: sigmoid of the logit of rm (sha256 {plan.other_digests['rm'][:12]})")


def test_an_evaluation_reads_the_answers_of_a_task_at_once(folder, toy_policy, monkeypatch):
    task, asked, score_all = build_task(plan_of(folder), "sums"), [], RewardModel.score_all
    monkeypatch.setattr(RewardModel, "score_all", lambda self, pairs: asked.append(pairs) or score_all(self, pairs))
    rows = evaluate(toy_policy, task, EvalProtocol(decodings=("greedy",), max_new_tokens=4))
    assert [len(pairs) for pairs in asked] == [len(rows)]
    assert {row["metric"] for row in rows} == {"reward,none"}
    for row, (prompt, answer) in zip(rows, asked[0], strict=True):
        assert (answer, prompt) == (row["response"], task.examples("test")[row["item"]].prompt)
        assert row["score"] == pytest.approx(score_all(RewardModel("rm", folder / "rm"), [(prompt, answer)])[0][0])


def test_a_conversation_is_rewarded_with_all_its_turns(tmp_path):
    turns = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant")]
    (tmp_path / "talks.jsonl").write_text(3 * (json.dumps({"messages": turns}) + "\n"))
    table = {"train": "talks.jsonl", "test": "talks.jsonl", "messages": "messages", "reward": "model:rm"}
    seen = []

    def score_all(asked):
        seen.extend(asked)
        return [0.5] * len(asked), 0.0

    data = DataSection(**table).located(tmp_path, "talks")
    task = own_task(data, model=SimpleNamespace(told="half", score_all=score_all))
    assert (task.rewards([0], ["a"])[0], task.reward(0, "b")) == ([0.5], 0.5)
    assert seen == [(turns[:2], "a"), (turns[:2], "b")]


def test_an_arm_counts_what_its_reward_model_computes(toy_policy):
    class Rewarded(ToyTask):
        def rewards(self, indices, texts):
            return [0.5] * len(texts), 7.0

    setup = make_setup(toy_policy, make_source(), SIGNALS["reward"](), task=Rewarded())
    assert setup.grade([0, 1], [[3], [4]]) == [0.5, 0.5]
    assert setup.writers.account.flops_forward == 7.0


def test_a_fingerprint_knows_the_bytes_of_the_model_and_how_it_rewards_but_not_its_name_and_place(folder, tmp_path):
    before = prints(plan_of(folder))
    named = STUDY.replace('"model:rm"', '"model:judge"').replace(REWARDED, f'[models.judge]\nmodel = "{tmp_path}"\n')
    build_classifier(tmp_path)
    assert prints(plan_of(folder, named)) == before
    others = [prints(plan_of(folder, STUDY.replace(REWARDED, REWARDED + 'label = "LABEL_0"\n')))]
    others.append(prints(plan_of(folder, STUDY.replace(REWARDED, REWARDED + "range = [-5, 5]\n"))))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path)
    others.append(prints(plan_of(folder, named)))
    assert all(other[job] != before[job] for other in others for job in before)
    assert (
        read_study_and_place(folder / "study.toml")[0] == plan_of(folder, to_toml(plan_of(folder, named).config)).config
    )


def test_an_evaluation_by_a_study_knows_the_bytes_of_its_reward_model(folder, tmp_path):
    build_classifier(tmp_path)
    text = STUDY.replace(REWARDED, f'[models.rm]\nmodel = "{tmp_path}"\n')
    run = plan_of(folder, text)
    request = EvaluationRequest("pocket", study=str(folder / "study.toml"))
    study = study_of(request)
    assert study.other_digests == run.other_digests
    assert build_task(study, "sums").protocol == build_task(run, "sums").protocol
    before = identity_of(study)
    change = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(change, indent=1))
    assert identity_of(study_of(request))["own_data"] != before["own_data"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("model:rm", "model:rn", r"study\.toml:11: data\.reward 'model:rn': the study has no \[models\.rn\]; its"),
        ("model:rm", "model:", r"the study has no \[models\.<name>\]; its models are rm; add it"),
        ("model:rm", "modle:rm", r"data\.reward 'modle:rm': unknown; .*model:NAME of a reward model \[models\.NAME\]"),
        ("model:rm", "org/name", r"data\.reward 'org/name': unknown; expected exact_match"),
        ('reward = "model:rm"', 'reward = { model = "rm" }', r"data\.reward: Input should be a valid string"),
        ("model:rm", "own.py:f", r"data\.reward: there is no file"),
        (REWARDED, REWARDED + "lable = 1\n", r"unknown key in \[models\.rm\]: 'lable'\. Did you mean 'label'\?"),
        (REWARDED, REWARDED + "range = [5, 5]\n", r"models\.rm\.range: the first logit must be below the second"),
        (REWARDED, REWARDED + "range = 5\n", r"models\.rm\.range: Input should be a valid tuple"),
        (REWARDED, REWARDED + '[models.b]\nmodel = "rm"\n', r"model 'b' is no arm's teacher; remove it, or make"),
        ('kind = "imitate"', 'kind = "reverse_kl" }\nteacher = "rm"#', r"model 'rm' is a teacher, which rewards"),
        (REWARDED, '[models.rm]\nmodel = "lm"\n', r"is a LlamaForCausalLM, which has no head that scores a text"),
        (REWARDED, '[models.rm]\nmodel = "org/nothing"\n', r"'org/nothing' is not whole in the cache .* HF_HUB_OFF"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_where_it_stands_and_fetches_nothing(folder, old, new, told):
    if not (folder / "lm").is_dir():
        build_model(folder / "lm", "llama", LLAMA)
    assert STUDY.count(old) == 1
    with pytest.raises(UsageError, match=told):
        plan_of(folder, STUDY.replace(old, new))


def test_settings_of_a_reward_model_are_not_those_of_a_teacher(folder):
    taught = STUDY.replace('kind = "imitate" }', 'kind = "reverse_kl" }\nteacher = "big"')
    text = taught.replace(REWARDED, REWARDED + '[models.big]\nmodel = "pocket"\nlabel = "good"\n')
    with pytest.raises(UsageError, match=r"label is of a reward model, and 'big' teaches"):
        plan_of(folder, text)


def test_the_plan_says_how_answers_are_rewarded_before_anything_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(RewardModel, "model", property(lambda self: pytest.fail("weights were read")))
    (note,) = check_texts(plan_of(folder, is_dry=True))
    assert note == (
        "Reward model rm (Qwen3ForSequenceClassification): sigmoid of the logit of rm; it reads prompt and answer as "
        "plain text"
    )


def test_right_answers_that_it_cannot_read_are_refused_or_told(folder):
    lines = (folder / "train.jsonl").read_text() + json.dumps({"question": "7" * 100}) + "\n"
    (folder / "long.jsonl").write_text(lines)
    long = STUDY.replace("train.jsonl", "long.jsonl")
    told = r"1 of 21 rows, such as .*long\.jsonl:21, are .* longer than the 96 tokens that reward model rm can read"
    with pytest.raises(UsageError, match=told + r'; shorten them, or set shared\.too_long = "skip"'):
        check_texts(plan_of(folder, long))
    notes = check_texts(plan_of(folder, long.replace("[shared]", '[shared]\ntoo_long = "skip"')))
    assert sum(note.endswith("reward model rm can read: such answers are unscored") for note in notes) == 1


def test_several_labels_without_a_choice_are_refused_before_a_run(folder, tmp_path):
    build_classifier(tmp_path, num_labels=2)
    text = STUDY.replace(REWARDED, f'[models.rm]\nmodel = "{tmp_path}"\n')
    with pytest.raises(UsageError, match=r"\[models\.rm\]: the model has 2 labels \(LABEL_0, LABEL_1\); say which"):
        check_texts(plan_of(folder, text))


def test_cost_and_memory_hold_the_reward_model(folder):
    plain = STUDY.replace("model:rm", "own.py:f").replace(REWARDED, "")
    (folder / "own.py").write_text("def f(prompt, completion, row): return 1")
    without, with_it = plan_of(folder, plain), plan_of(folder)
    size = with_it.num_reward_parameters
    assert (without.num_reward_parameters, size > 10_000) == (0, True)
    memory = [estimate_memory(plan) for plan in (without, with_it)]
    assert all(memory[1][arm].peak - memory[0][arm].peak == 2 * size for arm in memory[0])  # two bytes each
    costs = [estimate_plan(plan, 1) for plan in (without, with_it)]
    before, after = (cost.arms["rl"] for cost in costs)
    # It reads once what the learner is trained on: 2 FLOPs a weight and token.
    assert after.flops_forward - before.flops_forward == pytest.approx(2 * size * after.num_tokens, rel=1e-3)
    assert costs[0].arms["base-text"] == costs[1].arms["base-text"]
    assert costs[1].seconds["evaluate:rl:0"] > costs[0].seconds["evaluate:rl:0"]


def test_shards_that_are_yet_to_be_fetched_are_counted_by_their_bytes(folder, tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    plan = replace(
        plan_of(folder),
        model=tmp_path,
        download_bytes=4000,
        others={"rm": tmp_path},
        other_bytes={"rm": 600, "big": 9000},
    )
    assert (plan.num_parameters, plan.num_reward_parameters) == (2000, 300)  # two bytes each
    with pytest.raises(UsageError, match="cannot be read"):  # of a folder nothing is fetched
        replace(plan, download_bytes=0).num_parameters  # noqa: B018


def test_a_large_reward_model_is_held_once(folder, monkeypatch):
    plan = plan_of(folder)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("statewise.plan.request.GPU_FILE", folder / "no-gpu")
    assert choose_workers(plan).count == 2
    monkeypatch.setattr(Plan, "num_reward_parameters", 7e9)
    assert choose_workers(plan).count == 1


def test_a_record_that_another_model_rewarded_is_not_replayed(folder, tmp_path):
    plan, changed = plan_of(folder), plan_of(folder, STUDY.replace(REWARDED, REWARDED + "range = [0, 1]\n"))
    mine, other = (one.config.rewarded_by(one.other_digests) for one in (plan, changed))
    bytes_changed = plan.config.rewarded_by({"rm": "other"})
    assert len({mine, other, bytes_changed}) == 3
    trained = {"state_hash": "a", "reward_hash": "b", "files": {}, replay.REWARDED_BY: mine}
    integrity.write_sealed(tmp_path / "train.json", trained)
    replay.check_rewarded(str(tmp_path), 0, "rm", mine)
    for identity in (other, bytes_changed):
        with pytest.raises(UsageError, match=r"was rewarded by another model than \[models\.rm\] is now"):
            replay.check_rewarded(str(tmp_path), 0, "rm", identity)


def test_signals_say_whether_they_ask_for_rewards():
    grading = {kind for kind in SIGNALS if SIGNALS[kind]().needs_reward}
    assert grading == {"reward", "preference"}
    assert SIGNALS["imitate"](only_correct=True).needs_reward


def test_an_evaluation_by_the_study_is_rewarded_by_the_same_model(folder, tmp_path):
    plan = plan_of(folder)
    request = EvaluationRequest("pocket", study=str(folder / "study.toml"), out=tmp_path)
    asked = plan_evaluation(request)
    assert load_asked(asked, "sums").protocol == build_task(plan, "sums").protocol
    plan_of(folder, STUDY.replace(REWARDED, REWARDED + "range = [0.0, 1.0]\n"))
    assert plan_evaluation(request).stored["settings"]["own_data"] != asked.stored["settings"]["own_data"]
