import math

import numpy as np
import pytest
import torch

from statewise.batch import Trajectory, collate
from statewise.errors import UsageError
from statewise.signals.imitate import Imitate
from statewise.signals.reward import Reward
from statewise.signals.signal import Supervision
from statewise.types import SignalInputs

NAN = math.nan


def advantages(rewards, groups, advantage="grpo"):
    return Reward(advantage=advantage).advantages(np.array(rewards, dtype=np.float32), np.array(groups))


def loss_of(log_ratio, advantage, clip=0.2):
    """Loss and its derivative by log π of one state, at π / π_old = exp(log_ratio)."""
    policy = torch.tensor([-1.0 + log_ratio], requires_grad=True)
    inputs = SignalInputs(
        policy_logprobs=policy, old_logprobs=torch.tensor([-1.0]), advantages=torch.tensor([advantage])
    )
    loss = Reward(clip=clip).loss(inputs)
    loss.sum().backward()
    return loss.item(), policy.grad.item()


def graded(states, grade):
    def write(request):
        raise AssertionError("reward asks nobody to write")

    def grade_all(indices, rows):
        return [grade(index, row) for index, row in zip(indices, rows, strict=True)]

    return Reward().supervise(states, Supervision(write, write, grade_all, 0))


def rollouts(prompt_indices, lengths):
    return collate([
        Trajectory(tuple(range(length)), 2, index, "rollout", "learner", (-1.0,) * (length - 2))
        for index, length in zip(prompt_indices, lengths, strict=True)
    ])  # fmt: skip


def test_advantages_of_a_group_equal_the_values_by_hand():
    # Rewards 1, 0, 0, 1: mean 1/2, sample deviation sqrt(4 · 1/4 / 3) = .57735; ±.5 / (.57735 + .0001) = ±.86588.
    np.testing.assert_allclose(advantages([1, 0, 0, 1], [0] * 4), [0.86588, -0.86588, -0.86588, 0.86588], atol=1e-5)


def test_without_scaling_advantages_are_centred_rewards():
    np.testing.assert_allclose(advantages([1, 0, 0, 1, 2], [0] * 5, "dr_grpo"), [0.2, -0.8, -0.8, 0.2, 1.2], atol=1e-6)


def test_a_group_is_its_prompt_wherever_its_rows_stand():
    mixed = advantages([1, 5, 0, 7], [3, 8, 3, 8], "dr_grpo")
    np.testing.assert_allclose(mixed, [0.5, -1.0, -0.5, 1.0], atol=1e-6)


def test_an_answer_without_score_has_no_advantage_and_no_say_in_the_mean():
    # Mean of 1 and 0, not of 1, 0 and 0.
    np.testing.assert_allclose(advantages([1, NAN, 0], [0] * 3, "dr_grpo"), [0.5, 0, -0.5], atol=1e-6)


