import pytest
import torch
from torch.nn import Parameter

from statewise.locality.ema import update_average


def parameters(**values):
    return {name: Parameter(torch.tensor(value)) for name, value in values.items()}


def copies(theta):
    return {name: parameter.detach().clone() for name, parameter in theta.items()}


def raw_bytes(theta):
    return {name: parameter.detach().numpy().tobytes() for name, parameter in theta.items()}


def test_two_updates_by_hand():
    # d = 3/4, a = (0, 8). θ = (4, 8): a = (1, 8). θ = (-3, 0): a = (3/4 - 3/4, 6 + 0) = (0, 6).
    average = {"w": torch.tensor([0.0, 8.0])}
    update_average(average, parameters(w=[4.0, 8.0]), 0.75)
    assert average["w"].tolist() == [1.0, 8.0]
    update_average(average, parameters(w=[-3.0, 0.0]), 0.75)
    assert average["w"].tolist() == [0.0, 6.0]


def test_the_average_is_the_sum_of_fading_weights():
    # a_n = d^n a_0 + Σ_k (1 - d) d^(n - k) θ_k.
    steps = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    average = {"w": torch.ones(5, dtype=torch.float64)}
    for step in steps:
        update_average(average, {"w": Parameter(step)}, 0.9)
    fading = 0.1 * 0.9 ** torch.arange(19, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(average["w"], 0.9**20 + fading @ steps)


def test_weights_that_do_not_move_are_their_own_average():
    theta = parameters(w=[0.1, -7.3])
    average = copies(theta)
    for _ in range(100):
        update_average(average, theta, 0.99)
    assert torch.equal(average["w"], theta["w"])


@pytest.mark.parametrize(("decay", "expected"), [(1e-7, 4.0), (1 - 1e-7, 0.0)])
def test_the_limits_are_the_newest_weights_and_the_first(decay, expected):
    average = {"w": torch.tensor([0.0])}
    update_average(average, parameters(w=[4.0]), decay)
    assert average["w"].item() == pytest.approx(expected, abs=1e-6)


def test_the_average_is_written_in_place_and_the_weights_are_not():
    theta = parameters(w=[4.0])
    average = {"w": torch.tensor([0.0])}
    memory = average["w"].data_ptr()
    update_average(average, theta, 0.5)
    assert (average["w"].data_ptr(), average["w"].requires_grad) == (memory, False)
    assert theta["w"].tolist() == [4.0]
