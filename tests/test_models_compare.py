"""Two sides are compared on equal items asked in an equal way, or not at all; differences are checked by hand."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from run_fixture import PROTOCOL, evaluated, seal_plan, write_evaluation, write_run
from scipy import stats

from statewise.errors import UsageError
from statewise.folder.protocol import differing_parts
from statewise.models.compare import compare
from statewise.models.sides import read_side
from statewise.policy.load import save_weights
from statewise.report.comparison import comparison_to_json, items_needed, print_comparison
from statewise.results.intervals import Part, weigh_forgetting, weigh_sum
from statewise.results.transitions import mcnemar_exact
from statewise.storage import integrity, records

A, B = [1, 1, 0, 0], [1, 0, 1, 1]


def estimate_sum(part):
    return weigh_sum([Part(part)]).estimate()


def column(*scores):
    return np.array(scores, dtype=float)[:, None]


@pytest.fixture
def two(tmp_path):
    """Compare two folders of `statewise eval` with one task each."""

    def compare_scores(a, b, **of_b):
        ours = write_evaluation(tmp_path / "a", {"sums": a})
        theirs = write_evaluation(tmp_path / "b", {"sums": b}, **of_b)
        return compare(read_side(str(ours)), read_side(str(theirs)))

    return compare_scores


@pytest.fixture
def run(tmp_path, toy_policy):
    """A run of seeds 0 and 1 in which base and sft are evaluated."""
    save_weights(toy_policy, tmp_path / "base")
    folder = write_run(tmp_path / "run", tmp_path / "base")
    for seed in (0, 1):
        evaluated(folder, "base", seed, sums=[1, 1, 0, 0], facts=[1, 1, 1, 0])
        evaluated(folder, "sft", seed, sums=[1, 1, 1, seed], facts=[1, 0, seed, 0])
    return folder


def printed(comparison):
    console = Console(file=io.StringIO(), width=120)
    print_comparison(comparison, console)
    return " ".join(console.file.getvalue().split())


def test_the_difference_is_b_minus_a_paired_by_item(two):
    # B - A = 0, -1, 1, 1 with the pseudo-items -1 and 1: mean 1/6, variance (5 - 6/36) / 5 = .96667, standard error
    # sqrt(.96667 / 6) = .40139; t with 3 degrees of freedom 3.18245: half-width 1.27740, cut to -1..1.
    (score,) = two(A, B).scores
    assert score.difference.value == 0.25
    assert score.difference.low == -1.0
    assert score.difference.high == 1.0
    assert (score.a.value, score.b.value, score.num_pairs) == (0.5, 0.75, 4)
    assert (score.num_only_a, score.num_only_b) == (1, 2)


def test_the_p_of_mcnemar_is_the_exact_binomial_one():
    # 1 against 9 of 10: 2 * (1 + 10) / 2^10.
    assert mcnemar_exact(1, 9) == pytest.approx(22 / 1024)
    for a, b in ((0, 6), (3, 8), (40, 61), (5, 5)):
        assert mcnemar_exact(a, b) == pytest.approx(min(1.0, 2 * stats.binom.cdf(min(a, b), a + b, 0.5)))
    assert mcnemar_exact(0, 0) == 1.0


def test_exchanging_the_sides_turns_the_sign_and_keeps_p(two, tmp_path):
    (forward,) = two(A, B).scores
    (backward,) = compare(read_side(str(tmp_path / "b")), read_side(str(tmp_path / "a"))).scores
    assert backward.difference.value == -forward.difference.value
    assert backward.difference.low == pytest.approx(-forward.difference.high)
    assert (backward.num_only_a, backward.mcnemar_p) == (forward.num_only_b, forward.mcnemar_p)


def test_equal_answers_have_no_difference_and_resolve_nothing(two):
    comparison = two(A, A)
    (score,) = comparison.scores
    assert (score.difference.value, score.num_only_a, score.num_only_b, score.mcnemar_p) == (0, 0, 0, 1)
    assert items_needed(score.difference) is None
    # Four equal pairs leave open that a share of 1 - .025^(1/4) = .6024 differs.
    assert score.difference.high == pytest.approx(0.6024, abs=1e-4)
    assert "The difference is 0, so no number of items is implied" in printed(comparison)


def test_scores_between_0_and_1_are_compared_but_not_counted(two):
    (score,) = two([0.5, 0.25, 1, 0], [1, 0.5, 1, 0]).scores
    assert score.difference.value == pytest.approx(0.1875)
    assert score.num_only_a is score.num_only_b is score.mcnemar_p is None


def test_an_unscored_answer_is_wrong_and_said_so(two):
    comparison = two(A, [1, None, 1, 1])
    assert comparison.scores[0].difference.value == 0.25
    assert any("sums greedy: 1 unscored answers count as not correct" in note for note in comparison.notes)


def test_what_is_not_resolved_says_how_many_items_would_resolve_it(two):
    # From a difference of .25 down to the end at -1 it is 1.25: (1.25 / .25)^2 = 25 times 4 items.
    comparison = two(A, B)
    assert items_needed(comparison.scores[0].difference) == math.ceil(25 * 4) == 100
    assert "+.250 n.r." in printed(comparison)
    assert "would need at least n = 100" in printed(comparison)
    written = comparison_to_json(comparison)["scores"][0]
    assert (written["is_resolved"], written["num_items_needed"]) == (False, 100)


def test_four_changes_in_one_direction_are_unresolved_by_the_interval_and_by_mcnemar(two):
    comparison = two([0] * 60, [1] * 4 + [0] * 56)
    (score,) = comparison.scores
    # 2 / 2^4 = .125.
    assert (score.num_only_a, score.num_only_b, score.mcnemar_p) == (0, 4, 0.125)
    assert score.difference.low < 0
    assert "+.067 n.r." in printed(comparison)


def test_a_resolved_difference_is_not_marked(two):
    a, b = [0] * 40, [1] * 30 + [0] * 10
    comparison = two(a, b)
    assert comparison_to_json(comparison)["scores"][0]["is_resolved"] is True
    assert "Not resolved:" not in printed(comparison)
    json.dumps(comparison_to_json(comparison), allow_nan=False)


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (PROTOCOL.replace("n = 4", "n = 200"), "A n = 4, B n = 200"),
        (PROTOCOL.replace("0-shot", "5-shot"), "A 0-shot, B 5-shot"),
        (PROTOCOL.replace("split test", "split validation"), "A split test, B split validation"),
        (PROTOCOL.replace("version 1.0", "version 2.0"), "A task version 1.0, B task version 2.0"),
    ],
)
def test_a_task_of_another_protocol_is_refused_and_the_difference_named(two, protocol, words):
    with pytest.raises(UsageError, match=f"sums cannot be compared: its protocol differs: {words}"):
        two(A, B, protocol=protocol)


def test_the_parts_in_which_protocols_differ_are_those_the_other_lacks():
    assert differing_parts("0-shot; split test, n = 4", "2-shot; split test, n = 4") == ("0-shot", "2-shot")
    assert differing_parts("0-shot", "0-shot") == ("", "")


def test_other_items_under_the_same_name_and_protocol_are_refused(two):
    with pytest.raises(UsageError, match="other documents or prompts"):
        two(A, B, digest="another world")


def test_missing_items_are_refused(two):
    with pytest.raises(UsageError, match="its items differ: 3 and 4 items"):
        two(A, B[:3])


SAMPLED, FIRST = (f"{PROTOCOL}; 4 items only; {which}" for which in ("a seeded sample of the items", "the first items"))


def test_under_other_limits_the_common_items_are_compared_and_counted(two):
    # Items 1, 2, 5 are common: A 1 0 1, B 0 1 1, of which each side has one alone.
    comparison = two([1, 1, 0, 0, 1, 1], {1: 0, 2: 1, 5: 1, 9: 1}, protocol=SAMPLED, digest="of four")
    (score,) = comparison.scores
    assert (score.a.value, score.b.value) == pytest.approx((2 / 3, 2 / 3))
    assert (score.difference.value, score.difference.num_items, score.num_pairs) == (0, 3, 3)
    assert (score.num_only_a, score.num_only_b, score.num_items_a, score.num_items_b) == (1, 1, 6, 4)
    assert comparison.protocols == {"sums": PROTOCOL}
    (note,) = comparison.notes
    assert note.startswith("sums: limits differ; compared on the 3 items in common, of 6 of ")
    assert "/a and 4 of " in note
    assert f"Note: {note.split()[0]}" in printed(comparison)


def test_an_evaluation_is_compared_with_an_arm_of_another_limit(run, tmp_path):
    model = write_evaluation(tmp_path / "model", {"sums": {0: 0, 2: 1}}, protocol=FIRST, digest="of two")
    (score,) = compare(read_side(str(model)), read_side(f"{run}:sft")).scores
    # Items 0 and 2 of sft are right in both seeds: only B on item 0, twice.
    assert score.difference == estimate_sum(np.array([[1, 1], [0, 0]], dtype=float))
    assert (score.num_only_a, score.num_only_b, score.num_items_a, score.num_items_b) == (0, 2, 2, 4)


def test_sides_of_the_same_items_under_other_limits_are_compared_on_all(two):
    comparison = two(A, B, protocol=FIRST, digest="d")
    assert (comparison.notes, comparison.scores[0].difference.num_items) == ((), 4)


@pytest.mark.parametrize(
    ("of_b", "change", "words"),
    [
        ({0: 1, 1: 0}, {"item_sha256": None}, "an older record does not tell which items are the same"),
        ({0: 1, 1: 0}, {"item_sha256": "another world"}, "2 of the same number are other documents or prompts"),
        ({3: 1, 8: 0}, {}, "the sides have 1 item in common"),
        ({7: 1, 8: 0}, {}, "the sides have 0 items in common"),
    ],
)
def test_items_that_are_not_known_to_be_the_same_are_refused(tmp_path, of_b, change, words):
    a = write_evaluation(tmp_path / "a", {"sums": A})
    b = write_evaluation(tmp_path / "b", {"sums": of_b}, protocol=SAMPLED, digest="of two")
    path = b / "evals" / "sums.parquet"
    rows = [row | change for row in records.read_table(path)]
    sha256 = records.write_table(path, rows, records.ITEM_SCHEMA)
    stored = {"protocol": SAMPLED, "items_sha256": "of two", "sha256": sha256}
    integrity.write_sealed(b / "eval.json", {"model": {}, "tasks": {"sums": stored}})
    with pytest.raises(UsageError, match=f"sums cannot be compared: its .* differ.*{words}"):
        compare(read_side(str(a)), read_side(str(b)))


def test_one_item_has_no_interval(two):
    with pytest.raises(UsageError, match="a single item, of which no interval can be given"):
        two([1], [0])


def test_a_task_that_cannot_be_compared_does_not_stop_the_others(tmp_path):
    a = write_evaluation(tmp_path / "a", {"sums": A, "facts": A, "only-a": A})
    b = write_evaluation(tmp_path / "b", {"sums": B, "facts": B[:3]})
    comparison = compare(read_side(str(a)), read_side(str(b)))
    assert [score.task for score in comparison.scores] == ["sums"]
    assert list(comparison.refused) == ["facts"]
    assert "on one side only: only-a" in comparison.notes
    assert "! facts is not compared: its items differ" in printed(comparison)


def test_sides_without_a_common_task_are_refused(tmp_path):
    a = write_evaluation(tmp_path / "a", {"sums": A})
    b = write_evaluation(tmp_path / "b", {"facts": A})
    with pytest.raises(UsageError, match="share no task"):
        compare(read_side(str(a)), read_side(str(b)))


def test_an_arm_is_compared_over_its_seeds_paired(run):
    comparison = compare(read_side(f"{run}:base"), read_side(f"{run}:sft"))
    sums = next(score for score in comparison.scores if score.task == "sums")
    base = np.array([[1, 1, 0, 0]] * 2, dtype=float).T
    post = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=float).T
    assert sums.difference == estimate_sum(post - base)
    # Over both seeds: 0, then 3 answers that only sft got right.
    assert (sums.num_pairs, sums.num_only_a, sums.num_only_b, sums.mcnemar_p) == (8, 0, 3, None)
    assert "4 × 2" in printed(comparison)


def test_base_to_arm_says_what_was_forgotten_on_retention_tasks_alone(run):
    comparison = compare(read_side(f"{run}:base:1"), read_side(f"{run}:sft:1"))
    by_task = {score.task: score for score in comparison.scores}
    assert by_task["sums"].forgetting is None  # the target
    # base 1 1 1 0, sft 1 0 1 0: one of four is forgotten.
    assert by_task["facts"].forgetting.value == 0.25
    assert by_task["facts"].forgetting.low == -by_task["facts"].difference.high
    assert comparison.forgetting == weigh_forgetting([column(1, 1, 1, 0)], [column(1, 0, 1, 0)]).estimate()
    assert comparison.forgetting_tasks == ("facts",)
    assert "Forgetting F = A − B, A being the base model: facts +.250" in printed(comparison)


def test_the_other_way_round_nothing_is_said_of_forgetting(run):
    comparison = compare(read_side(f"{run}:sft"), read_side(f"{run}:base"))
    assert comparison.forgetting is None
    assert all(score.forgetting is None for score in comparison.scores)


def test_an_evaluated_base_model_is_known_by_its_weights(run, tmp_path):
    weights = records.digest_file(tmp_path / "base" / "model.safetensors")
    for digest, has_forgetting in ((weights, True), ("other", False)):
        folder = write_evaluation(tmp_path / digest, {"sums": A}, weights_sha256=digest)
        exported = write_evaluation(tmp_path / f"b-{digest}", {"sums": B}, arm="sft", base_weights_sha256=weights)
        comparison = compare(read_side(str(folder)), read_side(str(exported)))
        assert (comparison.forgetting is not None) == has_forgetting


def test_another_runs_base_model_forgets_nothing(run, tmp_path):
    weights = records.digest_file(tmp_path / "base" / "model.safetensors")
    other = write_evaluation(tmp_path / "other", {"sums": B}, arm="sft", base_weights_sha256="of another family")
    assert weights != "of another family"
    assert compare(read_side(f"{run}:base:0"), read_side(str(other))).forgetting is None


def test_the_base_model_follows_the_seed_of_the_other_side(run):
    comparison = compare(read_side(f"{run}:base"), read_side(f"{run}:sft:1"))
    assert all(score.difference.num_seeds == 1 for score in comparison.scores)
    assert comparison.scores[0].mcnemar_p is not None
    assert comparison.notes == ()


def test_one_model_is_compared_with_each_of_several(run, tmp_path):
    model = write_evaluation(tmp_path / "model", {"sums": [1, 0, 0, 0]})
    comparison = compare(read_side(str(model)), read_side(f"{run}:sft"))
    (score,) = comparison.scores
    post = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=float).T
    assert score.difference == estimate_sum(post - column(1, 0, 0, 0))
    assert any("is one model: intervals cover the seeds of" in note for note in comparison.notes)


def test_seeds_without_a_partner_are_left_out_and_named(run, tmp_path, toy_policy):
    other = write_run(tmp_path / "other", tmp_path / "base")
    text = (other / "study.toml").read_text()
    (other / "study.toml").write_text(text.replace("    0,\n    1,\n", "    1,\n    2,\n    3,\n"))
    seal_plan(other, tmp_path / "base")
    for seed in (1, 2):
        evaluated(other, "sft", seed, sums=B, facts=A)
    comparison = compare(read_side(f"{run}:sft"), read_side(f"{other}:sft"))
    assert all(score.difference.num_seeds == 1 for score in comparison.scores)
    assert any(note.endswith("seeds 0 have no partner and are left out") for note in comparison.notes)
    evaluated(other, "late", 2, sums=B, facts=A)
    evaluated(other, "late", 3, sums=B, facts=A)
    with pytest.raises(UsageError, match="none in common"):
        compare(read_side(f"{run}:sft"), read_side(f"{other}:late"))


def test_a_record_without_a_digest_is_compared_and_said_to_be_one(run, tmp_path):
    evaluated(run, "late", 0, sums=B, facts=B, digest="")
    comparison = compare(read_side(f"{run}:base"), read_side(f"{run}:late"))
    assert any("without a digest in an older record: facts, sums" in note for note in comparison.notes)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ("nowhere", "no such folder"),
        ("{run}", "say which arm, .*:ARM, ARM one of base, sft, slim, wild, late"),
        ("{run}:sff", "unknown arm 'sff'. Did you mean 'sft'"),
        ("{run}:sft:9", "has no seed 9; its seeds are 0, 1"),
        ("{run}:sft:one", "seed 'one' is not a number"),
        ("{run}:slim", "'slim' was evaluated in none of seeds 0, 1: continue the run"),
        ("{run}/arms", "no eval.json, samples_"),
        ("{run}/arms:sft", "not a run folder"),
    ],
)
def test_a_side_that_is_none_is_named_with_what_would_be(run, side, words):
    with pytest.raises(UsageError, match=words):
        read_side(side.format(run=run))


def test_an_arm_that_diverged_says_so(run):
    folder = run / "arms" / "wild" / "0"
    records.write_json(folder / "train.json", {"status": "diverged", "reason": "update 1: loss nan"})
    records.write_json(folder / "done.json", {"status": "skipped", "reason": "there is no trained model"})
    with pytest.raises(UsageError, match="update 1: loss nan"):
        read_side(f"{run}:wild")
