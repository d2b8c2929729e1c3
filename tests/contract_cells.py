"""Every source, signal, adapter and locality as a toy arm, and what it means that a run resumes as if uninterrupted."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from toy_arm import ToyTask, make_setup, make_source, stop_before, weighted, written

from statewise.errors import InterruptedTrainingError
from statewise.locality import LOCALITIES
from statewise.locality.adapter import ADAPTERS
from statewise.loop.train import Observer, train
from statewise.plan.cells import refusal
from statewise.signals import SIGNALS, WeightedSignal
from statewise.states import SOURCES, RecordedStates
from statewise.states.mixture import Part
from statewise.states.ramp import Ramp


def mixture(*parts, per="trajectory"):
    held = tuple(Part(source=source, weight=weight) for source, weight in parts)
    return SOURCES["mixture"](parts=held, per=per, num_trajectories=4)


SOURCE_VARIANTS = {
    "dataset": make_source("dataset"),
    "learner": make_source(by="learner"),
    "teacher": make_source(by="teacher"),
    "base": make_source(by="base", temperature=0.7, top_p=0.9),
    "stale": make_source(lag=2),
    "replay": make_source(buffer_size=8, max_age=2),
    "prefix": make_source("prefix", share=Ramp(start=1.0, end=0.0)),
    "teacher-prefix": make_source("prefix", of="teacher", share="uniform", trains_on="rest"),
    "log": SOURCES["log"](arm="recorded"),
    "mixture": mixture((make_source("dataset"), Ramp(start=1.0, end=0.0)), (make_source(), 0.5)),
    "state-mixture": mixture((make_source("dataset"), 0.3), (make_source(by="teacher"), 0.7), per="state"),
}
SIGNAL_VARIANTS = {
    "imitate": SIGNALS["imitate"](),
    "imitate-correct": SIGNALS["imitate"](only_correct=True),
    "continuation": SIGNALS["continuation"](num_tokens=3),
    "expert": SIGNALS["expert"](),
    "expert-sampled": SIGNALS["expert"](temperature=1.0),
    "forward_kl": SIGNALS["forward_kl"](),
    "forward_kl-k3": SIGNALS["forward_kl"](estimator="k3"),
    "reverse_kl": SIGNALS["reverse_kl"](),
    "reverse_kl-top_k": SIGNALS["reverse_kl"](estimator="top_k", top_k=5),
    "reverse_kl-k1": SIGNALS["reverse_kl"](estimator="k1"),
    "reverse_kl-k2": SIGNALS["reverse_kl"](estimator="k2"),
    "jsd": SIGNALS["jsd"](beta=0.3),
    "jsd-k3": SIGNALS["jsd"](beta=0.3, estimator="k3"),
    "reinforce": SIGNALS["reward"](advantage="reinforce"),
    "grpo": SIGNALS["reward"](),
    "rloo-token": SIGNALS["reward"](advantage="rloo", importance="token"),
    "dr_grpo-sequence": SIGNALS["reward"](advantage="dr_grpo", importance="sequence"),
    "dpo": SIGNALS["preference"](),
    "ipo": SIGNALS["preference"](loss_type="ipo", beta=0.5),
    "reward+reverse_kl": (WeightedSignal(signal=SIGNALS["reward"](advantage="reinforce")),
                          WeightedSignal(signal=SIGNALS["reverse_kl"](), weight=0.1)),
    "imitate+continuation": (WeightedSignal(signal=SIGNALS["imitate"](), weight=0.5),
                             WeightedSignal(signal=SIGNALS["continuation"](num_tokens=3))),
}  # fmt: skip
LOCALITY_VARIANTS = {
    "kl_to_base": LOCALITIES["kl_to_base"](coefficient=0.5, target=0.01),
    "ewc": LOCALITIES["ewc"](strength=10.0, num_prompts=3, max_new_tokens=3),
    "gem": LOCALITIES["gem"](num_prompts=3, max_new_tokens=3),
    "a_gem": LOCALITIES["a_gem"](num_prompts=3, max_new_tokens=3),
    "ema": LOCALITIES["ema"](decay=0.5),
}
ADAPTER_VARIANTS = {"full": ADAPTERS["full"](), "lora": ADAPTERS["lora"](rank=2, alpha=4.0)}
# Losses of one token a state, or of rewards, need not fall from one draw to the next.
FALLING = [
    name
    for name in SIGNAL_VARIANTS
    if name not in ("reinforce", "grpo", "rloo-token", "dr_grpo-sequence", "reward+reverse_kl", "imitate-correct")
    and not name.endswith(("k1", "k3"))
]


def refused(source, signal):
    """Why the plan would refuse a cell, as `statewise list cells` says; a log has the groups of what it replays."""
    resolved = SOURCE_VARIANTS["learner"] if source == "log" else SOURCE_VARIANTS[source]
    return refusal(resolved, weighted(SIGNAL_VARIANTS[signal]))


PAIRS = [pair for pair in itertools.product(SOURCE_VARIANTS, SIGNAL_VARIANTS) if not refused(*pair)]
CELLS = [(*pair, adapter) for pair, adapter in itertools.product(PAIRS, ADAPTER_VARIANTS)]


def recorded(policy):
    """What another arm, whose learner wrote, would have recorded in four updates."""
    setup = make_setup(policy, make_source(), SIGNALS["imitate"](), key=99)
    states = [setup.recipe.source.sample(setup.context, step) for step in range(4)]
    return {"recorded": RecordedStates(4, states.__getitem__)}


def arm(policy, source, signal, adapter="full", **options):
    records = recorded(policy) if source == "log" else None
    task = ToyTask(pass_mark=0.25) if signal == "imitate-correct" else None  # a share of 1 is too rare among answers
    return make_setup(
        policy, SOURCE_VARIANTS[source], SIGNAL_VARIANTS[signal], adapter=ADAPTER_VARIANTS[adapter], recorded=records,
        task=task, **options,
    )  # fmt: skip


def assert_resumes(make, tmp_path):
    """Training that is interrupted before update 3 and resumed writes the bytes of one that is not.

    Returns the uninterrupted arm, trained, and its lines of metrics.
    """
    whole, begun, resumed = (make() for _ in range(3))
    recorder = train(whole, tmp_path / "whole", Observer())
    with pytest.raises(InterruptedTrainingError, match="stopped before update 3"):
        train(begun, tmp_path / "parts", stop_before(3))
    again = train(resumed, tmp_path / "parts", Observer())
    expected = written(tmp_path / "whole", whole)
    assert written(tmp_path / "parts", resumed) == expected
    assert {"metrics.jsonl", "states/000002.parquet", "states/000004.parquet"} <= set(expected)
    assert recorder.state_hash == again.state_hash
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(np.isfinite(line["loop/loss_nats"]) for line in lines)
    return whole, lines
