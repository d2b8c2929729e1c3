"""Sums of signals, localities at work, budgets: what an update adds up."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_arm import make_setup, make_source, supervised_terms

from statewise.errors import DivergedError
from statewise.locality import LOCALITIES
from statewise.locality.adapter import Lora
from statewise.locality.gem import project_agem
from statewise.loop import oom, score
from statewise.loop.constrain import memory_gradient
from statewise.loop.train import Observer, supervise, train
from statewise.loop.update import Updater
from statewise.signals import SIGNALS, WeightedSignal


def gradient_after(setup, **options):
    Updater(setup).apply(supervised_terms(setup), 0, **options)
    return {name: p.grad.clone() for name, p in setup.trainable.items()}


def arm(policy, *signals, **options):
    return make_setup(policy, make_source(), signals, clip_norm=1e6, **options)


def test_the_gradient_of_a_sum_is_the_weighted_sum_of_gradients(toy_policy):
    imitate, kl = (
        WeightedSignal(signal=SIGNALS["imitate"](), weight=0.5),
        WeightedSignal(signal=SIGNALS["reverse_kl"](), weight=2.0),
    )
    both = gradient_after(arm(toy_policy, imitate, kl))
    one = gradient_after(arm(toy_policy, WeightedSignal(signal=imitate.signal)))
    other = gradient_after(arm(toy_policy, WeightedSignal(signal=kl.signal)))
    for name, value in both.items():
        torch.testing.assert_close(value, 0.5 * one[name] + 2.0 * other[name], atol=1e-6, rtol=1e-4)


def test_terms_on_the_same_states_share_a_forward_pass(toy_policy, monkeypatch):
    calls = []
    whole = score.state_hidden
    monkeypatch.setattr(score, "state_hidden", lambda *a, **k: calls.append(a[0].name) or whole(*a, **k))
    kl = LOCALITIES["kl_to_base"](coefficient=0.5)
    signals = (WeightedSignal(signal=SIGNALS["imitate"]()), WeightedSignal(signal=SIGNALS["reverse_kl"]()))
    gradient_after(arm(toy_policy, *signals, localities=(kl,)))
    assert sorted(calls) == ["base", "learner", "teacher"]


def test_kl_to_base_is_the_reverse_kl_to_a_teacher_that_is_the_base(toy_policy):
    kl = LOCALITIES["kl_to_base"](coefficient=0.7)
    bound = gradient_after(arm(toy_policy, WeightedSignal(signal=SIGNALS["imitate"]()), localities=(kl,)))
    taught = arm(
        toy_policy,
        WeightedSignal(signal=SIGNALS["imitate"]()),
        WeightedSignal(signal=SIGNALS["reverse_kl"](), weight=0.7),
    )
    taught.writers.policies["teacher"] = taught.writers.policies["base"]
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


def gem_updater(policy, kind):
    gem = LOCALITIES[kind](num_prompts=4, max_new_tokens=4)
    setup = make_setup(policy, make_source("dataset"), SIGNALS["imitate"](), localities=(gem,), lr=1e-2)
    updater = Updater(setup)
    return updater, lambda: memory_gradient(setup, updater.constraints.held[kind].memories[0])


@pytest.mark.parametrize("kind", ["gem", "a_gem"])
def test_no_step_of_adamw_raises_the_loss_on_the_memory_to_first_order(toy_policy, kind):
    updater, memory_gradient = gem_updater(toy_policy, kind)
    trainable, rates = updater._setup.trainable, []
    for update in range(6):
        memory, before = memory_gradient(), {name: p.detach().clone() for name, p in trainable.items()}
        # Against the memory in every second update, along it in the others: momentum leads across the constraint there.
        for name, parameter in trainable.items():
            parameter.grad = (1.0 if update % 2 else -3.0) * memory[name]
        rates.append(updater.constraints.move(updater.optimizer, 1e-2)[f"locality/{kind}_projected_rate"])
        steps = {name: parameter.detach() - before[name] for name, parameter in trainable.items()}
        rise = sum((steps[name] * memory[name]).sum().item() for name in trainable)
        most = sum((steps[name] * memory[name]).abs().sum().item() for name in trainable)
        assert rise <= 1e-5 * most
        assert max(step.abs().max().item() for step in steps.values()) > 1e-4  # it does move
    assert rates == [1] * 6


@pytest.mark.parametrize("kind", ["gem", "a_gem"])
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
def test_every_gradient_step_of_an_adapter_too_is_bent_before_the_average_follows(toy_policy, kind, adapter):
    kept = (LOCALITIES[kind](num_prompts=4, max_new_tokens=4), LOCALITIES["ema"](decay=0.5))
    setup = make_setup(
        toy_policy, make_source("dataset"), SIGNALS["imitate"](), localities=kept, lr=1e-2, num_epochs=3,
        adapter=adapter,
    )  # fmt: skip
    updater, trainable, projected = Updater(setup), setup.trainable, []
    move = updater.constraints.move

    def watched(optimizer, lr):
        memory = memory_gradient(setup, updater.constraints.held[kind].memories[0])
        before = {name: p.detach().clone() for name, p in trainable.items()}
        average = {name: value.clone() for name, value in updater.constraints.held["ema"].tensors.items()}
        for name, parameter in trainable.items():  # against the memory
            parameter.grad = -memory[name]
        projected.append(move(optimizer, lr)[f"locality/{kind}_projected_rate"])
        rise = sum(((p.detach() - before[name]) * memory[name]).sum().item() for name, p in trainable.items())
        size = sum(((p.detach() - before[name]) * memory[name]).abs().sum().item() for name, p in trainable.items())
        assert rise <= 1e-5 * size
        for name, parameter in trainable.items():
            torch.testing.assert_close(
                updater.constraints.held["ema"].tensors[name], (average[name] + parameter.detach()) / 2
            )
        return {}

    updater.constraints.move = watched
    updater.apply(supervised_terms(setup), 0)
    assert projected == [1, 1, 1]


@pytest.mark.parametrize("kind", ["gem", "a_gem"])
def test_under_plain_gradient_descent_the_projected_step_is_the_published_one(toy_policy, kind):
    updater, memory_gradient = gem_updater(toy_policy, kind)
    trainable, memory = updater._setup.trainable, memory_gradient()
    before = {name: p.detach().clone() for name, p in trainable.items()}
    draw = torch.Generator().manual_seed(0)
    gradient = {name: torch.randn(p.shape, generator=draw) - 2 * memory[name] for name, p in trainable.items()}
    for name, parameter in trainable.items():
        parameter.grad = gradient[name].clone()
    updater.constraints.move(torch.optim.SGD([*trainable.values()], lr=0.5), 0.5)
    flat = project_agem(*(torch.cat([part[name].flatten() for name in trainable]) for part in (gradient, memory)))
    for (name, parameter), part in zip(
        trainable.items(), flat.split([p.numel() for p in trainable.values()]), strict=True
    ):
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.5 * part.view_as(parameter), atol=1e-5, rtol=1e-5
        )


def test_ewc_pulls_back_to_where_the_arm_started(toy_policy):
    ewc = LOCALITIES["ewc"](strength=1e4, num_prompts=4, max_new_tokens=4)
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), localities=(ewc,))
    updater = Updater(setup)
    assert updater.constraints.on_gradient() == {"locality/ewc_penalty_nats": 0.0}  # nothing has moved yet
    with torch.no_grad():
        for parameter in setup.trainable.values():
            parameter += 0.01
            parameter.grad = None
    penalty = updater.constraints.on_gradient()["locality/ewc_penalty_nats"]
    fisher = updater.constraints.held["ewc"].fisher
    assert penalty == pytest.approx(0.5 * 1e4 * 1e-4 * sum(value.sum().item() for value in fisher.values()), rel=1e-3)
    assert all((parameter.grad >= 0).all() for parameter in setup.trainable.values())


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_schedule_follows_what_was_used_before_the_update_and_not_by_its_rollouts(toy_policy, tmp_path):
    options = {"num_updates": 8, "schedule": "linear", "lr": 1e-3}
    arms = [make_setup(toy_policy, make_source(max_new_tokens=40), SIGNALS["imitate"](), **options)]
    train(arms[0], tmp_path / "free", Observer())
    used = [line["loop/flops_forward"] + line["loop/flops_backward"] for line in lines_of(tmp_path / "free")]
    # The third update's own rollouts would take the share above 1, and a linear rate below 0.
    budget = {"unit": "flops", "amount": 1.02 * used[1]}
    train(make_setup(toy_policy, make_source(max_new_tokens=40), SIGNALS["imitate"](), budget=budget, **options),
          tmp_path / "bound", Observer())  # fmt: skip
    rates = [line["loop/lr"] for line in lines_of(tmp_path / "bound")]
    assert len(rates) == 3 and min(rates) > 0
    own = [line["loop/flops_forward"] + line["loop/flops_backward"] for line in lines_of(tmp_path / "bound")]
    assert rates == pytest.approx([1e-3 * (1 - share / budget["amount"]) for share in (0, *own[:2])])


def test_the_kl_to_base_that_is_measured_is_a_mean_over_states_whatever_the_reduction(toy_policy):
    kl = LOCALITIES["kl_to_base"](coefficient=0.5, target=1.0)
    measured = []
    for reduction in ("states", "trajectories", "constant"):
        setup = make_setup(
            toy_policy, make_source("dataset"), SIGNALS["imitate"](), localities=(kl,), reduction=reduction,
            constant_tokens=1,
        )  # fmt: skip
        measured.append(Updater(setup).apply(supervised_terms(setup), 0).constraints["locality/kl_to_base_nats"])
    assert measured == pytest.approx([measured[0]] * 3, rel=1e-5)


def test_an_update_without_states_leaves_the_coefficient_of_kl_to_base(toy_policy):
    kl = LOCALITIES["kl_to_base"](coefficient=0.5, target=1.0)
    setup = make_setup(toy_policy, make_source(), SIGNALS["imitate"](only_correct=True), localities=(kl,))
    updater, terms = Updater(setup), supervised_terms(setup)
    assert terms[0].states.num_states == 0  # no random text is right
    assert updater.apply(terms, 0).constraints == {"locality/kl_coefficient": 0.5}
    assert updater.constraints.held["kl_to_base"].numbers == {"coefficient": 0.5}


def test_masking_the_end_of_text_keeps_terms_in_one_forward_pass(toy_policy):
    signals = (
        WeightedSignal(signal=SIGNALS["reward"](advantage="reinforce")),
        WeightedSignal(signal=SIGNALS["reverse_kl"](), weight=0.1),
    )
    counts = []
    for trains in (True, False):
        setup = make_setup(toy_policy, make_source("dataset"), signals, trains_end_of_text=trains)
        Updater(setup).apply(supervised_terms(setup), 0)
        counts.append(setup.writers.account.flops_backward)
    assert counts[0] == counts[1]


def test_a_preference_is_kept_or_left_as_a_whole_where_ends_are_masked(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["preference"](), trains_end_of_text=False)
    states = setup.recipe.source.sample(setup.context, 0)
    # One answer that is nothing but its end: the loss of its pair compares nothing any more.
    states.action_mask[0] = False
    states.action_mask[0, states.prompt_lengths[0]] = True
    states.token_ids[0, states.prompt_lengths[0]] = toy_policy.end_token_id
    rewards = np.array([1.0, 0.0, 1.0, 0.0], dtype=np.float32)
    fixed = replace(states, rewards=rewards, group_ids=np.array([0, 0, 1, 1]))
    (term,) = supervise(setup, fixed, 0)
    assert term.states.action_mask.any(axis=1).tolist() == [False, False, True, True]
    assert np.isfinite(Updater(setup).apply([term], 0).loss)


@pytest.mark.parametrize("signal", ["imitate", "expert", "reward", "continuation"])
@pytest.mark.parametrize(
    ("source", "told"),
    [("dataset", "update 1: loss nan"), ("rollout", "learner: its next-token law is not a number")],
)
def test_an_arm_whose_weights_are_lost_is_diverged_whatever_looks_at_them(toy_policy, tmp_path, source, told, signal):
    options = {"advantage": "reinforce"} if signal == "reward" else {}
    setup = make_setup(toy_policy, make_source(source), SIGNALS[signal](**options), lr=1e20)
    with pytest.raises(DivergedError, match=told):
        train(setup, tmp_path, Observer())


def test_a_step_that_overflows_is_diverged_before_anything_is_made_of_the_weights(toy_policy):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), lr=1e-3)
    updater, terms = Updater(setup), supervised_terms(setup)
    move = updater.constraints.move

    def overflow(optimizer, lr):
        changes = move(optimizer, lr)
        with torch.no_grad():
            next(iter(setup.trainable.values())).view(-1)[0] = float("inf")
        return changes

    updater.constraints.move = overflow
    with pytest.raises(DivergedError, match=r"update 0: a weight is not finite after a step at learning rate 0\.001"):
        updater.apply(terms, 0)


def test_memories_and_old_laws_are_halved_too_where_memory_runs_out(toy_policy, monkeypatch):
    whole = oom.TokenLimit.within
    most = []

    def two_rows_at_most(self, batch, split, run, **how):
        def run_small(batches):
            most.append(max(len(rows) for part in batches for rows in part))
            if most[-1] > 2:
                raise torch.OutOfMemoryError("small")
            return run(batches)

        return whole(self, batch, split, run_small, **how)

    monkeypatch.setattr(oom.TokenLimit, "within", two_rows_at_most)
    gem = LOCALITIES["gem"](num_prompts=4, max_new_tokens=4)
    setup = make_setup(toy_policy, make_source(), SIGNALS["reward"](), localities=(gem,), num_epochs=2)
    Updater(setup).apply(supervised_terms(setup), 0)
    assert most[0] > 2 and most[-1] <= 2
    assert setup.limit.max_tokens < setup.recipe.update.max_tokens


def test_the_memories_gradient_recomputes_activations_where_an_update_does(toy_policy):
    gradients, calls = [], []
    for is_recomputed in (False, True):
        gem = LOCALITIES["gem"](num_prompts=4, max_new_tokens=4)
        setup = make_setup(
            toy_policy, make_source("dataset"), SIGNALS["imitate"](), localities=(gem,),
            activation_checkpointing=is_recomputed,
        )  # fmt: skip
        states = Updater(setup).constraints.held["gem"].memories[0]
        layer, count = setup.learner.model.model.layers[0], []
        layer.mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        gradients.append(memory_gradient(setup, states))
        calls.append(len(count))
    assert calls == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


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
    # Forward 2 N, backward 4 N a token; with an adapter of n weights 2 (N + n) forward and 2 N + 4 n backward, also
    # where the adapter is larger than the model (rank 64 of a model of width 32).
    for adapter in (None, Lora(rank=2), Lora(rank=64)):
        setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), adapter=adapter)
        terms = supervised_terms(setup)
        Updater(setup).apply(terms, 0)
        tokens, size = int(terms[0].states.lengths.sum()), sum(p.numel() for p in toy_policy.model.parameters())
        trained = sum(p.numel() for p in setup.trainable.values())
        account = setup.writers.account
        assert account.flops_forward == 2 * (size if adapter is None else size + trained) * tokens
        assert account.flops_backward == (4 * size if adapter is None else 2 * size + 4 * trained) * tokens


def test_the_end_of_a_text_may_be_left_out_of_the_loss(toy_policy):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), trains_end_of_text=False)
    whole = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"]())
    one, other = (supervised_terms(one)[0].states for one in (setup, whole))
    assert (one.action_mask.sum(1) == other.action_mask.sum(1) - 1).all()
    assert not (one.action_mask & (one.token_ids == toy_policy.end_token_id)).any()
