import dataclasses
import re
from xml.etree import ElementTree

import pytest
from report_fixture import Page, diverged, fake_study, replace_run, run_named, trained

from statewise.drift.measure import DriftValue
from statewise.drift.over_seeds import over_seeds
from statewise.report import figures, sentences, tables
from statewise.report.page import render_page, write_report
from statewise.report.summary_json import summary_from_json
from statewise.storage.records import DriftEstimate, Estimate


def test_the_page_is_well_formed_and_its_ids_are_unique():
    page = Page(render_page(fake_study()))
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    for _, key, value in page.attributes:
        if key == "href":
            assert value.removeprefix("#") in ids


def test_the_page_loads_nothing_and_forbids_loading():
    text = render_page(fake_study())
    page = Page(text)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    assert ("meta", "content", policy) in page.attributes
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for _, key, value in page.attributes if key in ("src", "href") and not value.startswith("#")]
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_same_summary_gives_the_same_bytes():
    assert render_page(fake_study()) == render_page(fake_study())


def test_every_string_of_the_summary_is_escaped_and_cleaned():
    evil = "<script>alert(1)</script>\x1b[31m\u202e\"'&"
    summary = fake_study()
    run = dataclasses.replace(run_named(summary, "rl"), label=evil, recipe=evil, budget={evil: 1.0})
    hypothesis = dataclasses.replace(
        summary.hypotheses[0], name=evil, statement=evil, verdict=evil, test=evil, note=evil
    )
    summary = dataclasses.replace(
        replace_run(summary, "rl", run),
        name=evil,
        description=evil,
        columns=dict.fromkeys(summary.columns, evil),
        protocols={evil: evil},
        hypotheses=(hypothesis,),
        environment={evil: evil},
        reference_label=evil,
        reference_headings=(evil,),
        reference_rows=((evil,),),
        problems=(evil,),
    )
    text = render_page(summary)
    assert "script" not in Page(text).tags
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("label", [r"$\frac{1}$ 漢", "_hidden", "x" * 70])
def test_dollar_signs_underscores_and_length_do_not_change_a_name(label):
    summary = fake_study()
    run = dataclasses.replace(run_named(summary, "rl"), label=label)
    summary = replace_run(summary, "rl", run)
    assert f">{label if len(label) < 27 else 'x' * 25 + '…'}</text>" in figures.forest_figure(summary)
    assert f">{label if len(label) < 57 else 'x' * 55 + '…'}</text>" in figures.gain_figure(summary)


def test_the_answer_states_scope_and_outcome():
    text = Page(render_page(fake_study())).text
    assert "The base model and 5 post-trained runs, 3 seeds each. Target: Pocket Math (n = 1,000)" in text
    for sentence in sentences.answer(fake_study()):
        assert sentence in text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_hypothesis_of_one_seed_is_about_these_weights_and_says_so():
    summary = fake_study()
    for num_seeds, words in ((1, "about these weights alone"), (2, "Run at least three"), (3, "")):
        hypothesis = summary.hypotheses[0]
        contrasts = {name: dataclasses.replace(e, num_seeds=num_seeds) for name, e in hypothesis.contrasts.items()}
        shown = dataclasses.replace(summary, hypotheses=(dataclasses.replace(hypothesis, contrasts=contrasts),))
        assert words in sentences.scope_of_hypothesis(shown.hypotheses[0])
        assert words in Page(render_page(shown)).text
        assert ("of the weights of one seed" in sentences.answer(shown)[2]) == (num_seeds == 1)


def test_hypotheses_print_their_adjusted_p_their_level_and_their_family():
    summary = fake_study()
    hypotheses = []
    for hypothesis in summary.hypotheses:
        contrasts = {name: dataclasses.replace(e, level=0.9875) for name, e in hypothesis.contrasts.items()}
        hypotheses.append(dataclasses.replace(hypothesis, contrasts=contrasts, p_adjusted=0.012))
    text = Page(render_page(dataclasses.replace(summary, hypotheses=tuple(hypotheses)))).text
    assert "holds p = .012 stress forgets" in text
    assert "[+.048, +.082] 98.8 % interval, n = 400, 3 seeds." in text
    assert "The 4 hypotheses are one family: Holm’s procedure" in text
    assert "held together over the 5 runs, each by Holm’s procedure" in text


