"""Results of the built-in studies in docs/studies.md are made from run folders, between marks."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import asdict

import pytest
import study_tables
from report_fixture import fake_design, fake_study

from statewise.report import tables
from statewise.storage import records

SMALL = {"sources": ("dataset", "rollout"), "signals": ("imitate", "reward"), "rates": ("1e-4", "1e-3")}


def test_a_page_holds_what_the_run_says_and_keeps_what_is_written_by_hand(tmp_path, monkeypatch):
    summary = dataclasses.replace(fake_design(**SMALL), name="grid")
    run, page = tmp_path / "run", tmp_path / "studies.md"
    records.write_json(run / "summary.json", asdict(summary))
    for arm, seconds in (("a", 50.0), ("b", 70.0)):
        records.write_json(run / "arms" / arm / "0" / "train.json", {"node_s": seconds})
        records.write_json(run / "arms" / arm / "0" / "done.json", {"node_s": 30.0})
    start, end = "<!-- results of grid: tools/study_tables.py -->\n", "<!-- end of grid: tools/study_tables.py -->\n"
    page.write_text(f"by hand\n{start}old 0.123\n{end}below\n", encoding="utf-8")
    monkeypatch.setattr(study_tables, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["study_tables.py", str(run), "--commit", "abc1234"])
    study_tables.main()
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"by hand\n{start}\n`statewise run grid` at commit abc1234; ")
    assert text.endswith(f"\n{end}below\n")
    assert "old 0.123" not in text
    assert "3 min 0 s of one process" in text
    for table in (*tables.cross_tables(summary), tables.effect_table(summary)):
        assert f"**{table.title}**" in text
        for row in table.rows:
            line = next(line for line in text.splitlines() if line.startswith(f"| {row.label} | {row.cells[0].text}"))
            assert line.count("|") == len(row.cells) + 2
            assert all(cell.text in line for cell in row.cells)
    study_tables.main()
    assert page.read_text(encoding="utf-8") == text


def test_hypotheses_stand_with_their_verdict_and_every_contrast():
    summary = fake_study()
    text = study_tables.results(summary, 60.0, "abc")
    for hypothesis in summary.hypotheses:
        assert f"“{hypothesis.statement}” **{hypothesis.verdict}**" in text
        for name, estimate in hypothesis.contrasts.items():
            assert f"* {name}: {tables.delta_cell(estimate, hypothesis.margin).text}" in text


def test_rewarded_answers_that_had_not_ended_are_told_by_their_largest_share():
    summary = fake_study()
    assert study_tables.answers(summary) == ""
    counts = {"num_answers": 100, "num_unfinished": 9, "num_rewarded": 50, "num_rewarded_unfinished": 4}
    runs = tuple(dataclasses.replace(run, evaluated_answers=counts) for run in summary.runs[:1])
    assert re.search(r"in evaluation \.080 \(base\)", study_tables.answers(dataclasses.replace(summary, runs=runs)))


def test_a_page_without_the_marks_is_not_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="must hold '<!-- a -->' once"):
        study_tables.between(page, "<!-- a -->\n", "<!-- /a -->\n", "x")
    assert page.read_text(encoding="utf-8") == "nothing"
