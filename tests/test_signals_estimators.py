"""Sampled estimators and top-k laws, by enumeration of the vocabulary: expectations are exact, nothing is sampled."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statewise.batch import Trajectory, collate
from statewise.loop.train import supervise
from statewise.signals import SIGNALS, WeightedSignal
from statewise.signals.divergence import JSD, ForwardKL, ReverseKL
from statewise.signals.estimators import (
    cut_to_top,
    forward_kl_estimate,
    jsd_estimate,
    reverse_kl_estimate,
)
from statewise.signals.signal import Supervision
from statewise.types import Rollout, SignalInputs

BETA = 0.3


def two_laws(vocab=7, seed=0):
    """Logits of a policy, with gradient, and log-probabilities of a teacher, float64 [vocab]."""
    generator = torch.Generator().manual_seed(seed)
    policy, teacher = (torch.randn(vocab, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy.requires_grad_(), teacher.log_softmax(-1)


def exact(signal, policy_logits, teacher):
    return signal.loss(SignalInputs(policy_logits=policy_logits[None], teacher_logits=teacher[None])).sum()


def expected(estimate, kind, policy_logits, teacher, draws_from):
    """Value and gradient of E_{a ~ draws_from}[estimate(a)], the law of a held fixed as a sample's is."""
    logprobs = policy_logits.log_softmax(-1)
    values = estimate(kind, logprobs, teacher)
    total = (draws_from.detach() * values).sum()
    return total.item(), torch.autograd.grad(total, policy_logits)[0]


def jsd_of(kind, policy, teacher):
    return jsd_estimate(kind, policy, teacher, BETA)


@pytest.mark.parametrize(
    ("signal", "estimate", "kind", "drawn_by"),
    [
        (ReverseKL(), reverse_kl_estimate, "k1", "policy"),
        (ReverseKL(), reverse_kl_estimate, "k3", "policy"),
        (ForwardKL(), forward_kl_estimate, "k1", "teacher"),
        (ForwardKL(), forward_kl_estimate, "k3", "teacher"),
        (JSD(beta=BETA), jsd_of, "k1", "policy"),
        (JSD(beta=BETA), jsd_of, "k3", "policy"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_an_unbiased_estimator_has_value_and_gradient_of_the_divergence(signal, estimate, kind, drawn_by, seed):
    policy, teacher = two_laws(seed=seed)
    law = policy.softmax(-1) if drawn_by == "policy" else teacher.exp()
    value, gradient = expected(estimate, kind, policy, teacher, law)
    whole = exact(signal, policy, teacher)
    assert value == pytest.approx(whole.item(), abs=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, policy)[0], atol=1e-12, rtol=1e-9)


def test_k2_has_the_gradient_of_reverse_kl_but_not_its_value():
    policy, teacher = two_laws()
    value, gradient = expected(reverse_kl_estimate, "k2", policy, teacher, policy.softmax(-1))
    whole = exact(ReverseKL(), policy, teacher)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, policy)[0], atol=1e-12, rtol=1e-9)
    assert abs(value - whole.item()) > 0.01


def test_the_bias_of_k2_equals_the_value_by_hand():
    # p = (1/2, 1/2), q = (9/10, 1/10): x = ln 1.8 = .58779, ln .2 = -1.60944.
    # k2: (.58779² + 1.60944²) / 4 = (.34549 + 2.59029) / 4 = .73395; KL(p ‖ q) = .51083. Bias .22312.
    policy, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    k1, k2, k3 = ((0.5 * reverse_kl_estimate(kind, policy, teacher)).sum().item() for kind in ("k1", "k2", "k3"))
    assert (k1, k2, k3) == pytest.approx((0.51083, 0.73395, 0.51083), abs=1e-5)


def test_k1_without_the_policy_gradient_term_would_teach_nothing():
    # The trap: the plain gradient of log p(a) - log q(a) is ∇ log p(a), whose expectation is 0.
    policy, teacher = two_laws()
    logprobs = policy.log_softmax(-1)
    plain = (logprobs.exp().detach() * (logprobs - teacher)).sum()
    assert torch.autograd.grad(plain, policy)[0].abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("estimate", [reverse_kl_estimate, forward_kl_estimate, jsd_of])
def test_a_teacher_equal_to_the_policy_gives_loss_and_expected_gradient_zero(estimate, kind):
    policy, _ = two_laws()
    teacher = policy.detach().log_softmax(-1)
    value, gradient = expected(estimate, kind, policy, teacher, teacher.exp())
    assert abs(value) < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("estimator", ["exact", "top_k"])
@pytest.mark.parametrize("kind", [ForwardKL, ReverseKL, JSD])
def test_a_law_compared_with_itself_gives_zero(kind, estimator):
    policy, _ = two_laws()
    loss = exact(kind(estimator=estimator, top_k=3), policy, policy.detach().log_softmax(-1))
    assert abs(loss.item()) < 1e-12
    assert torch.autograd.grad(loss, policy)[0].abs().max() < 1e-12


