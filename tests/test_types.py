import numpy as np
import pytest
import torch

from statewise.batch import Trajectory, collate
from statewise.errors import UsageError
from statewise.types import SignalInputs


def test_collate_pads_to_the_longest_row():
    states = collate([
        Trajectory((5, 6, 7), 1, 4, "dataset", "data"),
        Trajectory((8, 9, 10, 11), 2, 2, "rollout", "learner", (-0.5, -0.25), is_finished=False),
    ], temperature=0.5)  # fmt: skip
    assert states.token_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert states.action_mask.tolist() == [[False, True, True, False], [False, False, True, True]]
    np.testing.assert_array_equal(
        states.behavior_logprobs, np.array([[np.nan] * 4, [np.nan, np.nan, -0.5, -0.25]], dtype=np.float32)
    )
    assert states.lengths.tolist() == [3, 4]
    assert states.prompt_lengths.tolist() == [1, 2]
    assert states.prompt_indices.tolist() == [4, 2]
    assert states.is_finished.tolist() == [True, False]
    assert np.isnan(states.rewards).all() and np.isnan(states.advantages).all()
    assert (states.sources, states.writers) == (("dataset", "rollout"), ("data", "learner"))
    assert states.temperature == 0.5
    assert states.num_states == 4


def test_collate_gives_the_documented_types():
    states = collate([Trajectory((5, 6), 1, 0, "dataset", "data")])
    for name in ("token_ids", "lengths", "prompt_lengths", "prompt_indices"):
        assert getattr(states, name).dtype == np.int64
    for name in ("behavior_logprobs", "rewards", "advantages"):
        assert getattr(states, name).dtype == np.float32
    assert states.action_mask.dtype == states.is_finished.dtype == np.bool_


def test_the_response_is_what_follows_the_prompt_wherever_the_actions_start():
    states = collate([Trajectory((5, 6, 7, 8), 1, 0, "rollout", "teacher", (-1.0,), first_action=3)])
    assert states.response_ids(0) == (6, 7, 8)
    assert states.action_mask.tolist() == [[False, False, False, True]]
    assert states.num_states == 1


def test_no_trajectories_are_refused():
    with pytest.raises(UsageError, match="no trajectories to train on"):
        collate([])


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (Trajectory((1, 2), 0, 8, "dataset", "data"), "document 8 of source 'dataset' has 0 given tokens of 2"),
        (Trajectory((1, 2), 2, 8, "rollout", "base"), "document 8 of source 'rollout' has 2 given tokens of 2"),
        (Trajectory((), 0, 8, "rollout", "base"), "has 0 given tokens of 0"),
        (Trajectory((1, 2), 1, 8, "rollout", "base", first_action=2), "has 2 given tokens of 2"),
    ],
)
def test_a_trajectory_without_prompt_or_action_is_refused(trajectory, message):
    with pytest.raises(UsageError, match=message):
        collate([trajectory])


def test_log_probabilities_that_do_not_match_the_actions_are_refused():
    # One value would be spread over all actions by numpy, without a word.
    for logprobs in ((-1.0,), (-1.0, -1.0, -1.0)):
        with pytest.raises(UsageError, match=rf"document 3 .* {len(logprobs)} log-probabilities for 2 actions"):
            collate([Trajectory((1, 2, 3), 1, 3, "rollout", "learner", logprobs)])


def test_a_signal_input_that_is_absent_is_named():
    inputs = SignalInputs(policy_logprobs=torch.zeros(2))
    assert inputs.required("policy_logprobs").shape == (2,)
    with pytest.raises(LookupError, match="'advantages' was not provided"):
        inputs.required("advantages")
