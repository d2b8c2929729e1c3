"""What an arm answered beside base, and what it was trained on, as text; transitions are counted by hand."""

from __future__ import annotations

import json

import pytest
from run_fixture import FACTS, evaluated, trained, write_run

from statewise.batch import Trajectory, collate, state_rows
from statewise.errors import UsageError
from statewise.models.show import show_items, show_states, told
from statewise.policy.load import save_weights
from statewise.policy.texts import encode
from statewise.storage import integrity, records

HOSTILE = "2\n\x1b[2J\u202e  prompt:\nsums item 9: gained"


@pytest.fixture
def run(tmp_path, toy_policy):
    """Sums of seed 0: kept 1, lost, gained, kept 0; of seed 1: kept but the last, which is gained. Facts are kept."""
    save_weights(toy_policy, tmp_path / "base")
    folder = write_run(tmp_path / "run", tmp_path / "base")
    for seed, sums in ((0, [1, 0, 1, None]), (1, [1, 1, 0, 1])):
        evaluated(folder, "base", seed, sums=[1, 1, 0, 0], facts=[1, 1, 1, 0])
        evaluated(folder, "sft", seed, sums=sums, facts=[1, 1, 1, 0])
    return folder


@pytest.fixture
def states(run, toy_policy):
    """Arm sft has two updates of two rows: data, then a rollout after a given prefix, cut at a limit."""
    prompt, given, written = (encode(toy_policy, text) for text in ("1 + 1 =", " two", " is 2"))
    data = Trajectory((*prompt, *written, 256), len(prompt), 0, "dataset", "data")
    rollout = Trajectory(
        (*prompt, *given, *written), len(prompt), 0, "prefix", "learner", tuple([-1.0] * len(written)),
        is_finished=False, first_action=len(prompt) + len(given), num_given=len(given), reward=0.5,
    )  # fmt: skip
    folder = run / "arms" / "sft" / "0"
    save_weights(toy_policy, folder / "model")
    for step in (0, 1):
        rows = state_rows(step, collate([data, rollout]))
        records.write_table(folder / "states" / f"{step + 1:06d}.parquet", rows, records.STATE_SCHEMA)
    trained(run, "sft", 0)
    return run


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("gained", [(0, 2), (1, 3)]),
        ("lost", [(0, 1)]),
        ("flipped", [(0, 1), (0, 2), (1, 3)]),
        ("kept", [(0, 0), (0, 3), (1, 0), (1, 1), (1, 2)]),
        (None, [(seed, item) for seed in (0, 1) for item in range(4)]),
    ],
)
def test_items_are_gained_lost_or_kept_against_base_of_their_seed(run, wanted, found):
    shown = show_items(f"{run}:sft", wanted, "sums", 20)
    assert [(item.seed, item.item) for item in shown.items] == found
    assert shown.num_found == len(found)


def test_an_item_has_its_prompt_and_both_answers_and_scores(run):
    (item,) = show_items(f"{run}:sft:0", "lost", None, 5).items
    assert (item.task, item.prompt, item.transition) == ("sums", "sums, question 1:\n", "lost")
    assert (item.base_answer, item.base_score, item.answer, item.score) == ("base says 1", 1, "sft says 1", 0)
    assert list(told(show_items(f"{run}:sft:0", "lost", None, 5))) == [
        "sums item 1: lost 1 → 0 (greedy exact_match,none, seed 0)",
        "  prompt:", "    sums, question 1:", "    ",
        "  base:", "    base says 1",
        "  run:sft:0:", "    sft says 1",
        "", "1 of 1 item",
    ]  # fmt: skip


def test_all_tasks_are_shown_target_first_and_no_more_than_asked(run):
    shown = show_items(f"{run}:sft:1", None, None, 5)
    assert [item.task for item in shown.items] == ["sums"] * 4 + ["facts"]
    assert [*told(shown)][-1] == "5 of 8 items; --head N shows more"
    assert shown.items[-1].metric == FACTS.rpartition(":")[2]


def test_an_unscored_answer_is_told_and_counts_as_not_correct(run):
    lines = [*told(show_items(f"{run}:sft:0", "kept", "sums", 5))]
    assert "sums item 3: kept 0 → unscored (greedy exact_match,none, seed 0)" in lines


def test_base_alone_has_no_transition(run):
    lines = [*told(show_items(f"{run}:base:0", None, "facts", 1))]
    assert lines[0] == "facts item 0: 1 (choices acc,none, seed 0)"
    assert "  base:" not in lines


