import dataclasses
import io
import re

import pytest
from report_fixture import diverged, fake_study, replace_run, run_named
from rich.console import Console

from statewise.report.terminal import render_terminal


def printed(summary, width=100, *, color=False, encoding="utf-8"):
    binary = io.BytesIO()
    stream = io.TextIOWrapper(binary, encoding=encoding)
    render_terminal(
        summary,
        Console(file=stream, width=width, force_terminal=color, color_system="truecolor" if color else None),
    )
    stream.flush()
    return binary.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_number_is_cut_off_at_any_width(width):
    text = printed(fake_study(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in (".448", ".512", "+.064", "−.072", ".00956", ".0147", ".826"):
        assert number in text
    assert re.search(r"\[\.491,( ?\.533\]|)", text)
    assert ("Left out" in text) == (width == 60)  # a distance of drift


def test_the_scores_fit_one_table_at_80_columns():
    assert printed(fake_study(), 80).count("retention\n") == 1


def test_unresolved_differences_are_marked_without_colour():
    text = printed(fake_study())
    assert "−.002 n.r." in text
    assert "n.r. = not resolved" in text
    assert "+.064 n.r." not in text


def test_verdicts_come_with_contrast_interval_n_and_test():
    study = fake_study()
    first = dataclasses.replace(study.hypotheses[0], p_adjusted=0.012)
    text = " ".join(printed(dataclasses.replace(study, hypotheses=(first, *study.hypotheses[1:]))).split())
    assert "● holds stress forgets p = .012" in text
    assert "F(stress SFT) − F(mild SFT): +.065 [+.048, +.082], n = 400, 3 seeds." in text
    assert "◐ not resolved on-policy keeps" in text
    # half-width .015 at .006: (.015 / .006)^2 = 6.25
    assert "would need at least 6.2 × the data" in text
    assert "Test: exact permutation of runs, Spearman" in text


def test_methods_are_printed_in_the_words_of_the_estimates():
    assert "scores: cluster bootstrap over items" in printed(fake_study(), 200)


def test_a_diverged_arm_is_a_row_and_a_problem():
    summary = fake_study()
    text = printed(replace_run(summary, "stress_sft", diverged(run_named(summary, "stress_sft"))))
    assert "! stress SFT: diverged" in text
    assert "without numbers: stress SFT" in " ".join(text.split())


def test_names_can_neither_send_escape_sequences_nor_markup():
    summary = fake_study()
    run = dataclasses.replace(run_named(summary, "rl"), label="RL \x1b[2J[bold red]x[/]\u202e")
    text = printed(replace_run(summary, "rl", run), 120)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold red]x[/]" in text


def test_an_ascii_terminal_gets_ascii():
    text = printed(fake_study(), encoding="ascii")
    assert "[-.017, +.013]" in text
    assert "* holds" in text


def test_an_empty_study_prints():
    empty = {"columns": {}, "target": "", "retention": (), "runs": (), "hypotheses": (), "problems": ()}
    summary = dataclasses.replace(fake_study(), **empty, description="")
    assert "0 post-trained runs." in printed(summary)
