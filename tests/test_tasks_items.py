"""Which documents a limited evaluation takes: by hand, and fair where the order of a file means something."""

from __future__ import annotations

import numpy as np
import pytest

from statewise.tasks.items import choose, leave, share_out


def test_members_of_a_group_are_taken_in_turn():
    assert share_out([3, 10, 1], None) == [3, 10, 1]
    # One of each, one of the first two, then one more of the first.
    assert share_out([3, 10, 1], 6) == [3, 2, 1]
    assert share_out([3, 10, 1], 100) == [3, 10, 1]


def test_the_first_items_are_those_of_the_file():
    assert choose({"a": 3, "b": 10}, 5, "first") == [[0, 1, 2], [0, 1]]


@pytest.mark.parametrize("items", ["first", "sample"])
def test_no_limit_takes_all_in_their_order(items):
    assert choose({"a": 3, "b": 4}, None, items) == [[0, 1, 2], [0, 1, 2, 3]]


def test_a_sample_is_the_same_each_time_in_order_and_part_of_a_larger_one():
    (small,), (large,) = (choose({"pocket_facts": 600}, limit, "sample") for limit in (60, 200))
    assert [small] == choose({"pocket_facts": 600}, 60, "sample")
    assert small == sorted(set(small))
    assert set(small) < set(large)
    assert (len(small), len(large)) == (60, 200)


def test_tasks_of_one_size_get_samples_of_their_own():
    (facts,), (myths,) = (choose({name: 600}, 200, "sample") for name in ("pocket_facts", "pocket_myths"))
    assert facts != myths


def test_a_sample_of_a_sorted_file_is_fair():
    means = [np.mean(choose({f"task {number}": 600}, 200, "sample")[0]) for number in range(50)]
    # Mean place 299.5; standard error of 200 of 600 without replacement 173.2 / sqrt(200) × sqrt(400 / 599) = 10.0, of
    # 50 such means 1.4. The first 200 have a mean place of 99.5.
    assert np.mean(means) == pytest.approx(299.5, abs=4 * 1.42)
    assert max(abs(mean - 299.5) for mean in means) < 4 * 10.0


def test_what_is_left_for_other_uses_is_not_evaluated_until_it_must_be():
    left = leave("pocket_facts", 600, 100)
    assert len(left) == 100
    for limit, shared in ((400, 0), (500, 0), (501, 1), (600, 100)):
        assert len(set(left) & set(choose({"pocket_facts": 600}, limit, "sample")[0])) == shared
