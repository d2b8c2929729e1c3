import pytest
import torch
from torch.nn import Parameter

from statewise.locality.ema import loaded, update_average


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


def test_the_average_is_in_the_weights_inside_and_the_old_bytes_afterwards():
    theta = parameters(a=[1.0, float("nan"), -0.0], b=[[0.1]])
    average = {"a": torch.tensor([5.0, 6.0, 7.0]), "b": torch.tensor([[8.0]])}
    before, memory = raw_bytes(theta), theta["a"].data_ptr()
    view = theta["a"].detach()[:1]
    with loaded(theta, average):
        assert (theta["a"].tolist(), theta["b"].tolist()) == ([5.0, 6.0, 7.0], [[8.0]])
        assert view.tolist() == [5.0]
    assert raw_bytes(theta) == before
    assert theta["a"].data_ptr() == memory
    assert average["a"].tolist() == [5.0, 6.0, 7.0]


def test_the_old_bytes_come_back_after_an_error():
    theta = parameters(w=[0.1, 0.2])
    before = raw_bytes(theta)
    with pytest.raises(RuntimeError, match="evaluation failed"), loaded(theta, {"w": torch.zeros(2)}):
        theta["w"].detach().add_(1)
        raise RuntimeError("evaluation failed")
    assert raw_bytes(theta) == before


def test_the_old_bytes_come_back_where_a_weight_has_no_average():
    theta = parameters(a=[0.1], b=[0.2])
    before = raw_bytes(theta)
    with pytest.raises(KeyError, match="b"), loaded(theta, {"a": torch.zeros(1)}):
        pass
    assert raw_bytes(theta) == before


def test_gradients_and_the_optimizer_see_nothing_of_it():
    theta = parameters(w=[1.0])
    (theta["w"] * 3).sum().backward()
    optimizer = torch.optim.SGD(list(theta.values()), lr=0.5)
    with loaded(theta, {"w": torch.tensor([9.0])}):
        assert theta["w"].requires_grad
    optimizer.step()
    assert theta["w"].tolist() == [-0.5]  # 1 - 0.5 · 3