@pytest.mark.parametrize("rewards", [[0.7], [NAN], [NAN, NAN], [NAN, 1.0], [0.25, 0.25, 0.25]])
@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo"])
def test_a_group_that_cannot_be_compared_has_advantage_zero(rewards, advantage):
    assert (advantages(rewards, [0] * len(rewards), advantage) == 0).all()


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo"])
def test_advantages_of_every_group_sum_to_zero_and_ignore_a_shift(advantage):
    rng = np.random.default_rng(0)
    rewards, groups = rng.random(30).astype(np.float32), np.repeat(np.arange(6), 5)
    values = advantages(rewards, groups, advantage)
    np.testing.assert_allclose(values.reshape(6, 5).sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(advantages(rewards + 2, groups, advantage), values, atol=1e-5)


def test_supervise_grades_each_response_and_leaves_the_states_unchanged():
    states = rollouts([4, 4, 9], [5, 3, 4])
    asked = []

    def grade(index, token_ids):
        asked.append((index, tuple(token_ids)))
        return float(len(token_ids))

    supervised = graded(states, grade)
    assert asked == [(4, (2, 3, 4)), (4, (2,)), (9, (2, 3))]
    assert supervised.rewards.tolist() == [3.0, 1.0, 2.0]
    # Group 4: 3 and 1, mean 2, sample deviation sqrt(2) = 1.41421; ±1 / 1.41431 = ±.70706.
    np.testing.assert_allclose(supervised.advantages, [0.70706, -0.70706, 0.0], atol=1e-5)
    assert np.isnan(states.rewards).all()
    assert supervised.token_ids is states.token_ids


def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient():
    assert loss_of(0.0, 1.5) == (-1.5, -1.5)  # -ρ A, and its derivative by log π, at ρ = 1
    assert loss_of(0.0, -2.0) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # A > 0: a ratio above 1.2 counts as 1.2 and has no gradient; one below .8 counts as it is.
        (1.5, 1.0, -1.2, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (1.1, 1.0, -1.1, -1.1),
        # A < 0: a ratio below .8 counts as .8 and has no gradient; one above 1.2 counts as it is.
        (0.5, -1.0, 0.8, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (0.9, -1.0, 0.9, 0.9),
    ],
)
def test_the_ratio_is_clipped_on_the_side_that_would_gain(ratio, advantage, loss, gradient):
    assert loss_of(math.log(ratio), advantage) == pytest.approx((loss, gradient), abs=1e-6)


def test_a_wide_clip_is_plain_importance_weighting():
    assert loss_of(math.log(3.0), 1.0, clip=10.0) == pytest.approx((-3.0, -3.0), abs=1e-5)


def weighted_loss(importance, old_minus_behavior, rows, cap=2.0):
    """Losses at advantage 1 and ratio 1, i.e. minus the importance weights."""
    behavior = torch.full((len(rows),), -1.0)
    old = behavior + torch.tensor(old_minus_behavior)
    inputs = SignalInputs(
        policy_logprobs=old, old_logprobs=old, behavior_logprobs=behavior, advantages=torch.ones(len(rows)),
        rows=torch.tensor(rows),
    )  # fmt: skip
    return Reward(importance=importance, importance_cap=cap).loss(inputs).tolist()


def test_importance_weights_equal_the_values_by_hand():
    # Log-ratios .5, .1 | -1 of two trajectories. Per token: e^.5 = 1.64872, e^.1 = 1.10517, e^-1 = .36788.
    logs, rows = [0.5, 0.1, -1.0], [0, 0, 1]
    assert weighted_loss("none", logs, rows) == [-1.0, -1.0, -1.0]
    assert weighted_loss("token", logs, rows) == pytest.approx([-1.64872, -1.10517, -0.36788], abs=1e-5)
    # Per sequence: e^.6 = 1.82212 at both states of the first.
    assert weighted_loss("sequence", logs, rows) == pytest.approx([-1.82212, -1.82212, -0.36788], abs=1e-5)
    assert weighted_loss("sequence", logs, rows, cap=1.5) == pytest.approx([-1.5, -1.5, -0.36788], abs=1e-5)


def test_without_importance_a_law_that_is_not_known_does_not_matter():
    policy = torch.tensor([-2.0, -0.5], requires_grad=True)
    inputs = SignalInputs(
        policy_logprobs=policy, old_logprobs=policy.detach(), behavior_logprobs=torch.full((2,), torch.nan),
        advantages=torch.tensor([1.0, -3.0]),
    )  # fmt: skip
    loss = Reward().loss(inputs)
    loss.sum().backward()
    assert loss.tolist() == [-1.0, 3.0]
    assert policy.grad.tolist() == [-1.0, 3.0]


def test_importance_weights_of_states_whose_law_is_not_known_are_refused():
    states = collate([Trajectory((1, 2, 3), 1, 0, "dataset", "data")])
    ask = Supervision(lambda request: [], lambda request: None, lambda indices, rows: [1.0], 0)
    with pytest.raises(UsageError, match=r"importance = 'token' needs .* writer 'data' have none"):
        Reward(importance="token").supervise(states, ask)


def test_leave_one_out_takes_the_mean_of_the_others_as_baseline():
    # 1 - (0 + .5)/2 = .75; 0 - (1 + .5)/2 = -.75; .5 - (1 + 0)/2 = 0.
    np.testing.assert_allclose(advantages([1, 0, 0.5], [0] * 3, "rloo"), [0.75, -0.75, 0.0], atol=1e-6)


def test_reinforce_takes_rewards_as_they_are_or_less_the_mean_of_the_batch():
    rewards, groups = np.array([1, 0, NAN, 0.5], dtype=np.float32), np.arange(4)
    np.testing.assert_allclose(Reward(advantage="reinforce").advantages(rewards, groups), [1, 0, 0, 0.5])
    centred = Reward(advantage="reinforce", baseline="batch").advantages(rewards, groups)
    np.testing.assert_allclose(centred, [0.5, -0.5, 0, 0], atol=1e-6)  # mean of 1, 0 and .5


def test_without_a_clip_the_ratio_is_not_bounded():
    assert loss_of(math.log(3.0), 1.0, clip=0.0) == pytest.approx((-3.0, -3.0), abs=1e-5)


def test_an_advantage_of_zero_gives_no_loss_and_no_gradient():
    assert loss_of(0.3, 0.0) == (0.0, 0.0)


def test_imitate_is_the_surprise_of_the_action():
    # -ln 1/4 = 1.38629
    loss = Imitate().loss(SignalInputs(policy_logprobs=torch.tensor([0.25]).log()))
    assert loss.item() == pytest.approx(1.38629, abs=1e-5)


def test_imitate_takes_the_states_as_they_are():
    states = rollouts([0], [4])
    assert (
        Imitate().supervise(states, Supervision(lambda request: [], lambda request: None, lambda *asked: [0.0], 0))
        is states
    )
