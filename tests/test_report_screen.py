"""The last screen of a run: three sentences, scores, hypotheses, problems; right for studies of every shape."""

from __future__ import annotations

import dataclasses
import io

import pytest
from report_fixture import diverged, fake_design, fake_study, replace_run, run_named
from rich.console import Console

from statewise.report import numbers, sentences
from statewise.report.screen import outcome_table, render_screen
from statewise.storage.records import Estimate, Largest


def printed(summary, width=80):
    stream = io.StringIO()
    render_screen(summary, Console(file=stream, width=width))
    return stream.getvalue()


def flat(text):
    return " ".join(text.split())


def largest_of(summary, response, value, *arms, num_runs=5):
    """The study with a largest gain or F that is `value`."""
    found = Largest(response, arms, Estimate(value, value - 0.02, value + 0.02, 400, 3, "", level=0.99), num_runs)
    others = tuple(one for one in summary.largest if one.response != response)
    return dataclasses.replace(summary, largest=(found, *others))


def only(summary, *arms):
    """The study of these arms beside base, with the largest of each number among them."""
    runs = tuple(run for run in summary.runs if run.arm in ("base", *arms))
    trained = runs[1:]
    found = []
    for response, values in (
        ("gain", {run.arm: run.against_base["pocket_math"] for run in trained if run.against_base}),
        ("forgetting", {run.arm: run.forgetting for run in trained if run.forgetting}),
    ):
        if values:
            arm = max(values, key=lambda arm: values[arm].value)
            found.append(Largest(response, (arm,), values[arm], len(values)))
    return dataclasses.replace(summary, runs=runs, largest=tuple(found), hypotheses=(), problems=())


def test_the_answer_is_the_largest_gain_and_f_with_what_stands_beside_them_and_what_is_open():
    gained, forgot, undecided = sentences.answer(fake_study())
    # mild SFT: gain +.064, F (.005 − .008) / 2 = −.0015 ± .015.
    assert gained == (
        "Largest gain on Pocket Math: mild SFT, +.064 [+.045, +.083] (99 % interval, for all 5 runs at once), beside F "
        "−.002 [−.017, +.013], not resolved."
    )
    assert forgot == (
        "Largest mean forgetting F: stress SFT, +.064 [+.049, +.079] (99 % interval, for all 5 runs at once), beside "
        "gain −.028 [−.047, −.009]; the runs differ in gain, so their F are not compared at equal gain."
    )
    # Gains .018 and .024 ± .019: one is resolved. F .0635, .0155 ± .015 are, those of the others are not.
    assert undecided == (
        "Of 4 hypotheses put to the test: 2 hold, 1 does not hold, 1 is not resolved; 1 of 5 gains and 3 of 5 F are "
        "not resolved."
    )


def test_a_number_that_only_its_family_leaves_open_is_counted_as_open_and_said_to_be():
    summary = fake_study()
    run = run_named(summary, "mild_sft")
    lost = dataclasses.replace(run.forgetting, value=0.02, low=0.005, high=0.035, p_adjusted=0.08)
    gain = dataclasses.replace(run.against_base["pocket_math"], p_adjusted=0.001)
    run = dataclasses.replace(run, forgetting=lost, against_base={**run.against_base, "pocket_math": gain})
    gained, _, undecided = sentences.answer(replace_run(summary, "mild_sft", run))
    assert gained.endswith("beside F +.020 [+.005, +.035], resolved alone but not among all runs.")
    assert undecided.endswith("3 of 5 F are not resolved, all runs held together.")


def test_no_gain_and_no_forgetting_are_said_to_be_none():
    told = sentences.answer(largest_of(fake_study(), "gain", -0.002, "rl"))[0]
    assert told.startswith(
        "No run improved Pocket Math; largest gain on Pocket Math: on-policy RL, −.002 [−.022, +.018] (99 % interval, "
        "for all 5 runs at once), not resolved, beside F "
    )
    told = sentences.answer(largest_of(fake_study(), "forgetting", 0.0, "opd_mild", "rl"))[1]
    assert told.startswith(
        "No run forgot on average; largest mean forgetting F: .000 [−.020, +.020] (99 % interval, for all 5 runs at "
        "once), not resolved, a tie of 2 runs (OPD from mild SFT, on-policy RL)"
    )


def test_one_arm_is_not_the_largest_of_several():
    gained, forgot, undecided = sentences.answer(only(fake_study(), "stress_sft"))
    assert gained == (
        "No run improved Pocket Math; gain on Pocket Math: stress SFT, −.028 [−.047, −.009] (95 % interval), beside F "
        "+.064 [+.049, +.079]."
    )
    assert forgot == "Mean forgetting F: stress SFT, +.064 [+.049, +.079] (95 % interval)."
    assert undecided == "0 of 1 gains and 0 of 1 F are not resolved."


def test_a_study_without_retention_says_that_forgetting_was_not_measured():
    summary = dataclasses.replace(only(fake_study(), "rl", "mild_sft"), retention=())
    runs = tuple(dataclasses.replace(run, forgetting=None, retention_ratio=None) for run in summary.runs)
    gained, forgot, undecided = sentences.answer(dataclasses.replace(summary, runs=runs, largest=summary.largest[:1]))
    assert "beside F" not in gained
    assert forgot == "Forgetting was not measured: the study retains no task."
    assert undecided == "0 of 2 gains are not resolved."


