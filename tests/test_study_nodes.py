"""What a node does when it is asked to stop."""

from __future__ import annotations

import pytest

from statewise.errors import DivergedError, InterruptedTrainingError
from statewise.loop.train import Observer
from statewise.study import nodes
from statewise.study.nodes import Workplace, run_node
from statewise.study.request import StudyRequest, plan_study
from statewise.study.store import Store


def test_an_evaluation_stops_before_its_next_task_and_is_not_done(tmp_path):
    plan = plan_study(StudyRequest("pocket", ("shared.evaluation.max_new_tokens=4",), limit=2, is_quick=True))
    node = next(node for node in plan.nodes if node.id == "evaluate:base:0")
    answers = iter([False, True])
    place = Workplace(plan, Store(tmp_path), {})
    with pytest.raises(InterruptedTrainingError, match="stopped before task pocket_facts"):
        run_node(place, node, Observer(should_stop=lambda: next(answers)))
    assert (tmp_path / "arms" / "base" / "0" / "evals" / "pocket_math.parquet").is_file()
    assert place.store.result(node) is None


def test_a_model_whose_answers_are_no_numbers_is_a_result_and_no_failure(tmp_path, monkeypatch):
    def lost(policy, task, protocol):
        raise DivergedError("base: its next-token law is not a number at some state")

    monkeypatch.setattr(nodes, "evaluate", lost)
    plan = plan_study(StudyRequest("pocket", limit=2, is_quick=True))
    node = next(node for node in plan.nodes if node.id == "evaluate:base:0")
    place = Workplace(plan, Store(tmp_path), {})
    result = run_node(place, node, Observer())
    assert (result["status"], result["reason"]) == (
        "diverged",
        "base: its next-token law is not a number at some state",
    )
    assert place.store.result(node)["status"] == "diverged"
