"""Errors name the nearest right word."""

from __future__ import annotations

from statewise.errors import StatewiseError, UsageError, unknown


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    error = unknown("signal", "imitat", ["reward", "imitate"], "study.toml:12")
    assert str(error) == "study.toml:12: unknown signal 'imitat'. Did you mean 'imitate'? Known: imitate, reward."
    assert isinstance(error, UsageError)
    assert isinstance(error, StatewiseError)


def test_a_name_far_from_all_gets_no_suggestion_and_needs_no_place():
    assert str(unknown("signal", "zzz", ["imitate"])) == "unknown signal 'zzz'. Known: imitate."
