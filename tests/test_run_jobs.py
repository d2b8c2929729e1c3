"""What a job does when it is asked to stop, and what the jobs of a worker share."""

from __future__ import annotations

import pytest

from statewise.errors import DivergedError, InterruptedTrainingError
from statewise.folder.store import Store
from statewise.loop.documents import encode_documents, read_documents
from statewise.loop.train import Observer
from statewise.plan.benchmarks import document_rule
from statewise.plan.request import StudyRequest, plan_study
from statewise.policy.load import load_policy
from statewise.run import jobs
from statewise.run.jobs import Workplace, run_job


def test_an_evaluation_stops_before_its_next_task_and_is_not_done(tmp_path):
    plan = plan_study(StudyRequest("pocket", ("shared.evaluation.max_new_tokens=4",), limit=2, is_quick=True))
    job = next(job for job in plan.jobs if job.id == "evaluate:base:0")
    answers = iter([False, True])
    place = Workplace(plan, Store(tmp_path))
    with pytest.raises(InterruptedTrainingError, match="stopped before task pocket_facts"):
        run_job(place, job, Observer(should_stop=lambda: next(answers)))
    assert (tmp_path / "arms" / "base" / "0" / "evals" / "pocket_math.parquet").is_file()
    assert place.store.result(job) is None


def test_a_model_whose_answers_are_no_numbers_is_a_result_and_no_failure(tmp_path, monkeypatch):
    def lost(policy, task, protocol):
        raise DivergedError("base: its next-token law is not a number at some state")

    monkeypatch.setattr("statewise.evals.evaluate.evaluate", lost)
    plan = plan_study(StudyRequest("pocket", limit=2, is_quick=True))
    job = next(job for job in plan.jobs if job.id == "evaluate:base:0")
    place = Workplace(plan, Store(tmp_path))
    result = run_job(place, job, Observer())
    assert (result["status"], result["reason"]) == (
        "diverged",
        "base: its next-token law is not a number at some state",
    )
    assert place.store.result(job)["status"] == "diverged"


def test_a_worker_encodes_the_documents_once_and_every_arm_has_those_it_would_have_alone(tmp_path, monkeypatch):
    plan = plan_study(StudyRequest("pocket", limit=2, is_quick=True))
    place = Workplace(plan, Store(tmp_path))
    learner = load_policy(plan.model, "learner")
    calls = []

    def counted(policy, task, rule):
        calls.append(task.name)
        return encode_documents(policy, task, rule)

    monkeypatch.setattr(jobs, "encode_documents", counted)
    found = {arm: place.documents(learner, arm) for arm in plan.config.arms}
    assert calls == ["pocket_math"]
    for arm, documents in found.items():
        task = place.task("pocket_math")
        assert documents == read_documents(learner, task, [plan.arms[arm].source], document_rule(plan))


def test_a_seed_whose_answers_all_ended_counts_among_the_others():
    ended = {"states/num_trajectories": 8, "states/finished_rate": 1.0}
    cut = {**ended, "states/finished_rate": 0.75, "signals/num_rewarded": 5, "signals/num_rewarded_unfinished": 1}
    assert jobs._answers([ended, ended]) == {"num_trajectories": 16, "num_unfinished": 0}
    assert jobs._answers([ended, cut]) == {
        "num_trajectories": 16, "num_unfinished": 2, "num_rewarded": 5, "num_rewarded_unfinished": 1,
    }  # fmt: skip
