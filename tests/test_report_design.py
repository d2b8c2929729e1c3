"""A factorial design in the report: its cells, effect sizes, training states, budgets; and a report of many runs."""

from __future__ import annotations

import dataclasses
import io
import re
from xml.etree import ElementTree

import pytest
from report_fixture import RATES, SIGNALS, SOURCES, Page, diverged, fake_design, fake_study, replace_run, run_named
from rich.console import Console

from statewise.report import design, figures, sentences, tables
from statewise.report.page import render_page
from statewise.report.summary_json import summary_from_json
from statewise.report.terminal import render_terminal
from statewise.storage.records import EffectTable, Estimate

SMALL = {"sources": SOURCES[:3], "signals": SIGNALS[:3], "rates": RATES[:1]}


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def without(summary, *arms):
    return dataclasses.replace(summary, runs=tuple(run for run in summary.runs if run.arm not in arms))


def diverged_cell(run):
    return dataclasses.replace(diverged(run), levels=run.levels)


def printed(summary, width=100):
    stream = io.StringIO()
    render_terminal(summary, Console(file=stream, width=width))
    return stream.getvalue()


def flat(text):
    return " ".join(text.split())


def section_of(summary):
    """The part of the page that shows the cells."""
    return ElementTree.fromstring(re.search(r'<section id="cells">.*?</section>', render_page(summary), re.DOTALL)[0])


def cells_of(summary):
    """Side of 0, strength of the colour in percent, and words of every cell on the page; hollow ones start with "|"."""
    found = [cell for panels in section_of(summary).findall("div[@class='panels']") for cell in panels.iter("td")]
    return [
        (
            cell.get("data-side"),
            int((cell.get("style") or "0").removeprefix("--tint: ").removesuffix("%")),
            "|" * (cell.get("class") == "unresolved") + " ".join(" ".join(cell.itertext()).split()),
        )
        for cell in found
    ]


def colours(text):
    """The page's colours in the light and in the dark theme, as red, green and blue, 0..1."""
    themes = [
        re.findall(r"--([a-z0-9-]+): #([0-9a-f]{6});", block) for block in re.findall(r":root \{(.*?)\}", text, re.S)
    ]
    return [{name: [int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for name, code in theme} for theme in themes]


def contrast(one, other):
    """Contrast of two colours as WCAG 2 defines it, 1..21."""
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour] for colour in (one, other)]
    darker, lighter = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_page_and_the_terminal_print_the_same_cells():
    summary = fake_design()
    panels = tables.cross_tables(summary)
    shown = [text for _, _, text in cells_of(summary)]
    assert shown == [
        f"|{cell.text} {cell.mark}" if cell.mark else cell.text
        for panel in panels
        for row in panel.rows
        for cell in row.cells
    ]
    assert "+.120" in shown  # own, reward, 1e-4: .03 · 2 + .02 · 3
    terminal = printed(summary)
    assert all(text.removeprefix("|") in terminal for text in shown)
    by_response = section_of(summary).findall("div[@class='panels']")
    titles = [[caption.findtext("span") for caption in panels.iter("caption")] for panels in by_response]
    assert titles == [
        ["Gain on Pocket Math, lr 1e-4", "Gain on Pocket Math, lr 1e-3"],
        ["Mean forgetting F, lr 1e-4", "Mean forgetting F, lr 1e-3"],
    ]


def test_a_cell_that_is_not_resolved_is_hollow_and_says_so():
    summary = fake_design(SOURCES[:2], SIGNALS[:2], RATES[:1])
    clear = {"pocket_math": Estimate(0.1, 0.05, 0.15, 100, 3, "m")}
    for run in tables.trained_runs(summary):
        run = dataclasses.replace(run, against_base=clear, forgetting=clear["pocket_math"])
        summary = replace_run(summary, run.arm, run)
    assert cells_of(summary) == [("above", 50, "+.100")] * 8
    unclear = {"pocket_math": Estimate(0.1, -0.05, 0.25, 100, 3, "m")}
    run = dataclasses.replace(run_named(summary, "dataset.imitate.1e-4"), against_base=unclear)
    first, *others = cells_of(replace_run(summary, run.arm, run))
    assert first == ("above", 50, "|+.100 n.r.")
    assert others == [("above", 50, "+.100")] * 7
    assert "[data-side].unresolved { background: none; box-shadow: " in render_page(summary)


