"""Arithmetic on shapes, against numbers that are known: parameters of real models, memory by hand."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from statewise.assets import POCKET_MODEL, SHAPES
from statewise.errors import UsageError
from statewise.plan import memory
from statewise.plan.estimate import estimate_plan
from statewise.plan.memory import CARDS, estimate_card_seconds, estimate_memory
from statewise.plan.model_size import ModelSize
from statewise.plan.request import StudyRequest, plan_study
from statewise.policy import sampler
from statewise.policy.find import count_parameters
from statewise.policy.score import CHUNK_LOGITS

QWEN = SHAPES / "Qwen__Qwen3-0.6B-Base"


def test_parameters_are_those_of_the_model_without_its_norms():
    config = Qwen3Config.from_pretrained(QWEN)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    whole = sum(p.numel() for p in model.parameters())
    assert ModelSize.of(QWEN).num_parameters == whole - norms
    assert ModelSize.of(POCKET_MODEL).num_parameters == pytest.approx(
        sum(count_parameters(POCKET_MODEL).values()), rel=0.01
    )


def test_adapter_parameters_by_hand():
    # Per layer r (in + out): q 1024+2048, k and v 1024+1024 each, o 2048+1024, gate, up and down 1024+3072 each.
    assert ModelSize.of(QWEN).num_adapter_parameters(2) == 28 * 2 * (3072 + 2 * 2048 + 3072 + 3 * 4096)


def test_constants_are_those_of_the_rooms_they_describe():
    assert memory.CHUNK_BYTES == 4 * CHUNK_LOGITS
    assert memory.CACHE_BYTES == sampler.CACHE_BYTES
    assert sampler.Sampling().max_rows == memory.SAMPLED_ROWS


@pytest.fixture(scope="module")
def paper():
    return plan_study(StudyRequest("paper", is_dry=True))


def test_an_adapter_needs_less_than_all_weights_and_recomputing_less_than_keeping(paper):
    def peak(*overrides):
        plan = plan_study(StudyRequest("paper", overrides, is_dry=True))
        return estimate_memory(plan)["mild-sft"].training

    plain = peak()
    # 0.6 B parameters: float32 weights, gradient and two moments are 16 bytes each, an adapter's weights 2.
    assert peak("shared.adapter.kind=full") > plain - 10e9 + 0.6e9 * 8
    assert peak("shared.update.activation_checkpointing=true") < plain / 2
    assert peak("shared.update.max_tokens=2048") < plain


def test_a_teacher_that_is_an_adapter_costs_no_second_model():
    def peak(kind):
        plan = plan_study(
            StudyRequest(
                "paper",
                (f"mild-sft.adapter.kind={kind}", 'study.factors=["source","signal","teacher","update","adapter"]'),
                is_dry=True,
            )
        )
        return estimate_memory(plan)["opd-from-mild"].training

    assert peak("full") - peak("lora") == pytest.approx(2 * ModelSize.of(QWEN).num_parameters)


def test_a_faster_card_is_not_slower(paper):
    estimate = estimate_plan(paper, 1)
    seconds = [estimate_card_seconds(paper, estimate, card) for card in CARDS]
    for name in paper.config.arms:
        assert seconds[0][name] >= seconds[1][name] >= seconds[2][name] > 0
    # 4 N FLOPs a token at 35 % of 989 TFLOP/s: 2 N forward, 2 N backward through frozen weights (LoRA).
    expected = 4 * ModelSize.of(QWEN).num_parameters * estimate.arms["mild-sft"].num_tokens / (0.35 * 989e12)
    assert seconds[2]["mild-sft"] == pytest.approx(expected)


def test_a_config_without_sizes_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2, "hidden_size": 8}))
    with pytest.raises(UsageError, match="has no 'num_hidden_layers'"):
        ModelSize.of(tmp_path)


def test_a_study_of_a_model_out_of_reach_is_planned_by_its_shape(paper):
    assert paper.model == QWEN
    assert paper.download_bytes == 2 * ModelSize.of(QWEN).num_parameters
