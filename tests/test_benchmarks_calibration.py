"""The calibration runs, and docs/statistics.md holds what it wrote: every table, nothing typed by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "calibration.py"


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frame(text):
    """The titles, heads and first cells of the tables in `text`: what does not depend on the number of draws."""
    lines = [line for line in text.splitlines() if line.startswith(("| ", "**"))]
    return [line if line.startswith("**") else line.split("|")[1].strip() for line in lines]


def test_the_page_holds_the_tables_that_the_calibration_writes(calibration):
    page = calibration.PAGE.read_text(encoding="utf-8")
    written = page.split(calibration.BEGIN)[1].split(calibration.END)[0]
    found = calibration.calibrate(1, 1)
    assert frame(written) == frame(found)
    assert f"`uv run python benchmarks/calibration.py`: {calibration.FULL[0]} draws a row" in written


def test_the_truth_of_the_calibration_is_the_mean_of_many_draws(calibration):
    rng = np.random.default_rng(0)
    ease = calibration.ease_of(rng, 40_000, 0.7)
    answers, _ = calibration.draw(rng, ease, -0.5, 50, 0.4)
    # 50 seeds of SD .4 move the score by about .4 · .2 / √50 = .011.
    assert answers.mean() == pytest.approx(calibration.truth(0.7, -0.5, 0.4), abs=0.025)
    assert (ease > 0).mean() == pytest.approx(0.7, abs=0.01)
