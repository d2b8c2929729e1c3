"""Items gained and lost: counted by hand, and without guesses as a simulation knows the truth."""

from __future__ import annotations

import numpy as np
import pytest

from statewise.folder.item_scores import Column
from statewise.results.transitions import GENERATED, UNKNOWN_CHOICES, compare_column, weigh_known

CHOICES = Column("facts", "choices", "acc,none")


def column(*scores):
    return np.array(scores, dtype=float)[:, None]


def answer(rng, knows, chances):
    """What a side is right in that knows some items and guesses the others, evenly."""
    return (knows | (rng.random(knows.shape) < chances)).astype(float)[:, None]


def simulated(chances, forgotten=0.0, learned=0.0, kept=0.0, num_draws=100):
    """Over draws: the means of what is adjusted and of the plain share lost; how often an interval holds the truth."""
    rng = np.random.default_rng(0)
    kinds = np.arange(len(chances)) / len(chances)
    was_known = kinds < forgotten + kept
    is_known = (kinds >= forgotten) & (kinds < forgotten + kept + learned)
    found = []
    for _ in range(num_draws):
        chance = rng.permutation(chances)
        a, b = answer(rng, was_known, chance), answer(rng, is_known, chance)
        lost = weigh_known(a, b, chance).estimate()
        found.append([lost.value, weigh_known(b, a, chance).value, (a * (1 - b)).mean()])
        found[-1].append(lost.low <= forgotten <= lost.high)
    return np.mean(found, axis=0)


MIXED = np.repeat([1 / 2, 1 / 3, 1 / 4, 2 / 5], 100)


@pytest.mark.parametrize("chances", [np.full(400, 1 / 4), np.full(400, 1 / 2), MIXED], ids=["4", "2", "mixed"])
def test_two_guessers_gain_and_lose_nothing_on_average(chances):
    lost, gained, plain, held = simulated(chances)
    # k = 2: values of variance 2, so that the mean over 100 draws of 400 items has a standard error of .007.
    assert (lost, gained) == pytest.approx((0, 0), abs=0.021)
    assert held > 0.9
    assert plain == pytest.approx(np.mean(chances * (1 - chances)), abs=0.01)  # what guesses alone move


@pytest.mark.parametrize("chances", [np.full(400, 1 / 4), MIXED], ids=["4", "mixed"])
def test_who_knows_and_forgets_is_told_the_true_shares(chances):
    lost, gained, plain, held = simulated(chances, forgotten=0.2, learned=0.1, kept=0.3)
    assert (lost, gained) == pytest.approx((0.2, 0.1), abs=0.015)
    assert held > 0.9
    # .2 was known and is guessed wrong; .4 is guessed both times.
    assert plain == pytest.approx(np.mean(0.2 * (1 - chances) + 0.4 * chances * (1 - chances)), abs=0.01)


def test_the_adjusted_shares_are_those_of_the_formula():
    # k = 4: (1 - 0) / (3/4) where only A is right, -(1/3) / (3/4) where both are wrong.
    a, b = column(1, 1, 0, 0, 0), column(0, 1, 1, 0, 0)
    one = compare_column(CHOICES, a, b, np.full(5, 1 / 4))
    assert one.lost_adjusted.value == pytest.approx((4 / 3 - 2 * 4 / 9) / 5)
    assert one.gained_adjusted.value == one.lost_adjusted.value
    assert (one.lost.value, one.gained.value, one.chance) == (0.2, 0.2, 0.25)


def test_what_is_gained_less_what_is_lost_is_the_change_of_what_is_known():
    rng = np.random.default_rng(1)
    a, b = ((rng.random((50, 1)) < share).astype(float) for share in (0.6, 0.4))
    one = compare_column(CHOICES, a, b, np.full(50, 1 / 3))
    known = [(3 * side.mean() - 1) / 2 for side in (a, b)]
    assert one.gained_adjusted.value - one.lost_adjusted.value == pytest.approx(known[1] - known[0])
    assert one.gained.value - one.lost.value == pytest.approx(one.difference.value)


def test_with_ever_more_choices_nothing_is_taken_off():
    a, b = column(1, 1, 0, 0), column(0, 1, 1, 0)
    assert weigh_known(a, b, np.full(4, 1e-9)).value == pytest.approx(0.25)


@pytest.mark.parametrize(("decoding", "why"), [("greedy", GENERATED), ("choices", UNKNOWN_CHOICES)])
def test_without_a_known_chance_nothing_is_adjusted_and_the_reason_is_said(decoding, why):
    one = compare_column(Column("facts", decoding, "acc,none"), column(1, 0), column(0, 1), np.array([0.5, np.nan]))
    assert (one.gained_adjusted, one.lost_adjusted, one.chance, one.unadjusted) == (None, None, None, why)
    assert (one.gained.value, one.lost.value) == (0.5, 0.5)


def test_scores_between_0_and_1_are_neither_gained_nor_lost():
    one = compare_column(CHOICES, column(0.5, 1), column(1, 0), np.full(2, 1 / 4))
    assert (one.gained, one.lost, one.gained_adjusted, one.unadjusted) == (None, None, None, "")


def test_several_seeds_are_weighed_together():
    a, b = np.array([[1.0], [0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    one = compare_column(CHOICES, a, b, np.full(2, 1 / 2))
    assert (one.lost.value, one.gained.value, one.lost.num_seeds) == (0.25, 0.25, 2)
    # k = 2: 2 where only A is right (one pair), -2 where both are wrong (one pair).
    assert one.lost_adjusted.value == 0
