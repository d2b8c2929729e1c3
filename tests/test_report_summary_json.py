import json
from dataclasses import asdict

import pytest
from report_fixture import diverged, fake_study, replace_run, run_named

from statewise.errors import UsageError
from statewise.report.page import render_page
from statewise.report.summary_json import summary_from_json
from statewise.storage.records import StudySummary


def test_a_summary_survives_the_way_through_json():
    summary = fake_study()
    summary = replace_run(summary, "rl", diverged(run_named(summary, "rl")))
    text = json.dumps(asdict(summary), allow_nan=False)
    again = summary_from_json(json.loads(text))
    assert again == summary
    assert render_page(again) == render_page(summary)


def test_defaults_may_be_left_out_and_integers_stand_for_floats():
    value = {"name": "a", "description": "", "columns": {}, "target": "", "retention": [], "protocols": {}}
    value |= {"runs": [], "hypotheses": [], "environment": {}}
    assert summary_from_json(value) == StudySummary("a", "", {}, "", (), {}, (), (), {})
    full = asdict(fake_study())
    full["runs"][1]["budget"]["flops"] = 3
    assert summary_from_json(full).runs[1].budget["flops"] == 3.0


def test_a_misspelt_key_is_named_with_its_place():
    value = asdict(fake_study())
    value["runs"][0]["lable"] = value["runs"][0].pop("label")
    with pytest.raises(UsageError, match=r"summary\.runs\[0\]: unknown key 'lable'\. Did you mean 'label'"):
        summary_from_json(value)


def test_a_missing_key_and_a_wrong_type_are_named_with_their_place():
    value = asdict(fake_study())
    value["hypotheses"][1].pop("verdict")
    with pytest.raises(UsageError, match=r"summary\.hypotheses\[1\]: no 'verdict'"):
        summary_from_json(value)
    value = asdict(fake_study())
    value["runs"][1]["scores"]["pocket_math"]["low"] = "a lot"
    with pytest.raises(UsageError, match=r"runs\[1\]\.scores\.pocket_math\.low: expected a number, got 'a lot'"):
        summary_from_json(value)


def test_a_summary_of_a_version_that_called_its_hypotheses_phenomena_is_read():
    value = asdict(fake_study())
    value["phenomena"] = value.pop("hypotheses")
    assert summary_from_json(value) == fake_study()
