"""Sums of signals, localities at work, budgets: what an update adds up."""

import json

import numpy as np
import pytest
import torch
from test_loop_build import make_setup, make_source, supervised_terms

from statewise.locality import LOCALITIES
from statewise.locality.adapter import Lora
from statewise.loop import score
from statewise.loop.constrain import _memory_gradient
from statewise.loop.train import Observer, train
from statewise.loop.update import Updater
from statewise.signals import SIGNALS, WeightedSignal


def gradient_after(setup, **options):
    Updater(setup).apply(supervised_terms(setup), 0, **options)
    return {name: p.grad.clone() for name, p in setup.trainable.items()}


def arm(policy, *signals, **options):
    return make_setup(policy, make_source(), signals, clip_norm=1e6, **options)


def test_the_gradient_of_a_sum_is_the_weighted_sum_of_gradients(toy_policy):
    imitate, kl = WeightedSignal(SIGNALS["imitate"](), 0.5), WeightedSignal(SIGNALS["reverse_kl"](), 2.0)
    both = gradient_after(arm(toy_policy, imitate, kl))
    one = gradient_after(arm(toy_policy, WeightedSignal(imitate.signal)))
    other = gradient_after(arm(toy_policy, WeightedSignal(kl.signal)))
    for name, value in both.items():
        torch.testing.assert_close(value, 0.5 * one[name] + 2.0 * other[name], atol=1e-6, rtol=1e-4)


def test_terms_on_the_same_states_share_a_forward_pass(toy_policy, monkeypatch):
    calls = []
    whole = score.state_hidden
    monkeypatch.setattr(score, "state_hidden", lambda *a, **k: calls.append(a[0].name) or whole(*a, **k))
    kl = LOCALITIES["kl_to_base"](coefficient=0.5)
    signals = (WeightedSignal(SIGNALS["imitate"]()), WeightedSignal(SIGNALS["reverse_kl"]()))
    gradient_after(arm(toy_policy, *signals, localities=(kl,)))
    assert sorted(calls) == ["base", "learner", "teacher"]


def test_kl_to_base_is_the_reverse_kl_to_a_teacher_that_is_the_base(toy_policy):
    kl = LOCALITIES["kl_to_base"](coefficient=0.7)
    bound = gradient_after(arm(toy_policy, WeightedSignal(SIGNALS["imitate"]()), localities=(kl,)))
    taught = arm(toy_policy, WeightedSignal(SIGNALS["imitate"]()), WeightedSignal(SIGNALS["reverse_kl"](), 0.7))
    taught.engine.policies["teacher"] = taught.engine.policies["base"]
    for name, value in gradient_after(taught).items():
        torch.testing.assert_close(bound[name], value, atol=1e-6, rtol=1e-4)


def test_the_average_of_the_weights_is_what_an_arm_ends_with(toy_policy, tmp_path):
    plain, averaged = (
        make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), num_updates=1, lr=1e-2, localities=kept)
        for kept in ((), (LOCALITIES["ema"](decay=0.75),))
    )
    before = {name: p.detach().clone() for name, p in plain.trainable.items()}
    train(plain, tmp_path / "plain", Observer())
    train(averaged, tmp_path / "averaged", Observer())
    for name, old in before.items():
        expected = 0.75 * old + 0.25 * plain.trainable[name].detach()
        torch.testing.assert_close(averaged.trainable[name].detach(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gem", "a_gem"])
def test_a_projected_gradient_does_not_raise_the_loss_on_the_memory(toy_policy, kind):
    gem = LOCALITIES[kind](num_prompts=4, max_new_tokens=4)
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), localities=(gem,), clip_norm=1e6)
    updater = Updater(setup)
    memory = _memory_gradient(setup, updater.constraints._memories[0][0])
    # The worst there is: the gradient that raises the memory's loss most.
    for name, parameter in setup.trainable.items():
        parameter.grad = -memory[name].clone()
    assert updater.constraints.bend() == {f"locality/{kind}_projected_rate": 1}
    product = sum((parameter.grad * memory[name]).sum().item() for name, parameter in setup.trainable.items())
    size = sum(value.square().sum().item() for value in memory.values())
    assert product >= -1e-5 * size


def test_ewc_pulls_back_to_where_the_arm_started(toy_policy):
    ewc = LOCALITIES["ewc"](strength=1e4, num_prompts=4, max_new_tokens=4)
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), localities=(ewc,))
    updater = Updater(setup)
    assert updater.constraints.bend() == {"locality/ewc_penalty_nats": 0.0}  # nothing has moved yet
    with torch.no_grad():
        for parameter in setup.trainable.values():
            parameter += 0.01
            parameter.grad = None
    penalty = updater.constraints.bend()["locality/ewc_penalty_nats"]
    fisher = updater.constraints._fisher
    assert penalty == pytest.approx(0.5 * 1e4 * 1e-4 * sum(value.sum().item() for value in fisher.values()), rel=1e-3)
    assert all((parameter.grad >= 0).all() for parameter in setup.trainable.values())


@pytest.mark.parametrize("unit", ["states", "loss_tokens", "flops"])
def test_an_arm_ends_with_the_update_that_reaches_its_budget(toy_policy, tmp_path, unit):
    options = {"num_updates": 8, "schedule": "linear", "lr": 1e-3}
    train(make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), **options), tmp_path / "a", Observer())
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    used = {
        "states": np.cumsum([line["states/num_states"] for line in lines]),
        "loss_tokens": np.cumsum([line["states/num_loss_tokens"] for line in lines]),
        "flops": np.array([line["loop/flops_forward"] + line["loop/flops_backward"] for line in lines]),
    }[unit]
    budget = {"unit": unit, "amount": float(used[2]) + 0.5}  # reached by the fourth update
    bound = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), budget=budget, **options)
    train(bound, tmp_path / "b", Observer())
    ended = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert len(ended) == 4
    shares = [0, *(used[:3] / budget["amount"])]
    assert [line["loop/lr"] for line in ended] == pytest.approx([1e-3 * (1 - share) for share in shares])


def test_flops_are_counted_by_hand(toy_policy):
    # Forward 2 N, backward 4 N a token; with an adapter of n weights 2 N + 4 n backward.
    for adapter in (None, Lora(rank=2)):
        setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), adapter=adapter)
        terms = supervised_terms(setup)
        Updater(setup).apply(terms, 0)
        tokens, size = int(terms[0].states.lengths.sum()), sum(p.numel() for p in toy_policy.model.parameters())
        trained = sum(p.numel() for p in setup.trainable.values())
        account = setup.engine.account
        assert account.flops_forward == 2 * size * tokens
        assert account.flops_backward == (4 * size if adapter is None else 2 * size + 4 * trained) * tokens


def test_the_end_of_a_text_may_be_left_out_of_the_loss(toy_policy):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), trains_end_of_text=False)
    whole = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"]())
    one, other = (supervised_terms(one)[0].states for one in (setup, whole))
    assert (one.action_mask.sum(1) == other.action_mask.sum(1) - 1).all()
    assert not (one.action_mask & (one.token_ids == toy_policy.end_token_id)).any()
