"""Logs of inspect as sides of a comparison; what its package reads stands here as plain objects."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from statewise.errors import UsageError
from statewise.logs import inspect_log
from statewise.models.compare import compare
from statewise.models.sides import read_side


def sample(id_, value, *, epoch=1, error=None, choices=("a", "b", "c", "d"), question="Q{}?"):
    scores = None if error else {"choice": SimpleNamespace(value=value)}
    return SimpleNamespace(
        id=id_, epoch=epoch, input=question.format(id_), choices=list(choices) or None, target="A", scores=scores,
        error=error, invalidation=None,
    )  # fmt: skip


def log_of(samples, *, status="success", version=0, solver="multiple_choice", epochs=1, reducer=None, **settings):
    spec = SimpleNamespace(
        task="capitals", task_version=version, task_args={}, scorers=[SimpleNamespace(name="choice", options={})],
        config=SimpleNamespace(epochs=epochs, epochs_reducer=reducer),
        model_generate_config=SimpleNamespace(model_dump=lambda: {}),
    )  # fmt: skip
    plan = SimpleNamespace(
        steps=[SimpleNamespace(solver=solver, params={"multiple_correct": False})],
        config=SimpleNamespace(model_dump=lambda exclude_none: settings),
    )
    return SimpleNamespace(status=status, eval=spec, plan=plan, samples=samples)


@pytest.fixture
def read(monkeypatch, tmp_path):
    """The side of a made log."""
    made = {}
    monkeypatch.setattr(inspect_log, "_read", lambda path: made[path.name])

    def read_made(log, name="a"):
        (tmp_path / name).mkdir(exist_ok=True)
        path = tmp_path / name / f"{len(made)}.eval"
        path.touch()
        made[path.name] = log
        return read_side(str(path.parent))

    return read_made


def of_values(*values, **more):
    return log_of([sample(number, value) for number, value in enumerate(values, start=1)], **more)


def test_two_logs_are_compared_by_the_ids_of_their_samples(read):
    a, b = of_values("C", "I", "C", "I", max_connections=2), of_values("I", "C", "C", "N")
    b.samples.reverse()
    (score,) = compare(read(a), read(b, "b")).scores
    assert (score.task, score.decoding, score.metric) == ("capitals", "answers", "choice")
    assert (score.lost.value, score.gained.value, score.chance) == (0.25, 0.25, 0.25)
    assert score.lost_adjusted.value == pytest.approx((4 / 3 - 4 / 9) / 4)


@pytest.mark.parametrize(
    ("value", "score"), [("C", 1), ("I", 0), ("P", 0.5), ("N", 0), (True, 1), (0.25, 0.25), ("yes", 1), ("0.5", 0.5)]
)
def test_values_are_numbers_as_inspect_takes_them(read, value, score):
    (scores,) = read(of_values(value, "C")).scores[-1].values()
    assert scores.values[0] == score


def test_values_of_a_dictionary_are_scores_of_their_own(read):
    names = {column.metric for column in read(of_values({"x": 1, "y": "I"}, {"x": 0, "y": "C"})).scores[-1]}
    assert names == {"choice/x", "choice/y"}


@pytest.mark.parametrize("value", [[1, 0], "B", "a text"])
def test_a_value_that_is_no_number_is_refused_and_never_0(read, value):
    with pytest.raises(UsageError, match=r"capitals choice: .* is no score that has a mean"):
        read(of_values("C", value))


def test_epochs_have_the_mean_and_no_transition(read):
    a, b = (
        log_of([sample(id_, value, epoch=e) for e, id_, value in rows], epochs=2)
        for rows in (
            [(1, 1, "C"), (2, 1, "I"), (1, 2, "C"), (2, 2, "C")],
            [(1, 1, "C"), (2, 1, "C"), (1, 2, "I"), (2, 2, "C")],
        )
    )
    (score,) = compare(read(a), read(b, "b")).scores
    assert (score.a.value, score.b.value, score.gained) == (0.75, 0.75, None)
    with pytest.raises(UsageError, match=r"the reducer max is no score that has a mean"):
        read(of_values("C", epochs=2, reducer=["max"]), "c")


def test_samples_without_a_score_are_left_out_and_counted(read):
    a = log_of([sample(1, "C"), sample(2, "C"), sample(3, None, error="boom")])
    comparison = compare(read(a), read(of_values("C", "I", "I"), "b"))
    assert comparison.scores[0].difference.num_items == 2
    assert any("1 sample without a score (errors, invalidated) left out" in note for note in comparison.notes)


@pytest.mark.parametrize(
    ("of_b", "words"),
    [
        ({"version": 1}, "A task version 0, B task version 1"),
        ({"solver": "chain"}, "A solvers multiple_choice .*, B solvers chain"),
        ({"temperature": 1.0}, 'A without that, B generation {"temperature": 1.0}'),
    ],
)
def test_samples_asked_in_another_way_are_refused(read, of_b, words):
    with pytest.raises(UsageError, match=f"its protocol differs: {words}"):
        compare(read(of_values("C", "I")), read(of_values("C", "I", **of_b), "b"))


def test_other_questions_under_the_same_ids_are_refused(read):
    b = log_of([sample(1, "C", question="Another {}?"), sample(2, "I")])
    with pytest.raises(UsageError, match=r"1 of the same number are other documents or prompts"):
        compare(read(of_values("C", "I")), read(b, "b"))


def test_unfinished_repeated_and_several_logs_are_one_line(read):
    with pytest.raises(UsageError, match=r"the evaluation did not finish \(status 'error'\)"):
        read(of_values("C", status="error"))
    with pytest.raises(UsageError, match=r"sample 1 stands here twice in epoch 1"):
        read(log_of([sample(1, "C"), sample(1, "C")]), "b")
    read(of_values("C", "I"), "c")
    with pytest.raises(UsageError, match=r"holds several runs of task 'capitals'; name one: .*eval, .*eval"):
        read(of_values("C", "C"), "c")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.eval").touch()
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(
        UsageError, match=r"x.eval: logs of inspect are read by its package; pip install 'statewise\[inspect\]'"
    ):
        read_side(str(tmp_path / "x.eval"))
    with pytest.raises(UsageError, match=r"gone.eval: no such file"):
        read_side(str(tmp_path / "gone.eval"))


def test_a_log_that_inspect_wrote_is_read(tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    scorer = pytest.importorskip("inspect_ai.scorer")
    for name, values in (("a", "CI"), ("b", "CC")):
        spec = log.EvalSpec(
            created="2026-01-01T00:00:00+00:00",
            task="capitals",
            model="mock/m",
            dataset=log.EvalDataset(),
            config=log.EvalConfig(),
        )
        samples = [
            log.EvalSample(id=i, epoch=1, input=f"Q{i}", target="A", scores={"choice": scorer.Score(value=value)})
            for i, value in enumerate(values)
        ]
        log.write_eval_log(log.EvalLog(status="success", eval=spec, samples=samples), str(tmp_path / f"{name}.eval"))
    (score,) = compare(*(read_side(str(tmp_path / f"{name}.eval")) for name in "ab")).scores
    assert (score.gained.value, score.lost.value) == (0.5, 0)
    (tmp_path / "cut.eval").write_bytes((tmp_path / "a.eval").read_bytes()[:200])
    with pytest.raises(UsageError, match=r"cut.eval: inspect_ai cannot read it"):
        read_side(str(tmp_path / "cut.eval"))
