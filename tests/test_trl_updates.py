"""Whole updates against TRL 1.16's real trainers: equal batch and optimiser, equal weights (`trl_fixture`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import trl_fixture
from safetensors.torch import load_file

from statewise.batch import Trajectory, collate
from statewise.config.study import UpdateSection
from statewise.locality.adapter import Full
from statewise.loop.build import Material, Recipe, build
from statewise.loop.score import Term
from statewise.loop.update import Updater
from statewise.policy.load import load_policy
from statewise.signals import Imitate
from statewise.signals.reward import Reward
from statewise.signals.signal import Supervision, WeightedSignal
from statewise.states import SOURCES
from statewise.types import Example

SETTINGS = trl_fixture.SETTINGS
CASES = ["sft", "grpo", "dr_grpo"]


@dataclass(frozen=True)
class NoTask:
    """`build` wants a document; the states are made by hand."""

    name: str = "none"

    def examples(self, split, chat=None):
        return (Example(0, "a", " b"),)


def signal_and_reduction(case):
    """Statewise's words for what TRL does in `case`."""
    return {
        "sft": (Imitate(), {"reduction": "states"}),
        "grpo": (Reward(advantage="grpo", clip=trl_fixture.EPSILON), {"reduction": "trajectories"}),
        "dr_grpo": (
            Reward(advantage="dr_grpo", clip=trl_fixture.EPSILON),
            {"reduction": "constant", "constant_tokens": 64},
        ),
    }[case]


def update_once(case, old_logprobs):
    """One update of the pocket model on TRL's rows: what it did, and the trained weights with their gradients."""
    signal, reduction = signal_and_reduction(case)
    section = UpdateSection(num_updates=1, **SETTINGS, **reduction)
    recipe = Recipe(SOURCES["dataset"](num_trajectories=1), (WeightedSignal(signal=signal),), Full(), section, key=0)
    setup = build(recipe, load_policy(trl_fixture.POCKET, "learner"), {}, Material(NoTask()))
    states = collate(
        [
            Trajectory(
                (*prompt, *completion), len(prompt), i // trl_fixture.GROUP, "rollout", "learner", tuple(old.tolist())
            )
            for i, ((prompt, completion), old) in enumerate(zip(trl_fixture.make_rows(), old_logprobs, strict=True))
        ]
    )
    supervision = Supervision(None, None, lambda indices, rows: [trl_fixture.reward(ids) for ids in rows], key=0)
    # TRL is given the writer's log-probabilities as those of the learner that took up the batch.
    supervised = replace(signal.supervise(states, supervision), old_logprobs=states.behavior_logprobs)
    return Updater(setup).apply([Term(signal, 1.0, supervised)], 0), setup.trainable


@pytest.fixture(scope="module")
def trl_folder(tmp_path_factory):
    """What TRL's process left."""
    folder = tmp_path_factory.mktemp("trl")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [sys.executable, trl_fixture.__file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def largest(tensors):
    return max(tensor.abs().max().item() for tensor in tensors)


@pytest.mark.parametrize("case", CASES)
def test_one_update_gives_the_weights_of_trl(trl_folder, case):
    old = load_file(trl_folder / "old_logprobs.safetensors")
    weights, gradients = (load_file(trl_folder / f"{case}{end}.safetensors") for end in ("", "-gradient"))
    logged = json.loads((trl_folder / "logged.json").read_text(encoding="utf-8"))[case]
    before = load_policy(trl_fixture.POCKET, "before").model.state_dict()

    result, trainable = update_once(case, [old[str(i)] for i in range(len(old))])
    assert trainable.keys() == weights.keys() == gradients.keys()
    with torch.no_grad():
        assert largest(trainable[name] - weights[name] for name in weights) < 1e-5
        moved = [(trainable[name] - before[name]).abs().max().item() for name in weights]
        assert min(moved) > 9e-5  # AdamW's first step is lr = 1e-4 wherever a gradient is far above its epsilon
    # That step hardly depends on a gradient's size, so size is compared by itself; clipping to 0.5 would hide it too.
    assert result.loss == pytest.approx(logged["loss"], rel=1e-5)
    assert result.grad_norm == pytest.approx(logged["grad_norm"], rel=1e-5)
    assert (result.grad_norm > SETTINGS["clip_norm"]) == (case != "dr_grpo")  # both sides of the clip
    assert largest(trainable[name].grad - gradients[name] for name in weights) < 1e-5 * largest(gradients.values())