def test_the_tail_bucket_holds_all_that_is_left():
    # Teacher (.6, .3, .1), k = 1: token 0 and a bucket of .4; policy (.2, .5, .3): .2 and .8.
    policy, teacher = torch.tensor([[0.2, 0.5, 0.3]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
    cut_policy, cut_teacher = cut_to_top(policy, teacher, 1)
    assert cut_policy.exp().tolist()[0] == pytest.approx([0.2, 0.8])
    assert cut_teacher.exp().tolist()[0] == pytest.approx([0.6, 0.4])
    # KL(policy ‖ teacher) of them: .2 ln(1/3) + .8 ln 2 = -.21972 + .55452 = .33480.
    loss = ReverseKL(estimator="top_k", top_k=1).loss(SignalInputs(policy_logits=policy, teacher_logits=teacher))
    assert loss.item() == pytest.approx(0.33480, abs=1e-5)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
@pytest.mark.parametrize("kind", [ForwardKL, ReverseKL, JSD])
def test_fewer_outcomes_never_raise_a_divergence(kind, seed, k):
    policy, teacher = two_laws(vocab=9, seed=seed)
    whole = exact(kind(), policy, teacher).item()
    cut = exact(kind(estimator="top_k", top_k=k), policy, teacher).item()
    assert -1e-12 <= cut <= whole + 1e-12
    if k >= 9:
        assert cut == pytest.approx(whole, abs=1e-12)


def test_without_the_bucket_mass_outside_would_be_free():
    # A policy with all its mass outside the teacher's top token pays for it in the bucket: .01 ln .. + .99 ln(.99/.01).
    teacher = torch.tensor([[0.99, 0.01]]).log()
    policy = torch.tensor([[0.01, 0.99]]).log()
    loss = ReverseKL(estimator="top_k", top_k=1).loss(SignalInputs(policy_logits=policy, teacher_logits=teacher))
    assert loss.item() == pytest.approx(0.98 * math.log(99), abs=1e-4)


END = 3  # of a vocabulary of five


def one_action(signal, action, drawn, writer, *, temperature=1.0, **update):
    """What the loop makes of a state of one action, where whoever is asked acts `drawn`."""
    prompt, states = (0,), collate([Trajectory((0, action), 1, 0, "rollout", writer, (-1.0,))], temperature)
    states.writer_updates[:] = 0 if writer == "learner" else -1

    def supervision(step, place):
        return Supervision(
            write=lambda request: [Rollout(prompt, (drawn,), (-1.0,), True)],
            act=lambda request: np.array([[0, drawn]]),
            grade=lambda indices, rows: [math.nan] * len(rows),
            key=0,
            trains_end_of_text=setup.recipe.update.trains_end_of_text,
        )

    settings = SimpleNamespace(**{"trains_end_of_text": True, **update})
    recipe = SimpleNamespace(signals=(WeightedSignal(signal=signal),), update=settings)
    setup = SimpleNamespace(recipe=recipe, supervision=supervision, learner=SimpleNamespace(end_token_ids=(END,)))
    return supervise(setup, states, 0)[0].states


def loss_of(signal, states, policy_logits, teacher_logits):
    """The loss of the one state, at the temperature of its states as the loop takes it; 0 outside the mask."""
    label = int(states.labels[0, -1])
    policy, teacher = ((logits / states.temperature).log_softmax(-1) for logits in (policy_logits, teacher_logits))
    inputs = SignalInputs(policy_logprobs=policy[label][None], teacher_logprobs=teacher[label][None])
    return states.num_states * signal.loss(inputs).sum()


@pytest.mark.parametrize("writer", ["learner", "teacher", "data"])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize(("kind", "drawn_by"), [(ReverseKL, "policy"), (ForwardKL, "teacher"), (JSD, "policy")])
def test_ends_left_out_of_the_loss_leave_an_estimator_unbiased(kind, drawn_by, estimator, writer):
    # The trajectory ends where it ends; a state that it goes on from has the whole law's divergence, its end included.
    policy, teacher = two_laws(vocab=5)
    signal, law = kind(estimator=estimator), {"policy": policy.detach().softmax(-1), "teacher": teacher.exp()}
    law |= {"learner": law["policy"], "data": torch.full((5,), 0.2, dtype=torch.float64)}
    total = torch.zeros((), dtype=torch.float64)
    for action in range(5):
        for label in range(5):
            states = one_action(signal, action, label, writer, trains_end_of_text=False)
            total = total + law[writer][action] * law[drawn_by][label] * loss_of(signal, states, policy, teacher)
    whole = (1 - law[writer][END]) * exact(kind(), policy, teacher)
    assert total.item() == pytest.approx(whole.item(), abs=1e-12)
    ours, theirs = (torch.autograd.grad(value, policy)[0] for value in (total, whole))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["continuation", "expert"])
def test_a_teacher_that_acts_at_a_temperature_is_learned_at_it(kind, temperature):
    # E over a ~ q_T of ∇ -log p_T(a) = ∇ KL(q_T ‖ p_T): the policy becomes the teacher, not the teacher cooled twice.
    policy, teacher = two_laws(vocab=5)
    signal, cooled = SIGNALS[kind](temperature=temperature), (teacher / temperature).softmax(-1)
    at = 0.7 if kind == "continuation" else temperature  # of the source; of `expert` it is the same, or refused
    total = sum(
        cooled[label] * loss_of(signal, one_action(signal, 1, label, "learner", temperature=at), policy, teacher)
        for label in range(5)
    )
    whole = exact(ForwardKL(), policy / temperature, teacher / temperature)
    entropy = -(cooled * cooled.log()).sum().item()  # what a cross-entropy has more than its divergence
    assert total.item() == pytest.approx(whole.item() + entropy, abs=1e-12)
    ours, theirs = (torch.autograd.grad(value, policy)[0] for value in (total, whole))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
