import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.config.refusals import read_kind
from statewise.errors import UsageError
from statewise.signals import JSD, ForwardKL, ReverseKL, Signal
from statewise.types import SignalInputs

ALL = [ForwardKL(), ReverseKL(), JSD(beta=0.5), JSD(beta=0.1)]
LAWS = st.lists(st.floats(-12, 12, width=32), min_size=5, max_size=5)


def laws(policy, teacher):
    """One state with the given next-token laws."""
    return SignalInputs(
        policy_logits=torch.tensor([policy]).log().requires_grad_(True), teacher_logits=torch.tensor([teacher]).log()
    )


def random_logits(num_states=7, vocab=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [4 * torch.randn(num_states, vocab, generator=generator) for _ in range(2)]


def test_reverse_kl_has_the_stated_direction():
    # p = (1/2, 1/2), q = (9/10, 1/10): 1/2 ln(5/9) + 1/2 ln 5 = 0.51083; the other direction gives 0.36806.
    inputs = laws([0.5, 0.5], [0.9, 0.1])
    assert ReverseKL().loss(inputs).item() == pytest.approx(0.51083, abs=1e-5)
    assert ForwardKL().loss(inputs).item() == pytest.approx(0.36806, abs=1e-5)


def test_jsd_equals_the_value_by_hand():
    # m = (.7, .3): 1/2 (.9 ln(9/7) + .1 ln(1/3)) + 1/2 (.5 ln(5/7) + .5 ln(5/3)) = (.11632 + .08718) / 2 = .10175.
    assert JSD(beta=0.5).loss(laws([0.5, 0.5], [0.9, 0.1])).item() == pytest.approx(0.10175, abs=1e-5)


def test_beta_is_the_teachers_share_of_the_mixture():
    # β = 1/4: m = 1/4 (.9, .1) + 3/4 (.5, .5) = (.6, .4); 1/4 (.9 ln 1.5 + .1 ln .25) + 3/4 (.5 ln(5/6) + .5 ln 1.25)
    # = 1/4 · .22629 + 3/4 · .02041 = .07188.
    assert JSD(beta=0.25).loss(laws([0.5, 0.5], [0.9, 0.1])).item() == pytest.approx(0.07188, abs=1e-5)


def test_divergences_equal_those_of_torch():
    policy, teacher = random_logits()
    inputs = SignalInputs(policy_logits=policy, teacher_logits=teacher)
    p, q = policy.log_softmax(-1), teacher.log_softmax(-1)

    def torch_kl(of, against):
        return F.kl_div(against, of, reduction="none", log_target=True).sum(-1)

    torch.testing.assert_close(ForwardKL().loss(inputs), torch_kl(q, p), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ReverseKL().loss(inputs), torch_kl(p, q), atol=1e-5, rtol=1e-5)
    mixture = (0.3 * q.exp() + 0.7 * p.exp()).log()
    expected = 0.3 * torch_kl(q, mixture) + 0.7 * torch_kl(p, mixture)
    torch.testing.assert_close(JSD(beta=0.3).loss(inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("beta", "limit"), [(1e-4, ForwardKL()), (1 - 1e-4, ReverseKL())])
def test_jsd_over_its_vanishing_weight_tends_to_a_kl(beta, limit):
    # JSD_β / β → KL(teacher ‖ policy) for β → 0, and JSD_β / (1 - β) → KL(policy ‖ teacher) for β → 1.
    policy, teacher = (logits.double() / 4 for logits in random_logits())
    inputs = SignalInputs(policy_logits=policy, teacher_logits=teacher)
    ratio = JSD(beta=beta).loss(inputs) / min(beta, 1 - beta)
    torch.testing.assert_close(ratio, limit.loss(inputs), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("signal", ALL)
def test_a_policy_equal_to_its_teacher_has_no_loss_and_no_gradient(signal):
    policy = random_logits()[0].requires_grad_(True)
    losses = signal.loss(SignalInputs(policy_logits=policy, teacher_logits=policy.detach() + 3.0))
    losses.sum().backward()
    assert losses.abs().max() < 1e-5
    assert policy.grad.abs().max() < 1e-5


@pytest.mark.parametrize("signal", ALL)
def test_the_teacher_gets_no_say_in_states_other_than_its_own(signal):
    policy, teacher = random_logits()
    whole = signal.loss(SignalInputs(policy_logits=policy, teacher_logits=teacher))
    alone = signal.loss(SignalInputs(policy_logits=policy[2:3], teacher_logits=teacher[2:3]))
    torch.testing.assert_close(whole[2:3], alone)


@pytest.mark.parametrize("signal", ALL)
def test_laws_far_apart_have_a_finite_loss_and_gradient(signal):
    policy = torch.tensor([[80.0, 0.0, -80.0]], requires_grad=True)
    loss = signal.loss(SignalInputs(policy_logits=policy, teacher_logits=torch.tensor([[-80.0, 0.0, 80.0]])))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(policy.grad).all()


@settings(max_examples=60, deadline=None)
@given(policy=LAWS, teacher=LAWS, beta=st.floats(0.01, 0.99))
def test_divergences_are_never_negative_and_jsd_is_bounded(policy, teacher, beta):
    p, q = torch.tensor([policy]), torch.tensor([teacher])
    inputs = SignalInputs(policy_logits=p, teacher_logits=q)
    for signal in (*ALL, JSD(beta=beta)):
        assert signal.loss(inputs).item() >= -1e-5
    # The mixture holds a share β of q and 1 - β of p, so JSD_β <= H(β) <= ln 2.
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert JSD(beta=beta).loss(inputs).item() <= entropy + 1e-5
    assert JSD(beta=0.5).loss(inputs).item() <= math.log(2) + 1e-5


@settings(max_examples=60, deadline=None)
@given(policy=LAWS, teacher=LAWS)
def test_jsd_is_symmetric_at_one_half_and_kl_mirrors(policy, teacher):
    p, q = torch.tensor([policy]), torch.tensor([teacher])
    there, back = (SignalInputs(policy_logits=a, teacher_logits=b) for a, b in ((p, q), (q, p)))
    torch.testing.assert_close(JSD(beta=0.5).loss(there), JSD(beta=0.5).loss(back), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ForwardKL().loss(there), ReverseKL().loss(back))


def test_laws_without_overlap_have_the_largest_jsd():
    inputs = laws([1.0 - 1e-7, 1e-7], [1e-7, 1.0 - 1e-7])
    assert JSD(beta=0.5).loss(inputs).item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("beta", [0, 1, -0.1, 1.5])
def test_a_beta_outside_its_range_is_refused(beta):
    with pytest.raises(UsageError, match=r"study\.toml:3: beta: Input should be (greater|less) than"):
        read_kind(Signal, {"kind": "jsd", "beta": beta}, "study.toml:3")


def test_a_missing_teacher_law_is_named():
    with pytest.raises(LookupError, match="'teacher_logits' was not provided"):
        ReverseKL().loss(SignalInputs(policy_logits=torch.zeros(1, 2)))
