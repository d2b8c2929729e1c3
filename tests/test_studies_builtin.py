"""The built-in studies in their quick size: they end, and what they promise about states and factors holds."""

from __future__ import annotations

import pytest

from statewise.plan.request import StudyRequest, plan_study
from statewise.report.page import write_report
from statewise.run.run import run_study
from statewise.storage import records

QUICK_SECONDS = 120  # the promise of `--quick` on two cores; planned, since a test machine may be busy


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Run a built-in study in its quick size, once; returns folder and summary."""
    done = {}

    def run(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            outcome, summary = run_study(plan_study(StudyRequest(name, is_quick=True)), folder, lambda event: None, 2)
            assert not outcome.failed
            done[name] = folder, summary
        return done[name]

    return run


def trained(folder, arm):
    return records.read_json(folder / "arms" / arm / "0" / "train.json")


@pytest.mark.parametrize("name", ["settle", "grid", "one-step", "hybrid", "locality"])
def test_a_quick_study_ends_with_every_arm_and_a_report(quick, name):
    folder, summary = quick(name)
    assert {run.arm for run in summary.runs} == {"base", *plan_study(StudyRequest(name, is_quick=True)).config.arms}
    assert all(run.num_seeds == 1 and not run.num_diverged for run in summary.runs)
    page = write_report(summary, folder).read_text(encoding="utf-8")
    assert "<svg" in page
    assert "Planned and realised budgets" in page or "budget" in page.lower()


def test_signals_of_a_column_are_trained_on_the_recorded_states(quick):
    folder, summary = quick("settle")
    for recorded in ("sft", "rl"):
        column = [run.arm for run in summary.runs if run.levels.get("source") == f"{recorded}-states"]
        assert len(column) == 4  # imitate, continuation, reverse-kl, reward
        hashes = {trained(folder, arm)["state_hash"] for arm in [recorded, *column]}
        assert len(hashes) == 1
    own = {trained(folder, run.arm)["state_hash"] for run in summary.runs if run.levels.get("source") == "own-states"}
    assert len(own) == 4


def test_the_recorded_loss_on_the_recorded_states_gives_the_recorded_weights(quick):
    # The same states, loss and rate from the same start: nothing is left that could differ, so no byte does.
    folder, _ = quick("settle")
    for arm, replay in (("sft", "sft-states.imitate.3e-4"), ("rl", "rl-states.reward.3e-4")):
        one, other = trained(folder, arm), trained(folder, replay)
        assert one["state_hash"] == other["state_hash"]
        assert one["weights_sha256"] == other["weights_sha256"]
    assert trained(folder, "rl-states.imitate.3e-4")["weights_sha256"] != trained(folder, "rl")["weights_sha256"]


@pytest.mark.parametrize("name", ["settle", "grid", "one-step", "hybrid", "locality"])
def test_a_built_in_study_is_planned_within_its_time(name):
    from statewise.plan.estimate import estimate_plan

    assert estimate_plan(plan_study(StudyRequest(name, is_dry=True)), 2).wall_s < 45 * 60
    assert estimate_plan(plan_study(StudyRequest(name, is_quick=True, is_dry=True)), 2).wall_s < QUICK_SECONDS
