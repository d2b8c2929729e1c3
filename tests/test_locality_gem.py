import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from statewise.errors import DivergedError
from statewise.locality import gem
from statewise.locality.gem import project_agem, project_gem

WEIGHTS = 4
VALUES = st.floats(-10, 10).map(lambda x: round(x, 3))


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_problem(num_memories, num_weights, seed=0):
    """A gradient and memories that violate constraints."""
    generator = torch.Generator().manual_seed(seed)
    memories = torch.randn(num_memories, num_weights, generator=generator, dtype=torch.float64)
    return -memories.sum(0) + torch.randn(num_weights, generator=generator, dtype=torch.float64), memories


def problems():
    return st.integers(1, 5).flatmap(
        lambda count: st.tuples(
            arrays(np.float64, WEIGHTS, elements=VALUES), arrays(np.float64, (count, WEIGHTS), elements=VALUES)
        )
    )


def test_one_violated_constraint_by_hand():
    # g = (1, -2), m = (1, 1): ⟨g, m⟩ = -1, ⟨m, m⟩ = 2: z = (1, -2) + 1/2 (1, 1) = (1.5, -1.5), at right angles to m.
    gradient, memory = vector(1, -2), vector(1, 1)
    assert project_agem(gradient, memory).tolist() == [1.5, -1.5]
    assert project_gem(gradient, memory[None], 0.0).tolist() == pytest.approx([1.5, -1.5])


def test_two_constraints_of_which_one_binds_by_hand():
    # g = (-1, 2), m1 = (1, 0), m2 = (0, 1): only the first objects; the nearest z is (0, 2).
    assert project_gem(vector(-1, 2), torch.eye(2, dtype=torch.float64), 0.0).tolist() == pytest.approx([0, 2])


def test_two_binding_constraints_are_solved_together():
    # g = (-1, 1, 1), m1 = (1, 0, 0), m2 = (1, -1, 0). On m1 alone (⟨g, m1⟩ = -1): (0, 1, 1), which violates m2 by -1;
    # on m2 from there: (0, 1, 1) + 1/2 (1, -1, 0) = (1/2, 1/2, 1), feasible, but at distance² 9/4 + 1/4 = 2.5 from g.
    # The region is x >= 0, x >= y; the point nearest to (-1, 1) is its corner (0, 0): z = (0, 0, 1), distance² 2.
    gradient, memories = vector(-1, 1, 1), torch.stack([vector(1, 0, 0), vector(1, -1, 0)])
    first = project_agem(gradient, memories[0])
    assert first.tolist() == [0, 1, 1] and (first @ memories[1]).item() == -1
    assert project_agem(first, memories[1]).tolist() == [0.5, 0.5, 1]
    assert project_gem(gradient, memories, 0.0).tolist() == pytest.approx([0, 0, 1], abs=1e-12)


def test_projecting_on_each_in_turn_may_end_outside_and_gem_does_not():
    # g = (-2, -1), m1 = (1, 0), m2 = (-1, 2). On m1: (0, -1). On m2 (⟨·, m2⟩ = -2, ⟨m2, m2⟩ = 5): (-0.4, -0.2), which
    # violates m1 again. The region is x >= 0, y >= x / 2, all of it at right angles to or away from g: z = 0.
    gradient, memories = vector(-2, -1), torch.stack([vector(1, 0), vector(-1, 2)])
    in_turn = project_agem(project_agem(gradient, memories[0]), memories[1])
    assert in_turn.tolist() == pytest.approx([-0.4, -0.2])
    assert (in_turn @ memories[0]).item() < 0
    assert project_gem(gradient, memories, 0.0).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_the_margin_is_the_least_weight_of_every_memory_by_hand():
    # g = (-1, 2), unit memories, v >= 1/2: z = g + v. The first needs v1 = 1; the second would take 0 and gets 1/2.
    assert project_gem(vector(-1, 2), torch.eye(2, dtype=torch.float64), 0.5).tolist() == pytest.approx([0, 2.5])
    # A margin of 3 exceeds both: (-1 + 3, 2 + 3).
    assert project_gem(vector(-1, 2), torch.eye(2, dtype=torch.float64), 3.0).tolist() == pytest.approx([2, 5])


def test_with_a_margin_opposed_memories_still_hold():
    # g = (0, -1), m1 = (3, 1), m2 = (-1, 0): only m1 objects (-1). The region is y >= -3 x, x <= 0, and z = (0, 0) by
    # v = (1, 3), which v >= 1 allows. Adding 1 to that v instead: z = (0 + 3 - 1, 0 + 1 - 0) = (2, 1), ⟨z, m2⟩ = -2.
    memories = torch.stack([vector(3, 1), vector(-1, 0)])
    found = project_gem(vector(0, -1), memories, 1.0)
    assert found.tolist() == pytest.approx([0, 0], abs=1e-12)
    without = project_gem(vector(0, -1), memories, 0.0)
    assert (without + memories.sum(0)).tolist() == pytest.approx([2, 1])
    assert ((without + memories.sum(0)) @ memories[1]).item() == pytest.approx(-2)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_where_no_constraint_is_violated_the_gradient_is_the_same_tensor(margin):
    gradient = vector(1, 2)
    # (2, -1) is at right angles: it does not object.
    assert project_gem(gradient, torch.stack([vector(1, 1), vector(2, -1)]), margin) is gradient
    assert project_agem(gradient, vector(2, -1)) is gradient
    assert project_agem(gradient, vector(0, 0)) is gradient


