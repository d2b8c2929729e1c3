import math

import pytest
from report_fixture import estimate

from statewise.report import numbers
from statewise.report.text import clean, keep_together, to_ascii
from statewise.storage.records import Estimate


@pytest.mark.parametrize(
    ("value", "text"), [(0.448, ".448"), (1.0008, "1.001"), (0.0, ".000"), (-0.0015, "−.002"), (math.nan, "–")]
)
def test_scores_have_three_decimals_and_no_leading_zero(value, text):
    assert numbers.score(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.064, "+.064"), (-0.015, "−.015"), (0.0, ".000"), (-0.0001, "−.000")])
def test_differences_carry_a_sign_even_where_they_round_to_zero(value, text):
    assert numbers.delta(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00956, ".00956"),
        (0.0147, ".0147"),
        (-0.00041, "−.000410"),
        (1.234, "1.23"),
        (0.0, "0"),
        (184_320.0, "184,320"),
        (3.21e14, "3.21 × 10¹⁴"),
        (2e-7, "2.00 × 10⁻⁷"),
        (math.inf, "–"),
    ],
)
def test_quantities_have_three_significant_digits_and_counts_all_of_theirs(value, text):
    assert numbers.quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (41.3, "41 s"), (59.7, "1 min 0 s"), (312.4, "5 min 12 s"), (4330.0, "1 h 12 min")],
)
def test_durations_use_their_two_largest_units(seconds, text):
    assert numbers.duration(seconds) == text


def test_a_missing_bound_is_said_in_words():
    assert numbers.interval(None, 0.1) == "no interval"
    assert numbers.interval(-0.01, 0.034, is_delta=True) == "[−.010, +.034]"


def test_an_interval_that_touches_zero_or_is_missing_resolves_nothing():
    assert numbers.is_resolved(Estimate(0.02, 0.001, 0.04, 10, 1, ""))
    assert not numbers.is_resolved(Estimate(0.02, 0.0, 0.04, 10, 1, ""))
    assert not numbers.is_resolved(Estimate(0.02, None, None, 10, 1, ""))
    assert not numbers.is_resolved(Estimate(0.98, 0.9, 1.06, 10, 1, ""), null=1.0)


def test_the_data_that_would_resolve_a_difference_grow_with_the_square_of_its_smallness():
    # half-width 0.03 at a difference of 0.01: (0.03 / 0.01)^2 = 9 times the data.
    assert numbers.data_factor(estimate(0.01, 0.03)) == pytest.approx(9.0)
    assert numbers.data_factor(estimate(-0.01, 0.03)) == pytest.approx(9.0)
    assert numbers.data_factor(estimate(0.03, 0.01)) is None
    assert numbers.data_factor(estimate(0.0, 0.01)) == math.inf
    assert [numbers.factor(f) for f in (6.25, 56.25, 1e4)] == ["6.2 ×", "56 ×", "more than 100 ×"]


def test_escape_sequences_control_characters_and_bidirectional_overrides_are_removed():
    assert clean("a\x1b[31mred\x1b[0m\x07 b\x9b\u202ec\u200b\nd\te") == "ared bc d e"
    assert clean("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\") == "link"
    assert clean("lone \ud800 surrogate").encode() == b"lone surrogate"


def test_ordinary_letters_of_any_script_stay():
    assert clean("Müller 漢字 × −.5") == "Müller 漢字 × −.5"


def test_running_text_does_not_break_inside_an_interval():
    assert keep_together("+.1 [.0, .2] (n = 5)") == "+.1 [.0,\u00a0.2] (n\u00a0=\u00a05)"


def test_ascii_text_keeps_signs_and_powers():
    assert to_ascii("−.5 × 10¹⁵ – 漢") == "-.5 x 10^15 - ?"