def test_a_difference_that_only_its_family_leaves_open_says_so():
    summary = fake_study()
    run = run_named(summary, "mild_sft")
    gain = dataclasses.replace(run.against_base["pocket_math"], p_adjusted=0.08)
    shown = replace_run(
        summary, "mild_sft", dataclasses.replace(run, against_base={**run.against_base, "pocket_math": gain})
    )
    assert "+.064 alone [+.045, +.083]" in Page(render_page(shown)).text
    assert "+.064 [+.045, +.083]" in Page(render_page(summary)).text


def test_unresolved_differences_are_marked_in_text():
    text = render_page(fake_study())
    assert re.search(r'class="unresolved"><span class="value">−\.002</span> <span class="mark">n\.r\.</span>', text)
    assert not re.search(r'\+\.064</span> <span class="mark">', text)


def test_the_reference_is_labelled_as_not_comparable():
    text = Page(render_page(fake_study())).text
    assert "arXiv:2605.22731, Table 2: Qwen3-0.6B-Base, one seed, no intervals" in text
    assert "not comparable with the table above cell by cell" in text
    without = dataclasses.replace(fake_study(), reference_rows=())
    assert "another source" not in render_page(without)


def test_drift_is_shown_with_floor_interval_and_the_p_of_all_seeds():
    text = Page(render_page(fake_study())).text
    assert "noise floor base against base .000410" in text
    assert ".00956 [.00822, .0112] p 2.90 × 10⁻⁶" in text
    assert ".000440 n.r. [.000378, .000515] p .143" in text
    assert "Tests: 25, each at .050 and not adjusted for their number." in text
    assert "drift t interval over seeds" in text  # among the methods


def test_a_run_with_one_rollout_a_prompt_says_that_drift_within_prompts_is_missing():
    summary = fake_study()
    assert "not measured, there was one rollout a prompt" not in Page(render_page(summary)).text
    for run in summary.runs:
        kept = {name: one for name, one in run.drift.items() if name != "within_prompt_mmd"}
        summary = replace_run(summary, run.arm, dataclasses.replace(run, drift=kept))
    assert "MMD² within prompts: not measured, there was one rollout a prompt." in Page(render_page(summary)).text


def test_seeds_that_resolve_a_drift_only_together_resolve_it():
    drift = over_seeds([DriftValue(value, 0.03, p, 40, 160) for value, p in ((0.02, 0.08), (0.05, 0.03), (0.06, 0.04))])
    assert tables.is_drift_resolved(drift)
    assert not tables.is_drift_resolved(dataclasses.replace(drift, p_value=0.05))


def test_drift_of_an_earlier_version_is_shown_as_it_was_measured():
    summary = fake_study()
    old = {"mmd": {"value": 0.01, "low": 0.008, "high": 0.012, "floor": 0.001, "p_values": [0.002, 0.004]}}
    stored = dataclasses.asdict(summary)
    for run in stored["runs"][1:]:
        run["drift"] = old
    text = Page(render_page(summary_from_json(stored))).text
    assert ".0100 n.r. [.00800, .0120] p .002–.004" in text
    assert "drift brackets: smallest and largest seed (an earlier version); p: not combined over seeds" in text


def test_a_diverged_arm_is_named_and_has_no_numbers():
    summary = fake_study()
    summary = replace_run(summary, "opd_stress", diverged(run_named(summary, "opd_stress")))
    text = Page(render_page(summary)).text
    assert "OPD from stress SFT diverged – – – – –" in text
    some = dataclasses.replace(run_named(summary, "rl"), num_seeds=2, num_diverged=1)
    assert "on-policy RL 1 of 3 seeds diverged" in Page(render_page(replace_run(summary, "rl", some))).text


