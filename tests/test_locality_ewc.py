import math

import pytest
import torch
from torch.nn import Parameter

from statewise.locality.ewc import add_penalty, diagonal_fisher


def parameters(**values):
    return {name: Parameter(torch.tensor(value)) for name, value in values.items()}


def tensors(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def gradients_of_every_token(logits):
    """∇ log p(y) for each token y of a softmax over `logits`."""
    for token in range(len(logits)):
        theta = Parameter(torch.tensor(logits, dtype=torch.float64))
        theta.log_softmax(-1)[token].backward()
        yield {"theta": theta.grad}


def test_the_fisher_information_is_the_mean_of_the_squares():
    # Two samples with gradients (1, 3) and (-3, 1): (1 + 9) / 2 = 5, (9 + 1) / 2 = 5; their mean, squared, is (1, 4).
    fisher = diagonal_fisher([tensors(w=[1.0, 3.0]), tensors(w=[-3.0, 1.0])])
    assert fisher["w"].tolist() == [5.0, 5.0]


def test_the_fisher_information_of_a_fair_coin_by_hand():
    # Softmax of (0, 0): ∇ log p(y) = onehot(y) - (1/2, 1/2) = ±(1/2, -1/2); the square is 1/4 whichever side is up.
    fisher = diagonal_fisher(gradients_of_every_token([0.0, 0.0]))
    assert fisher["theta"].tolist() == pytest.approx([0.25, 0.25])


def test_the_fisher_information_is_over_the_models_own_answers():
    # Softmax of (ln 3, 0): p = (3/4, 1/4), F = p (1 - p) = 3/16 for both. Four answers in the proportion of the model,
    # three heads (∇ = (1/4, -1/4)) and a tail (∇ = (-3/4, 3/4)): (3 · 1/16 + 9/16) / 4 = 3/16.
    heads, tail = gradients_of_every_token([math.log(3), 0.0])
    assert diagonal_fisher([heads, heads, heads, tail])["theta"].tolist() == pytest.approx([3 / 16, 3 / 16])
    # Gold labels that are always heads, the empirical Fisher, would give 1/16.
    assert diagonal_fisher([heads])["theta"].tolist() == pytest.approx([1 / 16, 1 / 16])


def test_the_fisher_information_is_the_curvature_of_the_kl():
    # d²/dθ² KL(p ‖ p_θ) at p_θ = p is the Fisher information: torch's Hessian of the exact KL is the reference.
    logits = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    law = logits.softmax(-1)

    def kl_from_start(theta):
        return (law * (law.log() - theta.log_softmax(-1))).sum()

    curvature = torch.autograd.functional.hessian(kl_from_start, logits).diagonal()
    # Every answer once, weighted so that the mean over the three is the expectation: 1/3 Σ 3 p(y) ∇².
    sampled = [{"theta": g["theta"] * p.sqrt() * 3**0.5} for g, p in
               zip(gradients_of_every_token(logits.tolist()), law, strict=True)]  # fmt: skip
    torch.testing.assert_close(diagonal_fisher(sampled)["theta"], curvature)


def test_gradients_are_read_one_by_one_and_not_changed():
    buffer = torch.zeros(2)

    def reused():
        for value in ([1.0, 2.0], [3.0, 0.0]):
            buffer.copy_(torch.tensor(value))
            yield {"w": buffer}

    # The buffer of the gradients is overwritten between samples: (1 + 9) / 2 and (4 + 0) / 2.
    assert diagonal_fisher(reused())["w"].tolist() == [5.0, 2.0]
    assert buffer.tolist() == [3.0, 0.0]


def test_the_fisher_information_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample, got none"):
        diagonal_fisher([])


def test_penalty_and_gradient_by_hand():
    # θ - θ* = (1, -2), F = (3, 0.5), λ = 10: ½ · 10 (3 · 1 + 0.5 · 4) = 25; gradient 10 (3 · 1, 0.5 · -2) = (30, -10).
    theta = parameters(a=[2.0], b=[1.0])
    penalty = add_penalty(theta, tensors(a=[1.0], b=[3.0]), tensors(a=[3.0], b=[0.5]), strength=10.0)
    assert penalty == 25.0
    assert (theta["a"].grad.tolist(), theta["b"].grad.tolist()) == ([30.0], [-10.0])


def test_the_gradient_is_added_to_that_of_the_loss():
    theta = parameters(w=[2.0, 1.0])
    (theta["w"] * torch.tensor([1.0, 5.0])).sum().backward()
    add_penalty(theta, tensors(w=[1.0, 3.0]), tensors(w=[3.0, 0.5]), strength=10.0)
    assert theta["w"].grad.tolist() == [31.0, -5.0]  # (1, 5) + (30, -10)


def test_the_gradient_is_the_one_of_autograd():
    generator = torch.Generator().manual_seed(0)
    start, now, fisher = (torch.rand(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    theta, reference = Parameter(now.clone()), Parameter(now.clone())
    penalty = add_penalty({"w": theta}, {"w": start}, {"w": fisher}, strength=7.0)
    expected = 7.0 / 2 * (fisher * (reference - start) ** 2).sum()
    expected.backward()
    assert penalty == pytest.approx(expected.item())
    torch.testing.assert_close(theta.grad, reference.grad)


def test_nothing_is_paid_before_the_first_update():
    theta = parameters(w=[2.0, 1.0])
    assert add_penalty(theta, tensors(w=[2.0, 1.0]), tensors(w=[3.0, 0.5]), strength=10.0) == 0.0
    assert theta["w"].grad.tolist() == [0.0, 0.0]


def test_penalty_and_gradient_vanish_with_the_strength():
    theta = parameters(w=[2.0, 1.0])
    penalty = add_penalty(theta, tensors(w=[1.0, 3.0]), tensors(w=[3.0, 0.5]), strength=1e-12)
    assert penalty == pytest.approx(0, abs=1e-11)
    assert theta["w"].grad.abs().max().item() == pytest.approx(0, abs=1e-10)


def test_a_weight_that_base_does_not_use_moves_freely():
    theta = parameters(w=[100.0])
    assert add_penalty(theta, tensors(w=[0.0]), tensors(w=[0.0]), strength=1e6) == 0.0
    assert theta["w"].grad.tolist() == [0.0]


def test_only_the_gradient_of_the_weights_is_changed():
    theta, anchor, fisher = parameters(w=[2.0]), tensors(w=[1.0]), tensors(w=[3.0])
    add_penalty(theta, anchor, fisher, strength=10.0)
    assert (theta["w"].tolist(), anchor["w"].tolist(), fisher["w"].tolist()) == ([2.0], [1.0], [3.0])