@pytest.mark.parametrize("seed", range(5))
def test_a_gem_is_gem_with_one_constraint_and_no_margin(seed):
    gradient, memories = random_problem(1, 50, seed)
    torch.testing.assert_close(project_gem(gradient, memories, 0.0), project_agem(gradient, memories[0]))


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("num_memories", [2, 4])
def test_gem_equals_a_general_solver_on_the_dual_program(num_memories, margin):
    # The program of the paper and its code: min ½ vᵀ G Gᵀ v + gᵀ Gᵀ v, v >= margin, by a bounded quasi-Newton method.
    gradient, memories = random_problem(num_memories, 30)
    gram, product = (memories @ memories.T).numpy(), (memories @ gradient).numpy()
    dual = minimize(
        lambda v: (0.5 * v @ gram @ v + product @ v, gram @ v + product),
        np.full(num_memories, margin + 1), jac=True, bounds=[(margin, None)] * num_memories, method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-12},
    )  # fmt: skip
    expected = gradient + torch.from_numpy(dual.x) @ memories
    torch.testing.assert_close(project_gem(gradient, memories, margin), expected, atol=1e-6, rtol=1e-6)


@given(problem=problems(), margin=st.sampled_from([0.0, 0.5]))
def test_the_projection_satisfies_every_constraint(problem, margin):
    gradient, memories = map(torch.from_numpy, problem)
    found = project_gem(gradient, memories, margin)
    # |⟨z, g_k⟩| of a z at right angles to g_k is rounding of the terms it is summed from.
    scale = memories.norm(dim=1) * (gradient.norm() + (found - gradient).norm() + 1)
    assert (memories @ found >= -1e-9 * scale).all()


@given(problem=problems(), data=st.data())
def test_no_feasible_point_is_nearer_than_the_projection(problem, data):
    gradient, memories = map(torch.from_numpy, problem)
    found = project_gem(gradient, memories, 0.0)
    point = torch.from_numpy(data.draw(arrays(np.float64, WEIGHTS, elements=VALUES)))
    # A random point is seldom feasible; the projection of one is, and so is every multiple of it.
    feasible = data.draw(st.floats(0, 2)) * project_gem(point, memories, 0.0)
    assert (found - gradient).norm() <= (feasible - gradient).norm() + 1e-7
    assert found.norm() <= gradient.norm() + 1e-9  # 0 and 2 z are feasible: z is at right angles to g - z


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_the_size_of_the_gradients_does_not_matter(scale):
    gradient, memories = random_problem(3, 40)
    expected = project_gem(gradient, memories, 0.0)
    torch.testing.assert_close(project_gem(scale * gradient, memories, 0.0), scale * expected)
    torch.testing.assert_close(project_gem(gradient, scale * memories, 0.0), expected)


def test_equal_and_empty_memories_are_one_constraint_and_none():
    gradient, memory = vector(1, -2), vector(1, 1)
    memories = torch.stack([memory, memory, vector(0, 0), 3 * memory])
    assert project_gem(gradient, memories, 0.0).tolist() == pytest.approx([1.5, -1.5])


def test_opposite_memories_leave_what_is_at_right_angles_to_both():
    # m and -m: ⟨z, m⟩ must be 0.
    assert project_gem(vector(1, -2), torch.stack([vector(1, 1), vector(-1, -1)]), 0.0).tolist() == pytest.approx(
        [1.5, -1.5]
    )


def test_runs_of_rows_give_the_result_of_the_whole(monkeypatch):
    gradient, memories = random_problem(3, 50)
    whole = project_gem(gradient, memories, 0.1)
    monkeypatch.setattr(gem, "ROWS_AT_ONCE", 7)
    torch.testing.assert_close(project_gem(gradient, memories, 0.1), whole)


def test_single_precision_stays_and_nothing_passed_in_is_changed():
    gradient, memories = (x.float() for x in random_problem(3, 50))
    copies = gradient.clone(), memories.clone()
    found = project_gem(gradient, memories, 0.1)
    assert found.dtype == project_agem(gradient, memories[0]).dtype == torch.float32
    assert torch.equal(gradient, copies[0]) and torch.equal(memories, copies[1])
    torch.testing.assert_close(
        found.double(), project_gem(gradient.double(), memories.double(), 0.1), atol=1e-4, rtol=0
    )


def test_what_is_not_finite_is_not_projected():
    with pytest.raises(DivergedError, match="is not finite"):
        project_gem(vector(float("nan"), 1), torch.eye(2, dtype=torch.float64), 0.0)
    assert project_agem(vector(float("nan"), 1), vector(1, 0)).isnan().any()
