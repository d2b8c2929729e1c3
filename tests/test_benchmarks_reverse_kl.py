"""The memory of a loss over the whole vocabulary, counted by torch's allocator, and its gradients."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from statewise.policy.score import Law, chunked_over_laws

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "reverse_kl.py"
QWEN_VOCABULARY = 151_936
NUM_COPIES = 8  # of a chunk of logits, float32: what a law loss and its gradient hold at their peak


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("reverse_kl", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reverse_kl"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reverse_kl"]


@pytest.fixture
def peak(benchmark):
    """Extra bytes at the peak of forward and backward through both heads."""

    def measure(method, states, width, vocabulary, *, is_trained):
        learner = benchmark.make_policy("learner", width, vocabulary, is_trained=is_trained)
        teacher = benchmark.make_policy("teacher", width, vocabulary)
        hidden, teacher_hidden = torch.randn(2, states, width, generator=torch.Generator().manual_seed(0))
        losses = benchmark.make_losses(method, learner, teacher)
        return benchmark.tracked_peak(lambda: losses(hidden.requires_grad_(), teacher_hidden).sum().backward())

    return measure


def test_the_tracked_peak_is_the_most_held_at_once(benchmark):
    def run():
        one = torch.zeros(2**18)  # 1 MiB of three that are made, two of them at a time
        two = one + 1
        del one
        return two * 2

    assert benchmark.tracked_peak(run) == pytest.approx(2 * 2**20, abs=100)  # the scalars take a few bytes
    # Sorting returns values (1 MiB) and int64 places (2 MiB) of its argument (1 MiB), and needs room of its own.
    assert benchmark.tracked_peak(lambda: torch.zeros(2**18).sort()) > 4 * 2**20


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_loss_over_a_large_vocabulary_holds_few_copies_of_one_chunk(peak, is_trained):
    chunk = (10 * 2**20 // QWEN_VOCABULARY) * QWEN_VOCABULARY * 4  # 69 states, 42 MB
    head = QWEN_VOCABULARY * 4 * 4 if is_trained else 0
    assert peak("ours", 140, 4, QWEN_VOCABULARY, is_trained=is_trained) < (NUM_COPIES + 0.2) * chunk + head


def test_memory_does_not_grow_with_the_states(peak, monkeypatch):
    monkeypatch.setattr("statewise.policy.score.CHUNK_LOGITS", 16 * 4096)
    few, many = (peak("ours", states, 8, 4096, is_trained=True) for states in (64, 512))
    # What grows is [states, width]: a few times 448 × 8 floats; naive grows by 7 copies of 448 × 4,096.
    assert many - few < 10 * 448 * 8 * 4
    naive_few, naive_many = (peak("naive", states, 8, 4096, is_trained=True) for states in (64, 512))
    assert naive_many - naive_few > 6 * 448 * 4096 * 4


def test_a_trained_head_has_one_gradient_and_no_second_of_its_size(peak, monkeypatch):
    monkeypatch.setattr("statewise.policy.score.CHUNK_LOGITS", 4 * 512)
    head = 512 * 4096 * 4
    assert head < peak("ours", 40, 4096, 512, is_trained=True) < 1.5 * head


@pytest.mark.parametrize("is_trained", [False, True])
def test_gradients_are_those_of_the_whole_at_once(benchmark, is_trained, monkeypatch):
    monkeypatch.setattr("statewise.policy.score.CHUNK_LOGITS", 7 * 1000)
    weights = torch.linspace(-1, 1, 30)
    gradients = []
    for method in benchmark.METHODS:
        learner = benchmark.make_policy("learner", 16, 1000, is_trained=is_trained)
        teacher = benchmark.make_policy("teacher", 16, 1000)
        hidden, teacher_hidden = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
        losses = benchmark.make_losses(method, learner, teacher)(hidden.requires_grad_(), teacher_hidden)
        assert losses.shape == (30,)  # not reduced
        (losses * weights).sum().backward()
        gradients.append([losses.detach(), hidden.grad, *(p.grad for p in learner.model.parameters() if is_trained)])
    for ours, naive in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_chunks_handle_bias_temperature_padding_and_precision(benchmark, is_trained, dtype):
    # 11 tokens and a head padded to 16, with bias; 5 states in chunks of 2.
    policy = benchmark.make_policy("learner", 4, 11)
    head = policy.model.lm_head = torch.nn.Linear(4, 16, dtype=dtype).requires_grad_(is_trained)
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    wanted = [hidden, *(p for p in head.parameters() if is_trained)]
    gradients = []
    for chunk_size in (5, 2):
        values = chunked_over_laws(lambda logits: logits.logsumexp(-1), Law(policy, 0.7, chunk_size), hidden)
        gradients.append([values.detach(), *torch.autograd.grad((values * torch.arange(5)).sum(), wanted)])
    precision = {"atol": 0.1, "rtol": 0.02} if dtype is torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    for whole, chunked in zip(*gradients, strict=True):
        assert whole.dtype == chunked.dtype
        torch.testing.assert_close(chunked, whole, **precision)


def test_without_gradients_nothing_is_differentiated(benchmark):
    policy = benchmark.make_policy("learner", 4, 11, is_trained=True)
    hidden = torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        values = chunked_over_laws(lambda logits: logits.logsumexp(-1), Law(policy, 1.0, 2), hidden)
    assert not values.requires_grad
    torch.testing.assert_close(values, policy.model.lm_head(hidden).detach().logsumexp(-1))