def test_one_seed_says_what_its_intervals_leave_out():
    summary = fake_study()
    run = trained("mild_sft", "mild SFT", (0.064, -0.005, 0.008), 0.00956, "", num_seeds=1)
    run = dataclasses.replace(run, drift={"mmd": DriftEstimate(0.01, None, None, 0.001, p_value=0.01)})
    text = Page(render_page(dataclasses.replace(summary, runs=(summary.runs[0], run), hypotheses=()))).text
    assert "1 post-trained run, 1 seed each." in text
    assert "intervals cover the choice of test items only" in text
    assert "noise floor base against base .00100 mild SFT .0100 p .010 Recipes" in text
    assert "Drift of the states, of one seed and so without an interval; dashed: the noise floor." in text
    assert (
        "Of one seed, which has no interval over seeds, and its p: that the states do not differ from base's." in text
    )
    assert "interval over seeds," not in text.replace("no interval over seeds,", "")
    assert "lines 95 % intervals" not in text


def test_a_teacher_outside_the_study_is_called_by_its_name():
    summary = fake_study()
    run = dataclasses.replace(run_named(summary, "opd_mild"), teacher="elsewhere")
    assert "teacher: elsewhere" in Page(render_page(replace_run(summary, "opd_mild", run))).text


def test_without_teachers_there_is_no_table_of_students():
    runs = tuple(dataclasses.replace(run, teacher=None, against_teacher={}) for run in fake_study().runs)
    assert "Paired differences from the teacher" not in render_page(dataclasses.replace(fake_study(), runs=runs))


def test_a_number_without_an_interval_is_not_resolved():
    summary = fake_study()
    run = dataclasses.replace(run_named(summary, "rl"), forgetting=Estimate(0.01, None, None, 400, 1, "one item set"))
    text = Page(render_page(replace_run(summary, "rl", run))).text
    assert "+.010 n.r. no interval" in text
    assert "one item set" in text


def test_a_study_without_results_still_has_a_page():
    runs = tuple(diverged(run) for run in fake_study().runs)
    page = Page(render_page(dataclasses.replace(fake_study(), runs=runs, hypotheses=())))
    assert "svg" not in page.tags
    assert "Target: Pocket Math (not evaluated)" in page.text


@pytest.mark.parametrize("draw", [figures.gain_figure, figures.drift_figure, figures.forest_figure])
def test_figures_are_themed_labelled_and_the_same_every_time(draw):
    svg = draw(fake_study())
    assert svg == draw(fake_study())
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert "stress SFT" in root.get("aria-label")
    shown = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"mild SFT", "stress SFT", "on-policy RL"} <= shown
    assert "var(--series-1)" in svg
    assert not re.search(r"#0[1-5]0", svg)


def test_figures_without_data_are_left_out():
    runs = tuple(diverged(run) for run in fake_study().runs)
    summary = dataclasses.replace(fake_study(), runs=runs)
    assert figures.gain_figure(summary) is figures.drift_figure(summary) is figures.forest_figure(summary) is None


def test_floors_that_differ_are_all_shown():
    summary = fake_study()
    run = run_named(summary, "rl")
    moved = {key: dataclasses.replace(value, floor=value.floor * 2) for key, value in run.drift.items()}
    summary = replace_run(summary, "rl", dataclasses.replace(run, drift=moved))
    assert ".000410 to .000820" in Page(render_page(summary)).text
    assert "noise floors" in figures.drift_figure(summary)


def test_the_report_is_written_into_its_folder(tmp_path):
    path = write_report(fake_study(), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render_page(fake_study())


@pytest.mark.parametrize(("floor", "anchor"), [(1e-4, "start"), (10.0, "end")])
def test_the_noise_floors_name_is_written_where_there_is_room(floor, anchor):
    summary = fake_study()
    for run in summary.runs:
        moved = {name: dataclasses.replace(value, floor=floor) for name, value in run.drift.items()}
        summary = replace_run(summary, run.arm, dataclasses.replace(run, drift=moved))
    figure = figures.drift_figure(summary)
    label = next(line for line in figure.splitlines() if "noise floor" in line and "<text" in line)
    assert f"text-anchor: {anchor}" in label or (anchor == "start" and "text-anchor" not in label)
