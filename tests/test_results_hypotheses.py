"""Hypotheses and runs are held together: the level of a study is kept, and a verdict never contradicts its interval."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from statewise.config.study import HypothesisSection
from statewise.results.hypotheses import RunFamily, conclude, holm, weigh_hypothesis
from statewise.results.intervals import Part, weigh_sum


def put(name="p", arms=("a",), comparison="more", margin=0.0):
    return HypothesisSection(
        name=name, statement="s", measure="forgetting", comparison=comparison, arms=list(arms), than="base",
        margin=margin,
    )  # fmt: skip


def changed(num_up, num_down, num_items=100, num_seeds=3):
    part = np.zeros((num_items, num_seeds))
    part[:num_up], part[num_up : num_up + num_down] = 1, -1
    return weigh_sum([Part(part)])


def null(rng, num_items=100, num_seeds=3, seed_sd=0.05, share=0.2):
    """A difference whose truth is 0: a share of answers changes in either direction, and seeds differ."""
    change = rng.random((num_items, num_seeds))
    tilt = 0.5 + rng.normal(0, seed_sd / share / 2, (1, num_seeds))
    return weigh_sum([Part(np.where(change < share * tilt, 1.0, np.where(change < share, -1.0, 0.0)))])


def test_holm_is_statsmodels():
    rng = np.random.default_rng(0)
    for num in (1, 2, 5, 40):
        p_values = list(rng.random(num) ** 3)
        assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([]) == []


def test_a_verdict_never_contradicts_the_interval_beside_it():
    # Hypotheses of one to three contrasts, from clear to null.
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(60):
        tested = []
        for index in range(4):
            arms = [f"arm-{i}" for i in range(rng.integers(1, 4))]
            tilt = rng.integers(-12, 13)
            evidence = {arm: changed(*(rng.integers(0, 6, 2) + np.maximum([tilt, -tilt], 0))) for arm in arms}
            tested.append(weigh_hypothesis(put(str(index), arms), evidence))
        for found in conclude(tested):
            above = [e.low > 0 for e in found.contrasts.values()]
            below = [e.high < 0 for e in found.contrasts.values()]
            expected = "holds" if all(above) else "does not hold" if any(below) else "not resolved"
            assert found.verdict == expected
            assert (found.p_adjusted < 0.05) == (found.verdict != "not resolved")
            seen.add(found.verdict)
    assert len(seen) == 3


def test_what_alone_would_hold_may_not_hold_among_many_hypotheses():
    # 9 : 1 of 100 has p = .0215: alone below .05, as the smallest of six hypotheses not (.129).
    (alone,) = conclude([weigh_hypothesis(put(), {"a": changed(9, 1)})])
    assert (alone.verdict, alone.contrasts["a"].level) == ("holds", pytest.approx(0.95))
    among = conclude(
        [weigh_hypothesis(put(), {"a": changed(9, 1)})] + [weigh_hypothesis(put(), {"a": changed(5, 5)})] * 5
    )
    assert among[0].verdict == "not resolved"
    assert among[0].p_adjusted == pytest.approx(6 * alone.p_adjusted)
    assert among[0].contrasts["a"].level == pytest.approx(1 - 0.05 / 6)
    assert among[0].contrasts["a"].low < 0
    assert "Holm over the 6 hypotheses of the study" in among[0].test


def test_one_of_many_contrasts_refutes_a_hypothesis_only_at_its_share_of_the_level():
    # 1 : 9 has p = .0215; as the best of three contrasts .064.
    one, three = ("a",), ("a", "b", "c")
    (refuted,) = conclude([weigh_hypothesis(put(arms=one), {"a": changed(1, 9)})])
    (open_,) = conclude(
        [weigh_hypothesis(put(arms=three), {"a": changed(1, 9), "b": changed(9, 0), "c": changed(9, 0)})]
    )
    assert (refuted.verdict, open_.verdict) == ("does not hold", "not resolved")
    assert open_.contrasts["a"].level == pytest.approx(1 - 0.05 / 3)
    assert open_.contrasts["a"].high > 0
    # "holds" needs every contrast, which costs no correction.
    (holds,) = conclude([weigh_hypothesis(put(arms=three), {arm: changed(9, 1) for arm in three})])
    assert (holds.verdict, holds.p_adjusted) == ("holds", pytest.approx(0.0215, abs=1e-3))


def test_a_hypothesis_with_a_missing_arm_cannot_hold_but_can_be_refuted():
    (open_,) = conclude([weigh_hypothesis(put(arms=("a", "b")), {"a": changed(30, 0)})])
    (refuted,) = conclude([weigh_hypothesis(put(arms=("a", "b")), {"a": changed(0, 30)})])
    (empty,) = conclude([weigh_hypothesis(put(), {})])
    assert (open_.verdict, refuted.verdict, empty.verdict) == ("not resolved", "does not hold", "not resolved")
    assert "no scores of this measure" in open_.note


@pytest.mark.parametrize(("num_hypotheses", "num_contrasts"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_a_study_in_which_nothing_is_true_has_a_false_verdict_in_at_most_a_twentieth(num_hypotheses, num_contrasts):
    # 200 studies; .05 and twice the error of a share, √(.05 · .95 / 200) = .0154.
    rng = np.random.default_rng(10 * num_hypotheses + num_contrasts)
    arms = [f"arm-{index}" for index in range(num_contrasts)]
    false = 0
    for _ in range(200):
        tested = [weigh_hypothesis(put(arms=arms), {arm: null(rng) for arm in arms}) for _ in range(num_hypotheses)]
        false += any(found.verdict != "not resolved" for found in conclude(tested))
    assert false / 200 <= 0.05 + 0.031


def test_the_largest_of_many_null_runs_is_covered_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = [RunFamily("gain", {str(i): null(rng, num_seeds=1, seed_sd=0) for i in range(20)}) for _ in range(200)]
    largest = [family.largest() for family in covered]
    assert np.mean([one.estimate.low <= 0 for one in largest]) >= 0.95 - 0.031
    assert largest[0].estimate.level == pytest.approx(1 - 0.05 / 20)
    assert largest[0].num_runs == 20


def test_runs_of_equal_value_are_a_tie():
    family = RunFamily("forgetting", {"a": changed(0, 0), "b": changed(0, 0), "c": changed(0, 5)})
    assert family.largest().arms == ("a", "b")
    assert family.p_adjusted["a"] == 1.0
