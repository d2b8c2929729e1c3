import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_arm import gold_states, make_setup, make_source, supervised_states, supervised_terms, terms_of

from statewise.errors import DivergedError, OutOfMemoryError
from statewise.locality.adapter import Lora
from statewise.loop import update
from statewise.loop.constrain import memory_gradient
from statewise.loop.score import score_terms
from statewise.loop.update import Updater, contributing_rows
from statewise.policy.load import copy_policy
from statewise.signals import SIGNALS

BETAS = (0.9, 0.99)
ADAM_EPS = 1e-8  # torch's default


def weights_of(setup):
    return {name: parameter.detach().clone() for name, parameter in setup.trainable.items()}


def plain_logprobs(model, states):
    """log π of every token but the first of each row, each row by itself: list of [length - 1]."""
    rows = [torch.from_numpy(states.token_ids[row, :length]) for row, length in enumerate(states.lengths.tolist())]
    laws = [model(ids[None]).logits[0, :-1, :257].log_softmax(-1) for ids in rows]
    return [law.gather(-1, ids[1:, None]).squeeze(-1) for law, ids in zip(laws, rows, strict=True)]


def adamw_by_hand(model, losses, *, lr, weight_decay, clip_norm):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) on the given losses, one update each; matrices alone decay."""
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    norms = []
    for count, loss in enumerate(losses, start=1):
        model.zero_grad()
        loss(model).backward()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
        norms.append(norm)
        with torch.no_grad():
            for name, p in model.named_parameters():
                gradient = p.grad * min(1.0, clip_norm / norm)
                first, second = moments[name]
                first.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)
                second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient**2)
                p.mul_(1 - lr * weight_decay * (p.ndim > 1))
                scale = (second / (1 - BETAS[1] ** count)).sqrt() + ADAM_EPS
                p.sub_(lr * first / (1 - BETAS[0] ** count) / scale)
    return norms


def assert_equal_updates(setup, model, before):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(setup.trainable[name].detach(), parameter.detach(), atol=1e-5, rtol=0)
    moves = [(setup.trainable[name].detach() - old).abs().max().item() for name, old in before.items()]
    assert max(moves) > 5e-5  # the update is larger than the tolerance


def test_two_sft_updates_equal_plain_torch(toy_policy):
    options = {"lr": 1e-4, "weight_decay": 0.1, "clip_norm": 0.5}
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), betas=BETAS, **options)
    batches = [supervised_states(setup, step) for step in range(2)]
    before = weights_of(setup)
    updater = Updater(setup)
    results = [updater.apply(terms_of(setup, states), step) for step, states in enumerate(batches)]

    def sft_loss(states):
        labels = torch.from_numpy(states.token_ids).where(torch.from_numpy(states.action_mask), -100)
        attention = torch.arange(labels.shape[1]) < torch.from_numpy(states.lengths)[:, None]

        def of(model):
            logits = model(torch.from_numpy(states.token_ids), attention_mask=attention.long()).logits[..., :257]
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

        return of

    model = copy_policy(toy_policy, "plain").model
    assert results[0].loss == pytest.approx(sft_loss(batches[0])(model).item(), abs=1e-5)
    norms = adamw_by_hand(model, [sft_loss(states) for states in batches], **options)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-4)
    assert min(norms) > options["clip_norm"]  # so that the clip is part of what is compared
    assert_equal_updates(setup, model, before)


@pytest.mark.parametrize("reduction", ["states", "trajectories"])
def test_one_group_relative_update_equals_plain_torch(toy_policy, reduction):
    options = {"lr": 1e-4, "weight_decay": 0.0, "clip_norm": 1.0}
    source = make_source(num_prompts=2, samples_per_prompt=3)
    setup = make_setup(toy_policy, source, SIGNALS["reward"](), betas=BETAS, reduction=reduction, **options)
    states = supervised_states(setup)
    before = weights_of(setup)
    Updater(setup).apply(terms_of(setup, states), 0)

    rewards = states.rewards.reshape(2, 3)
    centred = rewards - rewards.mean(1, keepdims=True)
    advantages = (centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()

    def policy_gradient(model):
        sums, counts = [], []
        for row, logprobs in enumerate(plain_logprobs(model, states)):
            taken = logprobs[int(states.prompt_lengths[row]) - 1 :]
            sums.append(-float(advantages[row]) * taken.sum())
            counts.append(len(taken))
        if reduction == "states":
            return torch.stack(sums).sum() / sum(counts)
        return sum(total / count for total, count in zip(sums, counts, strict=True)) / len(sums)

    model = copy_policy(toy_policy, "plain").model
    adamw_by_hand(model, [policy_gradient], **options)
    assert_equal_updates(setup, model, before)


@pytest.mark.parametrize("signal", ["imitate", "reverse_kl", "reward"])
@pytest.mark.parametrize("reduction", ["states", "trajectories"])
def test_micro_batches_change_an_update_by_rounding_only(toy_policy, signal, reduction):
    results, gradients = [], []
    for max_tokens in (1, 30, 8192):
        setup = make_setup(
            toy_policy, make_source(num_prompts=4), SIGNALS[signal](), max_tokens=max_tokens, reduction=reduction
        )
        states = supervised_states(setup)
        results.append(Updater(setup).apply(terms_of(setup, states), 0))
        gradients.append({name: parameter.grad for name, parameter in setup.trainable.items()})
    assert results[0].num_micro_batches == len(contributing_rows(terms_of(setup, states)))  # a row each
    assert results[0].num_micro_batches > results[1].num_micro_batches > results[2].num_micro_batches >= 1
    assert results[0].padding_share == 0
    for result, gradient in zip(results, gradients, strict=True):
        assert result.loss == pytest.approx(results[0].loss, abs=1e-5)
        assert result.grad_norm == pytest.approx(results[0].grad_norm, rel=1e-4)
        for name, value in gradient.items():
            torch.testing.assert_close(value, gradients[0][name], atol=1e-5, rtol=1e-4)


def test_rows_that_cannot_move_the_policy_are_those_of_advantage_zero(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["reward"]())
    states = supervised_states(setup)
    states.advantages[:] = [0.0, 0.5, -0.0, -0.5]
    assert contributing_rows(terms_of(setup, states)).tolist() == [1, 3]
    states.advantages[:] = 0.0
    assert contributing_rows(terms_of(setup, states)).tolist() == [0]
    setup = make_setup(toy_policy, make_source(), SIGNALS["imitate"]())  # a signal that does not look at them
    assert contributing_rows(terms_of(setup, states)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("reduction", ["states", "trajectories"])
def test_leaving_out_rows_of_advantage_zero_does_not_change_an_update(toy_policy, monkeypatch, reduction):
    results, gradients = [], []
    for rows_of in (contributing_rows, lambda terms: np.arange(len(terms[0].states.lengths))):
        monkeypatch.setattr(update, "contributing_rows", rows_of)
        setup = make_setup(toy_policy, make_source(num_prompts=4), SIGNALS["reward"](), reduction=reduction)
        states = supervised_states(setup)
        states.advantages[:4] = 0.0
        results.append(Updater(setup).apply(terms_of(setup, states), 0))
        gradients.append({name: parameter.grad for name, parameter in setup.trainable.items()})
    assert results[0].loss == pytest.approx(results[1].loss, abs=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-4)
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-6, rtol=1e-4)


def test_an_update_of_which_no_row_counts_still_is_one(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["reward"]())
    before = weights_of(setup)
    states = supervised_states(setup)
    states.advantages[:] = 0.0
    result = Updater(setup).apply(terms_of(setup, states), 0)
    assert (result.loss, result.grad_norm) == (0.0, 0.0)
    assert all(torch.equal(setup.trainable[name], old) for name, old in before.items())


def test_a_gradient_longer_than_the_clip_is_cut_to_it_and_a_shorter_one_is_left(toy_policy):
    norms = {}
    for clip_norm in (1e-3, 1e6):
        setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), clip_norm=clip_norm)
        result = Updater(setup).apply(supervised_terms(setup), 0)
        after = math.sqrt(sum(p.grad.square().sum().item() for p in setup.trainable.values()))
        norms[clip_norm] = (result.grad_norm, after)
    assert norms[1e-3][0] == norms[1e6][0]  # reported before clipping
    assert norms[1e-3][1] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1e6][1] == pytest.approx(norms[1e6][0], rel=1e-5)


def test_the_learning_rate_follows_the_schedule(toy_policy):
    options = {"lr": 8e-4, "num_updates": 6, "warmup_updates": 2, "schedule": "linear"}
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), adapter=Lora(rank=2), **options)
    updater = Updater(setup)
    rates = [updater.apply(supervised_terms(setup, step), step).lr for step in range(6)]
    assert rates == pytest.approx([4e-4, 8e-4, 8e-4, 6e-4, 4e-4, 2e-4])
    assert updater.optimizer.param_groups[0]["lr"] == rates[-1]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_weights_as_before(toy_policy, monkeypatch, broken):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"]())
    updater = Updater(setup)
    updater.apply(supervised_terms(setup), 0)
    before = weights_of(setup)
    monkeypatch.setattr(SIGNALS["imitate"], "loss", lambda self, inputs: inputs.policy_logprobs * broken)
    with pytest.raises(DivergedError, match="update 1: loss "):
        updater.apply(supervised_terms(setup), 1)
    assert all(torch.equal(setup.trainable[name], old) for name, old in before.items())


def test_a_gradient_that_is_not_finite_stops_the_arm_though_its_loss_is(toy_policy, monkeypatch):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"]())
    before = weights_of(setup)
    # sqrt(0) is finite, its derivative is not.
    monkeypatch.setattr(SIGNALS["imitate"], "loss", lambda self, inputs: (inputs.policy_logprobs * 0).sqrt())
    with pytest.raises(DivergedError, match=r"update 0: loss 0\.0, gradient norm (nan|inf)"):
        Updater(setup).apply(supervised_terms(setup), 0)
    assert all(torch.equal(setup.trainable[name], old) for name, old in before.items())


def test_a_whole_law_is_compared_in_chunks_without_changing_the_update(toy_policy, monkeypatch):
    losses, gradients = [], []
    for chunk_logits in (3 * 257, 2**24):
        monkeypatch.setattr("statewise.policy.score.CHUNK_LOGITS", chunk_logits)
        setup = make_setup(toy_policy, make_source(), SIGNALS["jsd"]())
        losses.append(Updater(setup).apply(supervised_terms(setup), 0).loss)
        gradients.append(np.concatenate([p.grad.numpy().ravel() for p in setup.trainable.values()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_a_teacher_equal_to_the_learner_moves_nothing(toy_policy):
    setup = make_setup(toy_policy, make_source(), SIGNALS["reverse_kl"]())
    with torch.no_grad():
        for ours, theirs in zip(
            setup.learner.model.parameters(), setup.writers.policies["teacher"].model.parameters(), strict=True
        ):
            ours.copy_(theirs)
    result = Updater(setup).apply(supervised_terms(setup), 0)
    assert abs(result.loss) < 1e-6
    assert result.grad_norm < 1e-5


def without_states(setup, step):
    """The terms of an update in which a signal has left nothing to learn from."""
    return [replace(term, states=nothing_of(term.states)) for term in supervised_terms(setup, step)]


def nothing_of(states):
    return replace(states, action_mask=np.zeros_like(states.action_mask))


def test_an_update_without_states_steps_every_weight_as_adamw_does_with_gradient_zero(toy_policy):
    settings = {"weight_decay": 0.1, "lr": 1e-2, "betas": BETAS}
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"](), **settings)
    assert "lm_head.weight" in setup.trainable  # untied: no loss, no path to it
    updater = Updater(setup)
    theirs = {name: torch.nn.Parameter(p.detach().clone()) for name, p in setup.trainable.items()}
    oracle = torch.optim.AdamW(update.decay_groups(theirs.values(), 0.1), lr=1e-2, betas=BETAS)
    for step, of in enumerate((supervised_terms, without_states, supervised_terms, without_states)):
        updater.apply(of(setup, step), step)
        for name, parameter in theirs.items():
            ours = setup.trainable[name].grad
            parameter.grad = torch.zeros_like(parameter) if of is without_states else ours.clone()
        oracle.step()
        for name, parameter in theirs.items():
            torch.testing.assert_close(setup.trainable[name], parameter, atol=0, rtol=0, msg=f"{name} in update {step}")


def test_a_first_update_without_states_gives_every_weight_its_moments(toy_policy):
    # Checkpoints hold what there is: a weight without moments would be a step behind all others from then on.
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"]())
    updater = Updater(setup)
    updater.apply(without_states(setup, 0), 0)
    assert {int(updater.optimizer.state[p]["step"]) for p in setup.trainable.values()} == {1}


def test_a_weight_that_no_loss_reaches_has_gradient_zero(toy_policy):
    # As that of an expert to which no token was routed.
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["imitate"]())
    setup.trainable["idle"] = torch.nn.Parameter(torch.ones(2, 2))
    updater = Updater(setup)
    updater.apply(supervised_terms(setup), 0)
    assert setup.trainable["idle"].grad.tolist() == [[0, 0], [0, 0]]
    assert int(updater.optimizer.state[setup.trainable["idle"]]["step"]) == 1
    remembered = memory_gradient(setup, gold_states(setup))
    assert remembered["idle"].tolist() == [[0, 0], [0, 0]]


def gradients_of(setup):
    return {name: parameter.grad.clone() for name, parameter in setup.trainable.items()}


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_update(toy_policy, monkeypatch):
    arm = make_setup(toy_policy, make_source(num_prompts=4), SIGNALS["imitate"]())
    states = supervised_states(arm)
    expected = Updater(arm).apply(terms_of(arm, states), 0)
    assert expected.num_micro_batches == 1

    def small_device(setup, micro):
        if micro[0].states.token_ids.size > states.token_ids.size / 3:
            raise torch.OutOfMemoryError("no memory")
        return score_terms(setup, micro)

    monkeypatch.setattr(update, "score_terms", small_device)
    small = make_setup(toy_policy, make_source(num_prompts=4), SIGNALS["imitate"]())
    updater = Updater(small)
    result = updater.apply(terms_of(small, states), 0)
    assert result.num_micro_batches > 2
    assert result.loss == pytest.approx(expected.loss, abs=1e-5)
    for name, gradient in gradients_of(small).items():
        torch.testing.assert_close(gradient, arm.trainable[name].grad, atol=1e-5, rtol=1e-4)
    calls = []
    monkeypatch.setattr(update, "score_terms", lambda *a: calls.append(1) or small_device(*a))
    updater.apply(terms_of(small, states), 1)
    assert len(calls) == result.num_micro_batches  # what was learned about the device is kept


def test_a_trajectory_that_does_not_fit_by_itself_says_what_to_do(toy_policy, monkeypatch):
    def no_device(setup, micro):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(update, "score_terms", no_device)
    setup = make_setup(toy_policy, make_source(), SIGNALS["imitate"]())
    with pytest.raises(OutOfMemoryError, match="activation_checkpointing"):
        Updater(setup).apply(supervised_terms(setup), 0)


@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
def test_recomputed_activations_give_the_same_gradient(toy_policy, adapter):
    gradients, modes = [], []
    for is_recomputed in (False, True):
        setup = make_setup(
            toy_policy, make_source(), SIGNALS["reverse_kl"](), adapter=adapter, activation_checkpointing=is_recomputed
        )
        layer, calls = setup.learner.model.model.layers[0], []
        layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        states = supervised_states(setup)
        calls.clear()
        result = Updater(setup).apply(terms_of(setup, states), 0)
        gradients.append(gradients_of(setup))
        modes.append((len(calls) / result.num_micro_batches, layer.training, layer.mlp.training))
    assert modes == [(1, False, False), (2, False, False)]  # the layer is computed twice, and never left in training
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def test_the_sampler_and_the_loop_agree_on_what_the_learner_wrote(toy_policy):
    setup = make_setup(toy_policy, make_source(temperature=0.7), SIGNALS["reward"]())
    states = supervised_states(setup)
    assert 0 <= Updater(setup).apply(terms_of(setup, states), 0).sampler_mismatch < 1e-4
    # After a large update the same rollouts are those of another policy.
    setup = make_setup(toy_policy, make_source(temperature=0.7), SIGNALS["reward"](), lr=0.1)
    updater = Updater(setup)
    states = supervised_states(setup)
    updater.apply(terms_of(setup, states), 0)
    assert updater.apply(terms_of(setup, states), 0).sampler_mismatch > 0.1


def test_a_cut_law_is_not_compared_with_the_loops(toy_policy):
    setup = make_setup(toy_policy, make_source(top_p=0.9), SIGNALS["reward"]())
    assert Updater(setup).apply(supervised_terms(setup), 0).sampler_mismatch is None


@pytest.mark.parametrize("states", ["dataset", "teacher", "base"])
def test_states_that_the_learner_did_not_write_have_no_mismatch(toy_policy, states):
    source = make_source("dataset") if states == "dataset" else make_source(by=states)
    setup = make_setup(toy_policy, source, SIGNALS["imitate"]())
    assert Updater(setup).apply(supervised_terms(setup), 0).sampler_mismatch is None