def test_base_of_other_items_is_refused(run):
    evaluated(run, "sft", 1, sums=[1, 1, 0, 1], facts=[1, 1, 1, 0], digest="of another limit")
    with pytest.raises(UsageError, match="sft:1: sums: base was asked other items"):
        show_items(f"{run}:sft:1", None, None, 5)


def test_nothing_in_an_answer_looks_like_a_heading_or_moves_the_terminal(call, run):
    path = run / "arms" / "sft" / "0" / "evals" / "sums.parquet"
    rows = [row | {"response": HOSTILE, "prompt": None} for row in records.read_table(path)]
    records.write_table(path, rows, records.ITEM_SCHEMA)
    done = integrity.read_sealed(path.parents[1] / "done.json")
    files = {**done["files"], "evals/sums.parquet": records.digest_file(path)}
    integrity.write_sealed(path.parents[1] / "done.json", {**done, "files": files})
    code, out, _ = call("show", "run:sft:0", "--items", "gained")
    assert code == 0
    assert out.splitlines()[3:8] == ["  run:sft:0:", "    2", "      prompt:", "    sums item 9: gained", ""]
    assert out.splitlines()[-1] == "note: recorded by an older version, without prompts"
    code, out, _ = call("show", "run:sft:0", "--items", "gained", "--json")
    assert (code, out.isascii(), json.loads(out)["items"][0]["answer"]) == (0, True, HOSTILE)


def test_states_are_prompt_given_and_written_with_what_was_trained(states):
    shown = show_states(f"{states}:sft", 2)
    data, rollout = shown.states
    assert (shown.num_found, data.prompt, data.given, data.reward) == (4, "1 + 1 =", (), None)
    assert [(piece.text, piece.is_trained) for piece in data.written] == [(" is 2<|endoftext|>", True)]
    assert [(piece.text, piece.is_trained) for piece in (*rollout.given, *rollout.written)] == [
        (" two", False), (" is 2", True),
    ]  # fmt: skip
    assert list(told(shown))[6:] == [
        "seed 0, update 0, row 1: prefix by learner, reward 0.5, unfinished",
        "  prompt:", "    1 + 1 =", "  given, not trained:", "     two", "  written, trained:", "     is 2",
        "", "2 of 4 states; --head N shows more",
    ]  # fmt: skip


def test_states_of_several_updates_are_shown_in_order(call, states):
    code, out, _ = call("show", "run:sft:0", "--states", "--head", 3, "--json")
    found = json.loads(out)["states"]
    assert (code, [(one["step"], one["row"]) for one in found]) == (0, [(0, 0), (0, 1), (1, 0)])


def test_tokens_of_another_tokenizer_are_not_decoded(states):
    plan = integrity.read_sealed(states / "plan.json")
    integrity.write_sealed(states / "plan.json", {**plan, "model_files": {"tokenizer.json": "other"}})
    with pytest.raises(UsageError, match=r"tokenizer\.json: is not the run's own any more"):
        show_states(f"{states}:sft", 2)
    integrity.write_sealed(states / "plan.json", {**plan, "model": "gone"})
    with pytest.raises(UsageError, match=r"its base model is no folder here \(gone\)"):
        show_states(f"{states}:sft", 2)


def test_damaged_states_are_not_shown(states):
    (states / "arms" / "sft" / "0" / "states" / "000002.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"000002\.parquet is not what was recorded"):
        show_states(f"{states}:sft", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere:sft"], "nowhere:sft: no such folder"),
        (["run"], "run: a run folder; say which arm, run:ARM, ARM one of base, sft, slim, wild, late"),
        (["run", "--states"], "say which arm"),
        (["run:sff"], "unknown arm 'sff'. Did you mean 'sft'?"),
        (["run:sft:7"], "has no seed 7; its seeds are 0, 1"),
        (["run:sft", "--task", "sum"], "unknown task 'sum'. Did you mean 'sums'?"),
        (["run:sft", "--items", "losst"], "--items: unknown choice of items 'losst'. Did you mean 'lost'?"),
        (["run:base", "--items", "lost"], "the base model gains and loses nothing"),
        (["run:late"], "'late' was evaluated in none of seeds 0, 1"),
        (["run:late", "--states"], "has no training states: it was trained in no seed"),
        (["run:base", "--states"], "has no training states: the base model is not trained"),
        (["run:sft", "--states", "--task", "sums"], "--states shows what was trained on"),
    ],
)
def test_what_cannot_be_shown_is_named_with_what_could_be(call, run, arguments, words):
    code, out, err = call("show", *arguments)
    assert (code, out) == (2, "")
    assert words in err
