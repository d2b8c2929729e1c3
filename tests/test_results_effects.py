"""The decomposition of variance: against statsmodels, by hand, and by what must hold of any."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from statewise.results.effects import HIGHER_ORDER, SEEDS, estimate_effects, explain_variance, jackknife_intervals
from statewise.seeding import generator

NAMES = ("a", "b", "c")


def random_values(*shape):
    return generator("test", "anova", *shape).normal(size=shape)


def cells_of(values, names=NAMES):
    """Cells with levels a0, a1, …; nan: not measured."""
    cells = []
    for index in itertools.product(*map(range, values.shape[:-1])):
        levels = {name: f"{name}{level}" for name, level in zip(names, index, strict=False)}
        cells.append((levels, {seed: float(y) for seed, y in enumerate(values[index]) if not np.isnan(y)}))
    return cells


def shares_of(table):
    return {effect.name: effect.eta_squared for effect in table.effects}


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 4, 3), (5, 2, 1, 3), (2, 3, 4, 2), (3, 3, 2, 5)])
def test_shares_are_those_of_statsmodels(shape):
    values = random_values(*shape) + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    factors = NAMES[: len(shape) - 1]
    rows = [dict(zip(factors, map(str, index), strict=False), y=values[index]) for index in np.ndindex(*shape)]
    used = [name for name, length in zip(factors, shape, strict=False) if length > 1]
    theirs = anova_lm(ols(f"y ~ {' * '.join(f'C({name})' for name in used)}", pd.DataFrame(rows)).fit())["sum_sq"]
    theirs = theirs / theirs.sum()
    table = estimate_effects("y", cells_of(values))
    ours = shares_of(table)
    for name in used:
        assert ours[name] == pytest.approx(theirs[f"C({name})"], abs=1e-12)
    for first, second in itertools.combinations(used, 2):
        assert ours[f"{first} × {second}"] == pytest.approx(theirs[f"C({first}):C({second})"], abs=1e-12)
    if len(used) == 3:
        assert ours[HIGHER_ORDER] == pytest.approx(theirs["C(a):C(b):C(c)"], abs=1e-12)
    assert ours[SEEDS] == pytest.approx(theirs["Residual"], abs=1e-12)


def test_a_two_by_two_by_hand():
    # Cells (two seeds each) 0 2 | 4 6 / 1 3 | 9 11: means 1, 5, 2, 10; grand mean 4.5; N = 8.
    # A: rows 3 and 6, SS = 4 (1.5² + 1.5²) = 18. B: columns 1.5 and 7.5, SS = 4 (3² + 3²) = 72.
    # A × B: 1 - 3 - 1.5 + 4.5 = 1 in each cell but for the sign, SS = 8 · 1² = 8. Seeds: ±1 in each cell, SS = 8.
    # Total 106.
    values = np.array([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 3.0], [9.0, 11.0]]])
    table = estimate_effects("y", cells_of(values))
    assert shares_of(table) == pytest.approx({"a": 18 / 106, "b": 72 / 106, "a × b": 8 / 106, SEEDS: 8 / 106})
    assert (table.num_cells, table.num_seeds, table.note) == (4, 2, "")
    assert table.factors == {"a": ("a0", "a1"), "b": ("b0", "b1")}
    # Within cells: 4 degrees of freedom, MS = 8 / 4 = 2. A: (18 - 1 · 2) / (18 + (8 - 1) · 2) = 16 / 32.
    # B: (72 - 2) / (72 + 14) = 70 / 86. A × B: (8 - 2) / (8 + 14) = 6 / 22.
    omegas = {effect.name: effect.omega_squared for effect in table.effects}
    assert omegas == {
        "a": pytest.approx(0.5), "b": pytest.approx(70 / 86), "a × b": pytest.approx(6 / 22), SEEDS: None,
    }  # fmt: skip
    # Either seed alone: 0 4 | 1 9 has mean 3.5, rows 2 and 5 (SS = 9), columns .5 and 6.5 (36), rest .5² · 4 = 4;
    # A = 9 / 49. 2 6 | 3 11 is the same plus 2, so without either seed A's share is 9 / 49: pseudo-values
    # 2 · 18/106 - 9/49 twice, no spread.
    a = table.effects[0]
    assert (a.low, a.high) == (pytest.approx(36 / 106 - 9 / 49), pytest.approx(36 / 106 - 9 / 49))
    assert "leaving out each of the 2 seeds (jackknife, Student's t with 1 d.f.)" in table.method
    # One seed alone has no spread between seeds, so that share has no interval.
    assert (table.effects[3].low, table.effects[3].high) == (None, None)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(2, 4), min_size=3, max_size=4),
    shift=st.floats(-5, 5),
    scale=st.floats(0.01, 100),
    sign=st.sampled_from([1, -1]),
)
def test_shares_sum_to_one_and_do_not_know_origin_or_unit(shape, shift, scale, sign):
    values = random_values(*shape)
    shares = explain_variance(values, NAMES[: len(shape) - 1])
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share >= 0 for share in shares.values())
    moved = explain_variance(sign * scale * values + shift, NAMES[: len(shape) - 1])
    assert moved == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("factor", [0, 1, 2])
def test_a_pure_main_effect_explains_everything(factor):
    shape = [3, 2, 4, 2]
    values = np.zeros(shape) + np.arange(shape[factor]).reshape([-1 if axis == factor else 1 for axis in range(4)])
    shares = explain_variance(values, NAMES)
    assert shares.pop(NAMES[factor]) == pytest.approx(1.0)
    assert all(share == pytest.approx(0.0, abs=1e-15) for share in shares.values())


def test_pure_interactions_are_told_apart():
    sign = np.array([-1.0, 1.0])
    two = sign[:, None, None, None] * sign[None, :, None, None] * np.ones((2, 2, 2, 2))
    assert explain_variance(two, NAMES)["a × b"] == pytest.approx(1.0)
    three = two * sign[None, None, :, None]
    assert explain_variance(three, NAMES)[HIGHER_ORDER] == pytest.approx(1.0)
    assert explain_variance(sign * np.ones((2, 2, 2, 2)), NAMES)[SEEDS] == pytest.approx(1.0)


def test_noise_alone_has_a_share_of_variance_but_no_omega_squared():
    draw = generator("test", "anova", "noise")
    # b has 3 degrees of freedom of 23, so η² is 3 / 23 on average; the mean of 200 is known to about ± .007.
    effects = [estimate_effects("y", cells_of(draw.normal(size=(3, 4, 2)))).effects[1] for _ in range(200)]
    assert np.mean([effect.eta_squared for effect in effects]) == pytest.approx(3 / 23, abs=0.025)
    assert np.mean([effect.omega_squared for effect in effects]) == pytest.approx(0.0, abs=0.04)


def test_one_seed_has_shares_without_intervals():
    table = estimate_effects("y", cells_of(random_values(3, 4, 1)))
    assert sum(shares_of(table).values()) == pytest.approx(1.0)
    assert SEEDS not in shares_of(table)
    assert {(effect.low, effect.high, effect.omega_squared) for effect in table.effects} == {(None, None, None)}
    assert "one seed, so no interval" in table.method


def test_the_interval_is_the_jackknife_of_scipy():
    values = random_values(2, 3, 5) + np.arange(3)[:, None]
    table = estimate_effects("y", cells_of(values))
    pseudo = [
        5 * effect.eta_squared - 4 * explain_variance(np.delete(values, seed, -1), NAMES[:2])[effect.name]
        for effect in table.effects
        for seed in range(5)
    ]
    for effect, own in zip(table.effects, np.reshape(pseudo, (-1, 5)), strict=True):
        expected = ttest_1samp(own, 0).confidence_interval(0.95)
        assert (effect.low, effect.high) == pytest.approx((max(0, expected.low), min(1, max(0, expected.high))))


@pytest.mark.parametrize("num_seeds", [2, 3, 6])
def test_intervals_cover_the_shares_that_many_seeds_would_show(num_seeds):
    # Effects of two factors and their interaction, noise of variance 1, and a shift of .25 that cells of a seed share.
    draw = generator("test", "anova", "coverage")
    means = np.array([[0.0, 1.0, 2.0, 0.5], [0.3, 1.2, 2.6, 0.5], [0.0, 1.0, 1.7, 0.8]])
    known = explain_variance(np.stack([means, means], axis=-1), NAMES[:2])
    size = ((means - means.mean()) ** 2).mean()
    truth = {name: share * size / (size + 1.25) for name, share in known.items()} | {SEEDS: 1.25 / (size + 1.25)}
    covered = {name: [] for name in truth}
    for _ in range(200):
        noise = draw.normal(size=(3, 4, num_seeds)) + 0.5 * draw.normal(size=num_seeds)
        for name, (low, high) in jackknife_intervals(means[..., None] + noise, NAMES[:2]).items():
            covered[name].append(low <= truth[name] <= high)
    # The standard error of a rate of .95 over 200 draws is .015.
    assert {name: rate for name, hits in covered.items() if hits and (rate := np.mean(hits)) < 0.88} == {}
    assert (SEEDS in [name for name, hits in covered.items() if hits]) == (num_seeds > 2)


def test_seeds_that_agree_have_no_width():
    values = np.repeat(random_values(2, 3, 1), 3, axis=-1)
    table = estimate_effects("y", cells_of(values))
    assert all(
        effect.low == pytest.approx(effect.high) == pytest.approx(effect.eta_squared) for effect in table.effects
    )
    assert shares_of(table)[SEEDS] == 0.0


def test_where_one_seed_makes_all_the_difference_there_is_no_interval():
    values = np.zeros((2, 2, 2))
    values[0, 0, 1] = 1.0
    assert {(effect.low, effect.high) for effect in estimate_effects("y", cells_of(values)).effects} == {(None, None)}


def test_the_level_with_most_missing_cells_is_left_out():
    values = random_values(3, 4, 2)
    holes = values.copy()
    holes[1, 0] = holes[1, 3] = np.nan
    table = estimate_effects("y", cells_of(holes))
    assert table.note == "left out, since cells of them are missing: a a1"
    assert table.factors["a"] == ("a0", "a2")
    assert shares_of(table) == pytest.approx(explain_variance(values[[0, 2]], NAMES[:2]))


def test_a_missing_cell_costs_the_level_with_fewest_values():
    holes = random_values(3, 5, 2)
    holes[0, 4] = np.nan
    # a0 has 5 cells, b4 has 3: b4 goes.
    assert estimate_effects("y", cells_of(holes)).note.endswith("missing: b b4")


def test_a_cell_that_is_not_in_the_design_is_a_missing_one():
    values = random_values(3, 3, 2)
    cells = [cell for cell in cells_of(values) if cell[0] != {"a": "a2", "b": "b2"}]
    table = estimate_effects("y", cells)
    assert shares_of(table) == pytest.approx(explain_variance(values[:2], NAMES[:2]))


def test_a_seed_that_is_missing_once_goes_before_a_level_while_two_stay():
    values = random_values(3, 3, 3)
    values[0, 0, 2] = np.nan
    table = estimate_effects("y", cells_of(values))
    assert (table.num_seeds, table.note) == (2, "left out, since cells of them are missing: seed 2")
    values[1, 1, 1] = np.nan
    table = estimate_effects("y", cells_of(values))
    assert (table.num_seeds, table.num_cells) == (2, 6)
    assert "seed 2, a a1" in table.note


def test_a_seed_that_has_not_run_yet_is_left_out():
    values = random_values(3, 3, 2)
    values[..., 1] = np.nan
    values[0, 0, 1] = 1.0
    table = estimate_effects("y", cells_of(values))
    assert (table.num_cells, table.num_seeds) == (9, 1)


def test_an_axis_that_shrinks_to_one_level_is_no_factor_any_more():
    holes = random_values(2, 3, 2, 2)
    holes[1, :, 0] = holes[1, 0] = np.nan
    table = estimate_effects("y", cells_of(holes))
    assert list(table.factors) == ["b", "c"]
    assert "a a1" in table.note


@pytest.mark.parametrize("measured", [0, 1])
def test_without_a_complete_design_there_is_a_reason_and_no_table(measured):
    holes = np.full((2, 2, 2), np.nan)
    holes[0, 0] = [1.0] * measured + [np.nan] * (2 - measured)
    table = estimate_effects("y", cells_of(holes))
    assert table.effects == ()
    assert table.note.startswith("no two factors with two levels each have all their cells")
    assert ("; left out, since cells of them are missing: " in table.note) == bool(measured)


def test_equal_cells_have_no_variance_to_explain():
    table = estimate_effects("y", cells_of(np.full((2, 2, 2), 0.1)))
    assert (table.effects, table.note) == ((), "all cells have the same value")


def test_one_factor_is_no_design():
    assert estimate_effects("y", cells_of(random_values(3, 2))) is None
    assert estimate_effects("y", cells_of(random_values(3, 1, 2))) is None
    assert estimate_effects("y", []) is None
