"""Models from elsewhere as teachers: named, fingerprinted by their bytes, and checked before a run."""

from __future__ import annotations

import json
import shutil

import pytest
from study_fixture import STUDY, fake_model, write_study

from statewise.assets import POCKET_MODEL, SHAPES
from statewise.config.read import read_study_and_place
from statewise.errors import UsageError
from statewise.plan.benchmarks import check_texts
from statewise.plan.dag import make_plan
from statewise.plan.estimate import estimate_plan
from statewise.plan.materials import is_known_to_be_sound
from statewise.plan.memory import estimate_memory
from statewise.plan.model_size import ModelSize
from statewise.plan.request import StudyRequest, plan_study

TAUGHT = STUDY.replace('teacher = "sft"', 'teacher = "big"')
BIG = '\n[models.big]\nmodel = "{model}"\n'


def plan_of(folder, text, **others):
    config, place = read_study_and_place(write_study(folder, text))
    model = folder / "fake-model"
    return make_plan(config, model if model.exists() else fake_model(folder), place, others=others)


@pytest.fixture
def big(tmp_path):
    (tmp_path / "big").mkdir()
    return fake_model(tmp_path / "big")


def prints(plan):
    return {job.id: job.fingerprint for job in plan.jobs}


def test_a_model_from_elsewhere_teaches_and_nothing_waits_for_it(tmp_path, big):
    plan = plan_of(tmp_path, TAUGHT + BIG.format(model=big), big=big)
    job = next(job for job in plan.jobs if job.id == "train:opd:0")
    assert job.needs == ()
    before = prints(plan)
    (big / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a":1} ')
    after = prints(plan_of(tmp_path, TAUGHT + BIG.format(model=big), big=big))
    assert {job for job in before if before[job] != after[job]} == {
        f"{action}:opd:{seed}" for action in ("train", "evaluate") for seed in plan.config.study.seeds
    }


def test_where_a_model_from_elsewhere_lies_and_its_name_change_nothing(tmp_path, big):
    before = prints(plan_of(tmp_path, TAUGHT + BIG.format(model=big), big=big))
    moved = big.rename(tmp_path / "moved")
    named = TAUGHT.replace('"big"', '"large"') + BIG.format(model=moved).replace("models.big", "models.large")
    assert prints(plan_of(tmp_path, named, large=moved)) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TAUGHT + BIG.replace("models.big", "models.bigg"), r"unknown teacher 'big'\. Did you mean 'bigg'\?"),
        (STUDY + BIG.replace("models.big", "models.sft"), r"model name 'sft' must match .* and not be that of an arm"),
        (STUDY + BIG, r"small\.toml:\d+: model 'big' is no arm's teacher; remove it"),
        (TAUGHT + BIG.replace("model =", "modl ="), r"unknown key in \[models\.big\]: 'modl'\. Did you mean 'model'\?"),
    ],
)
def test_a_mistake_is_told_where_it_stands(tmp_path, text, told):
    with pytest.raises(UsageError, match=told):
        plan_of(tmp_path, text)


TABLES = {
    "study": {"name": "t", "factors": ["signal", "teacher"]},
    "shared": {"update": {"num_updates": 2, "lr": 1e-3}, "retention": []},
    "arms": {"opd": {"source": {"kind": "rollout"}, "signal": {"kind": "reverse_kl"}, "teacher": "big"}},
}


def request(model, **changes):
    return StudyRequest({**TABLES, "models": {"big": {"model": str(model)}}}, **changes)


def test_a_model_that_is_not_there_is_told_before_a_run(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        plan_study(request(tmp_path / "nowhere"))


def test_a_teacher_of_another_tokenizer_is_refused_before_a_run(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(POCKET_MODEL, other)
    assert check_texts(plan_study(request(other))) == ()
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    plan = plan_study(request(other))
    assert not is_known_to_be_sound(plan)
    with pytest.raises(UsageError, match="'big' have different tokenizers"):
        check_texts(plan)


def test_cost_and_memory_are_those_of_the_teacher_that_there_is(tmp_path):
    shape = SHAPES / "Qwen__Qwen3-0.6B-Base"
    same, large = (plan_study(request(model, is_dry=True)) for model in (POCKET_MODEL, "Qwen/Qwen3-0.6B-Base"))
    assert large.others == {"big": shape}
    ours, theirs = ModelSize.of(POCKET_MODEL).num_parameters, ModelSize.of(shape).num_parameters
    memory = [estimate_memory(plan)["opd"].training for plan in (same, large)]
    assert memory[1] - memory[0] == pytest.approx(2 * (theirs - ours))  # in half precision
    costs = [estimate_plan(plan, 1).arms["opd"] for plan in (same, large)]
    # The teacher makes one forward pass over what the learner is trained on: 2 FLOPs a weight and token.
    assert costs[0].num_tokens == costs[1].num_tokens > 0
    by_hand = 2 * costs[0].num_tokens * (theirs - same.num_parameters)
    assert costs[1].flops_forward - costs[0].flops_forward == pytest.approx(by_hand, rel=1e-6)
    assert costs[1].flops_backward == costs[0].flops_backward


def test_a_teacher_of_a_shorter_context_is_told(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(POCKET_MODEL, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 24}))
    (note,) = check_texts(plan_study(request(other)))
    assert note.startswith("big has a context of 24 tokens, pocket of ")


def test_a_model_beside_the_study_file_is_that_one(tmp_path, big, monkeypatch):
    monkeypatch.chdir("/")
    config, _ = read_study_and_place(write_study(tmp_path, TAUGHT + BIG.format(model="big/fake-model")))
    assert config.models["big"].model == str(big)


def test_what_is_to_be_fetched_of_a_teacher_is_no_part_of_the_base_model():
    name = "Qwen/Qwen3-0.6B-Base"
    tables = {**TABLES, "shared": {**TABLES["shared"], "model": name, "target": "gsm8k", "retention": []}}
    alone = plan_study(
        StudyRequest({**tables, "arms": {"opd": {**TABLES["arms"]["opd"], "teacher": "base"}}}, is_dry=True)
    )
    taught = plan_study(StudyRequest({**tables, "models": {"big": {"model": name}}}, is_dry=True))
    assert taught.num_parameters == alone.num_parameters > 0
    assert (alone.other_bytes, taught.other_bytes) == ({}, {"big": alone.download_bytes})