def test_a_cell_without_a_number_says_why_and_has_no_colour():
    summary = fake_design(**SMALL)
    summary = replace_run(summary, "teacher.expert.1e-4", diverged_cell(run_named(summary, "teacher.expert.1e-4")))
    partly = dataclasses.replace(run_named(summary, "teacher.imitate.1e-4"), num_diverged=1)
    waiting = dataclasses.replace(run_named(summary, "dataset.expert.1e-4"), against_base={}, forgetting=None)
    for run in (partly, waiting):
        summary = replace_run(summary, run.arm, run)
    shown = cells_of(without(summary, "dataset.imitate.1e-4"))
    for text in ("diverged", "no score", "–"):
        assert shown.count((None, 0, text)) == 2, text
    assert [text for _, _, text in shown if text.endswith(" 1 diverged")] == ["−.020 1 diverged", "+.033 1 diverged"]


def test_colour_is_centred_at_zero_and_its_strength_is_the_share_of_the_largest():
    gains = {text: (side, tint) for side, tint, text in cells_of(fake_design())[:50]}
    # The largest of both panels is .120, at 6 % + 44 %; .060 is half of it: 6 % + 22 %.
    assert gains["+.120"] == ("above", 50)
    assert gains["+.060"] == ("above", 28)
    assert gains["−.060"] == ("below", 28)
    assert gains["−.110"] == ("below", 46)  # 6 + 44 · 11/12 = 46.3
    assert gains["|.000 n.r."] == (None, 0)
    assert max(tint for _, tint, _ in cells_of(fake_design())[50:]) == 50


def test_every_cell_can_be_read_in_the_light_and_in_the_dark():
    summary = fake_design()
    partly = dataclasses.replace(run_named(summary, "own.reward.1e-4"), num_diverged=1)
    summary = replace_run(summary, partly.arm, partly)
    text = render_page(summary)
    for rule in (
        "[data-side=above] { --colour: var(--series-1); }",
        "[data-side=below] { --colour: var(--series-2); }",
        "[data-side] { background: color-mix(in srgb, var(--colour) var(--tint), var(--panel));",
        "[data-side] .line { color: inherit; }",
        ".unresolved .value { color: var(--soft);",
    ):
        assert rule in text
    light, dark = colours(text)
    for theme in (light, dark):
        for side, tint, shown in cells_of(summary):
            colour = theme["series-1" if side == "above" else "series-2"]
            share = 0 if shown.startswith("|") else tint / 100
            ground = [share * one + (1 - share) * other for one, other in zip(colour, theme["panel"], strict=True)]
            assert contrast(theme["ink"], ground) >= 4.5, shown
            assert share or contrast(theme["soft"], ground) >= 4.5, shown
            assert share or contrast(colour, ground) >= 3, "the outline of a hollow cell"


def test_the_caption_names_the_axes():
    caption = section_of(fake_design()).findtext("p")
    assert caption.startswith("Rows: source, columns: signal, panels: lr. ")
    assert section_of(fake_design(**SMALL)).findtext("p").startswith("Rows: source, columns: signal. ")


@pytest.mark.parametrize(
    "summary",
    [
        fake_study(),
        fake_design(SOURCES, SIGNALS[:1], RATES[:1]),
        dataclasses.replace(
            fake_design(**SMALL), runs=tuple(diverged_cell(run) for run in fake_design(**SMALL).runs), effects=()
        ),
    ],
    ids=["no levels", "one axis", "no numbers"],
)
def test_without_two_axes_or_numbers_there_are_no_cells(summary):
    assert tables.cross_tables(summary) == []
    assert 'class="panels"' not in render_page(summary)


def test_axes_with_one_level_are_no_axes():
    assert list(design.axes_of(fake_design(**SMALL))) == ["source", "signal"]


