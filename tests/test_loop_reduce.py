import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statewise.batch import Trajectory, collate
from statewise.loop.reduce import state_weights

REDUCTIONS = ["states", "trajectories"]


def states_of(response_lengths, prompt_length=2):
    return collate([
        Trajectory(tuple(range(prompt_length + n)), prompt_length, i, "dataset", "data")
        for i, n in enumerate(response_lengths)
    ])  # fmt: skip


def test_every_state_weighs_the_same():
    # 1 + 3 = 4 training states: 1/4 each.
    assert state_weights(states_of([1, 3]), "states").tolist() == [[0, 0, 0.25, 0, 0], [0, 0, 0.25, 0.25, 0.25]]


def test_every_trajectory_weighs_the_same():
    # 2 trajectories: 1/2 for the only state of the first, 1/4 for each of the two of the second.
    assert state_weights(states_of([1, 2]), "trajectories").tolist() == [[0, 0, 0.5, 0], [0, 0, 0.25, 0.25]]


def test_a_masked_state_weighs_nothing_and_its_weight_goes_to_the_others():
    states = states_of([1, 3])
    states.action_mask[1, 3] = False
    np.testing.assert_allclose(state_weights(states, "states")[1], [0, 0, 1 / 3, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(state_weights(states, "trajectories")[1], [0, 0, 1 / 4, 0, 1 / 4], rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_weights_sum_to_one_and_lie_on_training_states(reduction, lengths):
    states = states_of(lengths)
    weights = state_weights(states, reduction)
    assert weights.dtype == np.float32
    assert weights.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert ((weights > 0) == states.action_mask).all()


def test_the_reductions_agree_where_all_rows_are_of_one_length():
    states = states_of([4, 4, 4])
    np.testing.assert_array_equal(*(state_weights(states, reduction) for reduction in REDUCTIONS))
