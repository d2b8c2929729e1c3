"""What the other tests ask of a CPU, asked of a GPU: the same laws, the same losses, the same bytes when repeated.

Skipped where torch sees no GPU. Float32 throughout: equal but for rounding is then equal to a few units of the last
place, so that a draw differs only where its uniform lies that near to a border of the law.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from contract_cells import ADAPTER_VARIANTS, LOCALITY_VARIANTS, PAIRS, SIGNAL_VARIANTS, arm, assert_resumes
from toy_arm import make_setup, make_source, supervised_terms

from statewise.assets import POCKET_MODEL
from statewise.drift.measure import DriftConfig, measure_drift
from statewise.evals.evaluate import EvalProtocol, evaluate
from statewise.evals.preserve import preserve_rng_and_mode
from statewise.locality.adapter import Lora
from statewise.loop.train import MISMATCH, Observer, train
from statewise.loop.update import Updater
from statewise.policy.check import check_model, check_packing
from statewise.policy.load import copy_policy, load_policy
from statewise.policy.lora import add_adapter
from statewise.policy.sampler import Sampling, sample
from statewise.signals import SIGNALS
from statewise.tasks.load import load_task

DEVICE = os.environ.get("STATEWISE_TEST_DEVICE", "cuda")  # "cpu": tries these tests themselves
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(scope="module")
def gpu_policy(toy_policy):
    policy = copy_policy(toy_policy, "toy")
    policy.model.to(DEVICE)
    return policy


@pytest.fixture(scope="module")
def pocket():
    """The pocket model, on the CPU and on the GPU."""
    return [load_policy(POCKET_MODEL, "learner", device=device) for device in ("cpu", DEVICE)]


@pytest.fixture(scope="module")
def prompts(pocket):
    task = load_task("pocket_math", task_folder=POCKET_MODEL / "tasks")
    texts = [example.prompt for example in task.examples("train")[:32]]
    return [pocket[0].tokenizer.encode(text, add_special_tokens=False) for text in texts]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_model_passes_the_checks_of_loading(gpu_policy, pocket, tmp_path):
    for policy in (gpu_policy, pocket[1]):
        assert policy.device.type == DEVICE
        check_model(policy, tmp_path)
        check_packing(policy)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(0.0), Sampling(max_new_tokens=60), Sampling(0.7, top_p=0.9), Sampling(max_rows=5, stop_strings=("has",))],
    ids=["greedy", "sampled", "top_p", "stops"],
)
def test_rollouts_are_those_of_the_cpu(pocket, prompts, sampling):
    here, there = (sample(policy, prompts, range(len(prompts)), sampling) for policy in pocket)
    equal = [(a, b) for a, b in zip(here, there, strict=True) if a.token_ids == b.token_ids]
    assert len(equal) >= 0.9 * len(prompts)  # one draw in 10^6 or so lies within rounding of a border
    for a, b in equal:
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-3)
        assert a.is_finished == b.is_finished


def test_rollouts_repeat(pocket, prompts):
    first, again = (sample(pocket[1], prompts, range(len(prompts)), Sampling()) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(("source", "signal"), PAIRS)
def test_a_cell_trains_as_on_the_cpu(toy_policy, gpu_policy, tmp_path, source, signal):
    assert_trains_as_on_the_cpu(toy_policy, gpu_policy, tmp_path, (source, signal, "full"))


@pytest.mark.parametrize("signal", SIGNAL_VARIANTS)
def test_an_adapter_trains_as_on_the_cpu(toy_policy, gpu_policy, tmp_path, signal):
    assert_trains_as_on_the_cpu(toy_policy, gpu_policy, tmp_path, ("learner", signal, "lora"))


def assert_trains_as_on_the_cpu(toy_policy, gpu_policy, tmp_path, cell):
    """The first update has the CPU's loss and gradient norm; the second is finite, as are the weights after it."""
    found = []
    for policy, name in ((toy_policy, "cpu"), (gpu_policy, "gpu")):
        setup = arm(policy, *cell, num_updates=2)
        train(setup, tmp_path / name, Observer())
        found.append(lines_of(tmp_path / name))
        assert all(parameter.isfinite().all() for parameter in setup.trainable.values())
        assert all(parameter.device.type == policy.device.type for parameter in setup.trainable.values())
    (here, _), (there, second) = found
    assert np.isfinite(second["loop/loss_nats"])
    assert there.get(MISMATCH, 0.0) < 1e-4
    same_states = ("states/num_states", "states/num_tokens", "states/num_loss_tokens")
    assert [there[key] for key in same_states] == [here[key] for key in same_states]
    assert there["loop/loss_nats"] == pytest.approx(here["loop/loss_nats"], rel=1e-3, abs=1e-5)
    assert there["loop/grad_norm"] == pytest.approx(here["loop/grad_norm"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("adapter", ADAPTER_VARIANTS)
@pytest.mark.parametrize(
    ("source", "signal"),
    [("dataset", "imitate"), ("learner", "reverse_kl"), ("learner", "grpo"), ("learner", "dpo"), ("stale", "imitate"),
     ("replay", "jsd"), ("prefix", "continuation"), ("state-mixture", "forward_kl")],
)  # fmt: skip
def test_a_run_resumes_with_the_same_bytes(gpu_policy, tmp_path, source, signal, adapter):
    assert_resumes(lambda: arm(gpu_policy, source, signal, adapter), tmp_path)


@pytest.mark.parametrize("adapter", ADAPTER_VARIANTS)
@pytest.mark.parametrize("locality", LOCALITY_VARIANTS)
def test_a_locality_resumes_with_the_same_bytes(gpu_policy, tmp_path, locality, adapter):
    kept = LOCALITY_VARIANTS[locality]
    assert_resumes(lambda: arm(gpu_policy, "learner", "grpo", adapter, localities=(kept,), lr=1e-2), tmp_path)


@pytest.mark.parametrize("locality", LOCALITY_VARIANTS)
def test_a_locality_acts_as_on_the_cpu(toy_policy, gpu_policy, tmp_path, locality):
    found = []
    for policy, name in ((toy_policy, "cpu"), (gpu_policy, "gpu")):
        setup = arm(policy, "dataset", "imitate", localities=(LOCALITY_VARIANTS[locality],), num_updates=3)
        train(setup, tmp_path / name, Observer())
        found.append(lines_of(tmp_path / name))
    for here, there in zip(*found, strict=True):
        assert there.keys() == here.keys()
        for key, value in here.items():  # a hash of gold states is the same, a number nearly
            assert there[key] == (value if isinstance(value, str) else pytest.approx(value, rel=0.02, abs=1e-4)), key


@pytest.mark.parametrize(
    "options", [{"packing": True}, {"activation_checkpointing": True}, {"max_tokens": 24}, {"num_epochs": 2}], ids=str
)
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_setting_that_changes_only_rounding_gives_the_gradient_of_the_cpu(toy_policy, gpu_policy, options, adapter):
    gradients = []
    for policy in (toy_policy, gpu_policy):
        setup = make_setup(policy, make_source("dataset"), SIGNALS["reverse_kl"](), adapter=adapter, **options)
        Updater(setup).apply(supervised_terms(setup), 0)
        gradients.append({name: p.grad.cpu() for name, p in setup.trainable.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-2)


def test_an_adapter_is_the_same_on_every_device_and_leaves_the_generators_alone(toy_policy, gpu_policy):
    states = [torch.cuda.get_rng_state() if DEVICE == "cuda" else torch.get_rng_state(), torch.get_rng_state()]
    here, there = (
        add_adapter(copy_policy(policy, "a").model, "a", rank=2, alpha=4.0, seed=1)
        for policy in (toy_policy, gpu_policy)
    )
    assert all(torch.equal(here[name], there[name].cpu()) for name in here)
    assert all(parameter.device.type == DEVICE for parameter in there.values())
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.equal(torch.cuda.get_rng_state() if DEVICE == "cuda" else torch.get_rng_state(), states[0])


def test_a_bystander_restores_the_generator_of_the_gpu(gpu_policy):
    before = torch.rand(1, device=DEVICE, generator=None)
    torch.manual_seed(5)
    expected = torch.rand(3, device=DEVICE)
    torch.manual_seed(5)
    with preserve_rng_and_mode(gpu_policy):
        torch.manual_seed(99)
        torch.rand(7, device=DEVICE)
    assert torch.equal(torch.rand(3, device=DEVICE), expected)
    assert 0 <= before.item() < 1


@pytest.mark.parametrize("name", ["pocket_math", "pocket_facts"])
def test_an_evaluation_scores_as_on_the_cpu(pocket, name):
    task = load_task(name, task_folder=POCKET_MODEL / "tasks")
    here, there = (evaluate(policy, task, EvalProtocol(limit=24, max_new_tokens=60)) for policy in pocket)
    assert len(here) == len(there)
    assert np.mean([a["response"] == b["response"] for a, b in zip(here, there, strict=True)]) >= 0.9
    assert np.mean([a["score"] == b["score"] for a, b in zip(here, there, strict=True)]) >= 0.9


def test_drift_of_a_model_from_itself_on_another_device_is_its_floor(pocket, prompts):
    base, again, other = (
        sample(policy, prompts, range(start, start + len(prompts)), Sampling(max_new_tokens=30))
        for policy, start in ((pocket[0], 0), (pocket[0], 100), (pocket[1], 200))
    )
    measured = measure_drift(base, again, other, DriftConfig(num_permutations=99), key=0)
    assert measured["mmd"].p_value > 0.01
    assert measured["mmd"].value < 0.1