def test_the_page_of_a_design_has_its_section_and_is_well_formed():
    page = Page(render_page(fake_design()))
    assert "source × signal × lr" in page.text
    assert ("a", "href", "#cells") in page.attributes
    assert ("div", "class", "panels") in page.attributes
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert "cells" not in {value for _, key, value in Page(render_page(fake_study())).attributes if key == "id"}
    assert render_page(fake_design()) == render_page(fake_design())


def test_levels_are_escaped_and_cleaned():
    evil = "<script>x</script>\x1b[31m\u202e\"'&"
    text = render_page(fake_design((evil, "b"), (evil, "$\\frac{1}$"), (evil, "d")))
    assert "script" not in Page(text).tags
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x1b" not in printed(fake_design((evil, "b"), (evil, "c"), (evil, "d")))


def test_effect_sizes_are_shown_with_intervals_method_and_what_is_left_out():
    table = tables.effect_table(fake_design())
    assert table.headings == ("gain η²", "gain ω²", "forgetting η²", "forgetting ω²")
    first, *_, last = table.rows
    assert (first.label, first.cells[0].text, first.cells[0].interval) == ("source", ".410", "[.390, .440]")
    assert first.cells[1].text == ".891"  # .41 / .46
    assert (last.label, last.cells[1]) == ("between seeds", tables.EMPTY)
    assert "gain: 50 cells × 3 seeds; forgetting: 50 cells × 3 seeds. " in table.caption
    assert table.caption.count("by leaving out each of the 3 seeds") == 1
    assert table.caption.endswith("forgetting: left out, since cells of them are missing: signal reward.")
    assert "Effect sizes" in printed(fake_design())
    assert tables.effect_table(fake_study()) is None


def test_without_effect_sizes_the_reason_is_told():
    none = EffectTable("gain", {}, 0, 3, (), "", "all cells have the same value")
    summary = dataclasses.replace(fake_design(**SMALL), effects=(none,))
    assert tables.effect_table(summary) is None
    told = "No effect sizes of gain: all cells have the same value."
    assert told in printed(summary)
    assert told in Page(render_page(summary)).text
    assert sentences.missing_effects(fake_design()) == ""


def test_equal_hashes_have_the_same_letter_within_a_column():
    table = tables.hash_table(fake_design(**SMALL))
    assert table.headings == ("seed 0", "seed 1", "seed 2")
    by_label = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    for one, other in zip(by_label["imitate on dataset, lr 1e-4"], by_label["expert on dataset, lr 1e-4"], strict=True):
        assert one == other
        assert re.fullmatch(r"[0-9a-f]{12} A", one)
    assert all(text.endswith(" B") for text in by_label["imitate on rl-states, lr 1e-4"])
    assert all(re.fullmatch(r"[0-9a-f]{12}", text) for text in by_label["imitate on teacher, lr 1e-4"])
    assert "SFT teacher" not in by_label  # it has no hashes


def test_groups_of_identical_states_are_named_by_their_level_or_their_runs():
    summary = fake_design(**SMALL)
    told = sentences.identical_states(summary)
    assert told == "Trained on identical states: all 3 runs with source dataset; all 3 runs with source rl-states."
    assert told in flat(printed(summary))
    assert told in Page(render_page(summary)).text
    run = run_named(summary, "dataset.expert.1e-4")
    other = dataclasses.replace(run, state_hashes={**run.state_hashes, "2": "ff" * 32})
    assert sentences.identical_states(replace_run(summary, run.arm, other)) == (
        "Trained on identical states: “imitate on dataset, lr 1e-4”, “continuation on dataset, lr 1e-4”; all 3 runs "
        "with source rl-states. Further runs share the states of some seeds but not of all."
    )
    # A seed that diverged has no hash; what is left agrees.
    shorter = dataclasses.replace(run, state_hashes={"0": run.state_hashes["0"]})
    assert "all 3 runs with source dataset" in sentences.identical_states(replace_run(summary, run.arm, shorter))


