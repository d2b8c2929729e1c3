import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statewise.config.study import UpdateSection
from statewise.locality.schedule import Schedule
from statewise.loop.update import schedule_of

SHAPES = ["constant", "linear", "cosine"]


def rates(shape, num_updates=6, warmup=2, lr=8.0):
    schedule = Schedule(lr, num_updates, warmup, shape)
    return [schedule.lr_at(step) for step in range(num_updates)]


def test_constant_after_a_linear_warm_up():
    assert rates("constant") == [4.0, 8.0, 8.0, 8.0, 8.0, 8.0]


def test_linear_decay_by_hand():
    # After 2 warm-up updates 4 are left: 8 · (1, 3/4, 1/2, 1/4).
    assert rates("linear") == [4.0, 8.0, 8.0, 6.0, 4.0, 2.0]


def test_cosine_decay_by_hand():
    # 8 · (1 + cos(π k / 4)) / 2, k = 0..3: 8, 6.82843, 4, 1.17157.
    assert rates("cosine") == pytest.approx([4.0, 8.0, 8.0, 6.82843, 4.0, 1.17157], abs=1e-5)


def test_without_warm_up_the_first_update_has_the_peak():
    for shape in SHAPES:
        assert rates(shape, warmup=0)[0] == 8.0


def test_a_warm_up_longer_than_the_training_only_rises():
    assert rates("cosine", num_updates=3, warmup=4) == [2.0, 4.0, 6.0]


@given(
    shape=st.sampled_from(SHAPES),
    num_updates=st.integers(1, 200),
    warmup=st.integers(0, 250),
    lr=st.floats(1e-7, 1.0),
)
def test_every_rate_is_positive_and_at_most_the_peak(shape, num_updates, warmup, lr):
    values = rates(shape, num_updates, warmup, lr)
    rounding = 1 + 1e-12
    assert all(0 < value <= lr * rounding for value in values)
    decay = values[warmup:]
    assert all(later <= earlier * rounding for earlier, later in itertools.pairwise(decay))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_budgets_share_takes_the_place_of_the_count_without_a_cliff_after_the_warm_up(shape):
    # A tenth of the budget an update: warm-up 1/4, 2/4, 3/4, 1 of what the share leaves (linear .9, .8, .7 …).
    schedule = Schedule(1.0, 20, 4, shape)
    values = [schedule.lr_at(step, step / 10) for step in range(10)]
    if shape == "linear":
        assert values == pytest.approx([0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    steps = [abs(later - earlier) for earlier, later in itertools.pairwise(values)]
    assert max(steps) <= 0.25
    assert all(0 < value <= 1 for value in values)


def test_the_schedule_is_the_one_of_the_update_table():
    section = UpdateSection(num_updates=9, lr=0.5, schedule="cosine", warmup_updates=3)
    assert schedule_of(section) == Schedule(0.5, 9, 3, "cosine")
    # 6 updates decay; the fourth of them is at cos(π / 2).
    assert schedule_of(section).lr_at(6) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi / 2)))
