"""What a node does when it is asked to stop."""

from __future__ import annotations

import pytest

from statewise.errors import InterruptedTrainingError
from statewise.loop.train import Observer
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