def test_states_are_shown_for_a_design_and_for_runs_that_share_a_hash():
    def study(levels, *hashes):
        base, first, second, *_ = fake_study().runs
        runs = [
            dataclasses.replace(run, levels=levels, state_hashes={"0": value * 32})
            for run, value in zip((first, second), hashes, strict=True)
        ]
        return dataclasses.replace(fake_study(), runs=(base, *runs))

    assert tables.hash_table(fake_study()) is None
    assert tables.hash_table(study({}, "ab", "cd")) is None
    assert "Training states" not in render_page(study({}, "ab", "cd"))
    assert sentences.identical_states(study({}, "ab", "cd")) == ""
    assert tables.hash_table(study({}, "ab", "ab")) is not None
    assert sentences.identical_states(study({}, "ab", "ab")) == "Trained on identical states: “mild SFT”, “stress SFT”."
    assert sentences.identical_states(study({"a": "x"}, "ab", "cd")) == "No two runs trained on identical states."


def test_letters_go_on_after_the_alphabet():
    runs = [
        dataclasses.replace(fake_study().runs[1], arm=str(index), state_hashes={"0": f"{index // 2:064x}"})
        for index in range(2 * 28)
    ]
    letters = list(design.letters_of(dataclasses.replace(fake_study(), runs=tuple(runs))).values())
    assert letters[:2] + letters[25:] == ["A", "B", "Z", "AA", "AB"]


def test_budgets_stand_as_planned_and_realised():
    table = tables.budget_table(fake_design(**SMALL))
    assert table.title == "Budgets, planned and realised"
    assert table.headings[:5] == ("updates", "trajectories", "states", "loss tokens", "tokens")
    row = next(row for row in table.rows if row.label == "imitate on dataset, lr 1e-4")
    assert [cell.text for cell in row.cells[:5]] == [
        "120 / 120", "1,920 / 1,920", "184,320", "184,320", "398,000 / 401,311",
    ]  # fmt: skip
    assert table.rows[0].cells[0].text == "120"  # nothing planned
    assert tables.budget_table(fake_study()).title == "Realised budgets"


def test_unfinished_answers_stand_with_their_shares():
    answers = {"num_trajectories": 1200, "num_unfinished": 300, "num_rewarded": 80, "num_rewarded_unfinished": 4}
    summary = fake_study()
    ungraded = {"num_trajectories": 10, "num_unfinished": 1}
    runs = [
        dataclasses.replace(run, answers=of) for run, of in zip(summary.runs, [{}, answers, ungraded], strict=False)
    ]
    table = tables.answer_table(dataclasses.replace(summary, runs=tuple(runs)))
    cells = [(cell.text, cell.detail) for cell in table.rows[0].cells]
    assert cells == [("1,200", ""), ("300", ".250 of all"), ("80", ""), ("4", ".050 of rewarded")]
    assert [cell.text for cell in table.rows[1].cells] == ["10", "1", tables.EMPTY.text, tables.EMPTY.text]
    assert "rewarded though unfinished" in render_page(dataclasses.replace(summary, runs=tuple(runs)))
    assert tables.answer_table(summary) is None


def test_unfinished_answers_of_the_evaluation_stand_in_a_table_of_their_own():
    answers = {"num_answers": 1200, "num_unfinished": 60, "num_rewarded": 800, "num_rewarded_unfinished": 16}
    summary = fake_study()
    assert tables.evaluated_answer_table(summary) is None
    runs = (dataclasses.replace(summary.runs[0], evaluated_answers=answers), *summary.runs[1:])
    table = tables.evaluated_answer_table(dataclasses.replace(summary, runs=runs))
    (row,) = table.rows
    cells = [(cell.text, cell.detail) for cell in row.cells]
    assert cells == [("1,200", ""), ("60", ".050 of all"), ("800", ""), ("16", ".020 of rewarded")]
    assert "Unfinished answers in evaluation" in render_page(dataclasses.replace(summary, runs=runs))


def test_budgets_that_are_the_same_for_many_runs_go_into_the_caption():
    summary = without(fake_design(), "sft", "rl")
    table = tables.budget_table(summary)
    assert table.headings == ("tokens",)
    assert "The same for every run: updates 120 / 120, trajectories 1,920 / 1,920, states 184,320," in table.caption
    assert len(table.rows) == 50


def test_flops_and_generated_tokens_are_named():
    run = dataclasses.replace(fake_study().runs[1], budget={"flops_forward": 1e12, "num_generated_base": 3.0})
    table = tables.budget_table(dataclasses.replace(fake_study(), runs=(run,)))
    assert table.headings == ("generated base", "FLOPs forward")