def test_a_gain_without_an_interval_is_said_to_have_none():
    bare = Estimate(0.5, None, None, 400, 3, "scores outside of 0..1 have no known range")
    summary = dataclasses.replace(fake_study(), largest=(Largest("gain", ("rl",), bare, 5),))
    told = sentences.answer(summary)[0]
    assert told.startswith("Largest gain on Pocket Math: on-policy RL, +.500 no interval, not resolved, beside F ")


def test_arms_that_failed_or_diverged_are_named_and_never_counted():
    summary = only(fake_study(), "mild_sft", "rl")
    one = replace_run(summary, "rl", diverged(run_named(summary, "rl")))
    one = dataclasses.replace(one, largest=only(one, "mild_sft").largest)
    gained, forgot, undecided = sentences.answer(one)
    assert gained.startswith("Gain on Pocket Math: mild SFT, +.064")
    assert "mean forgetting F: mild SFT, −.002" in forgot
    assert undecided == "0 of 1 gains and 1 of 1 F are not resolved; without numbers: on-policy RL."
    some = dataclasses.replace(run_named(summary, "rl"), num_seeds=2, num_diverged=1)
    told = sentences.answer(replace_run(summary, "rl", some))[2]
    assert told.endswith("in some seeds diverged: on-policy RL.")
    text = printed(replace_run(summary, "rl", some))
    assert "1 of 3 seeds" in text and "on-policy RL: 1 of 3 seeds diverged" in text


def test_a_run_without_any_scores_has_no_answer_and_says_why():
    summary = fake_study()
    for run in summary.runs[1:]:
        summary = replace_run(summary, run.arm, diverged(run))
    summary = dataclasses.replace(summary, largest=(), hypotheses=())
    gained, forgot, undecided = sentences.answer(summary)
    assert gained == "No gain was measured: no run was evaluated beside the base model."
    assert forgot == "Forgetting was not measured: no run was evaluated beside the base model."
    assert undecided.startswith("Without numbers: mild SFT, stress SFT, OPD from mild SFT, OPD from stress SFT and 1 m")
    assert "diverged" in printed(summary)


def test_an_older_summary_that_names_no_largest_run_does_not_say_that_nothing_was_measured():
    gained, forgot, _ = sentences.answer(dataclasses.replace(fake_study(), largest=()))
    assert gained == forgot == sentences.NOT_RECORDED


def test_one_seed_leaves_another_training_open():
    summary = only(fake_study(), "rl")
    run = dataclasses.replace(run_named(summary, "rl"), num_seeds=1)
    assert sentences.answer(replace_run(summary, "rl", run))[2].endswith(
        "; one seed a run, so nothing is said of another training."
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_has_the_answer_the_scores_the_hypotheses_the_problems_and_no_more(width):
    summary = fake_study()
    text = printed(summary, width)
    assert max(map(len, text.splitlines())) <= width
    for sentence in sentences.answer(summary):
        assert sentence in flat(text)
    assert text.index("Largest gain") < text.index("Scores and forgetting") < text.index("\nHypotheses")
    assert text.index("\nHypotheses") < text.index("\nProblems")
    for run in summary.runs:
        assert run.label.split()[-1] in text
    assert "holds stress forgets: +.065 [+.048, +.082]" in flat(text)
    assert "n.r. = not resolved" in text
    assert "alone =" not in text
    for rest in ("Drift of", "Paired differences", "budget", "Test:", "would need", "Clopper"):
        assert rest not in text


def test_the_screen_of_six_runs_fits_a_terminal_of_44_lines():
    assert len(printed(fake_study()).splitlines()) <= 44


def test_a_hypothesis_of_several_contrasts_tells_the_lowest_and_the_highest():
    assert "on-policy keeps: 2 contrasts, +.002 [−.013, +.017] to +.006 [−.009, +.021]" in flat(printed(fake_study()))
    summary = fake_study()
    hypothesis = dataclasses.replace(summary.hypotheses[0], margin=0.02)
    with_margin = dataclasses.replace(summary, hypotheses=(hypothesis,))
    assert "+.065 [+.048, +.082], margin +.020" in flat(printed(with_margin, 120))
    unmeasured = dataclasses.replace(hypothesis, contrasts={}, verdict="not resolved", margin=0.0)
    assert "not resolved stress forgets: not measured" in flat(
        printed(dataclasses.replace(summary, hypotheses=(unmeasured,)))
    )


def test_of_many_runs_those_with_the_largest_gains_are_shown_and_the_run_that_forgot_most():
    design = fake_design()
    summary = dataclasses.replace(
        only(design, *(run.arm for run in design.runs)), effects=(), problems=tuple(f"problem {n}" for n in range(9))
    )
    trained = summary.runs[1:]
    gains = sorted((run.against_base["pocket_math"].value for run in trained), reverse=True)
    table = outcome_table(summary)
    assert table.caption.startswith(f"The 12 largest gains of {len(trained)} runs and the largest F.")
    assert [row.cells[0].text for row in table.rows[1:13]] == [numbers.delta(gain) for gain in gains[:12]]
    assert [row.cells[1].text for row in table.rows[13:]] == ["+.055"]  # (.06 + .02 + .03) / 2
    text = flat(printed(summary, 120))
    assert "problem 5" in text and "problem 6" not in text and "and 3 more" in text


def test_an_empty_study_prints():
    empty = {"columns": {}, "target": "", "retention": (), "runs": (), "hypotheses": (), "problems": ()}
    text = printed(dataclasses.replace(fake_study(), **empty, largest=()))
    assert "No gain was measured" in text
    assert "Nothing was measured." in text