def test_the_points_of_many_runs_have_the_colour_and_shape_of_their_level():
    svg = figures.gain_figure(fake_design())
    assert svg == figures.gain_figure(fake_design())
    shown = texts(svg)
    assert {"base", "other runs", "source dataset", "source own"} <= set(shown)
    assert "imitate on own, lr 1e-4" not in shown
    assert "Colour and shape: source." in render_page(fake_design())
    assert "imitate on teacher, lr 1e-4" in texts(figures.gain_figure(fake_design(**SMALL)))


def test_the_legend_lies_below_the_axes_and_inside_the_figure():
    for summary in (fake_study(), fake_design(**SMALL), fake_design()):
        root = ElementTree.fromstring(figures.gain_figure(summary))
        height = float(root.get("viewBox").split()[3])
        places = {element.text: float(element.get("y")) for element in root.iter() if element.tag.endswith("text")}
        names = list(places)[list(places).index("Gain on Pocket Math") + 1 :]
        assert names[-1] == "base"
        assert places["Gain on Pocket Math"] + 9.5 < min(places[name] for name in names)
        assert max(places[name] for name in names) < height - 5


def test_each_run_that_the_legend_names_has_a_shape_of_its_own_and_base_the_square():
    assert len({*figures.MARKERS, "s"}) == len(figures.MARKERS) + 1 > tables.MOST_LABELS


def test_many_runs_without_levels_are_drawn_alike():
    runs = tuple(dataclasses.replace(run, levels={}) for run in fake_design().runs)
    shown = texts(figures.gain_figure(dataclasses.replace(fake_design(), runs=runs)))
    assert {"base", "other runs"} <= set(shown)
    assert not [text for text in shown if text.startswith("source")]


def test_more_runs_than_a_figure_has_room_for_are_left_to_the_tables():
    summary = fake_design()
    assert figures.forest_figure(summary) is figures.drift_figure(summary) is None
    text = render_page(summary)
    assert "52 runs, so the figures of drift and of paired differences are left out." in Page(text).text
    assert 'class="scroll tall"' in text
    small = render_page(fake_design(**SMALL))
    assert 'class="scroll tall"' not in small
    assert "left out" not in Page(small).text.replace("left out, since cells", "")


def test_a_terminal_shows_many_runs_cell_by_cell():
    text = printed(fake_design())
    for title in (
        "Gain on Pocket Math, lr 1e-4",
        "Mean forgetting F, lr 1e-3",
        "Effect sizes",
        "Scores and forgetting",
    ):
        assert title in text
    assert "Paired differences from base" not in text
    assert "52 runs, so differences, drift, states and budgets are left out; the page has them." in flat(text)
    small = printed(fake_design(**SMALL))
    for title in ("Paired differences from base", "Training states", "Budgets, planned and realised"):
        assert title in small


def test_an_ascii_terminal_gets_effect_sizes_and_groups_in_ascii():
    binary = io.BytesIO()
    stream = io.TextIOWrapper(binary, encoding="ascii")
    summary = fake_design(**SMALL)
    run = dataclasses.replace(run_named(summary, "dataset.expert.1e-4"), state_hashes={})
    render_terminal(
        replace_run(summary, run.arm, dataclasses.replace(run, state_hashes={"0": "00" * 32})),
        Console(file=stream, width=120),
    )
    stream.flush()
    text = binary.getvalue().decode("ascii")
    assert "omega^2: partial omega^2" in text
    assert '"imitate on dataset, lr 1e-4", "continuation on dataset, lr 1e-4"' in flat(text)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_of_a_design_is_cut_off_at_any_width(width):
    text = printed(fake_design(), width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("+.120", "−.110", ".891"):
        assert number in text


def test_a_summary_from_before_designs_is_read_with_defaults():
    value = dataclasses.asdict(fake_study())
    del value["effects"]
    for run in value["runs"]:
        del run["levels"], run["planned"], run["state_hashes"]
    assert summary_from_json(value) == fake_study()
    full = fake_design()
    assert summary_from_json(dataclasses.asdict(full)) == full
