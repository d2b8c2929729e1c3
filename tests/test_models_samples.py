"""`statewise samples`: what an evaluation and an arm recorded, as lm-eval's files, or why it cannot be."""

from __future__ import annotations

import json

import pytest
from run_fixture import evaluated, write_run

from statewise.assets import POCKET_MODEL
from statewise.models.compare import compare
from statewise.models.sides import read_side
from statewise.storage import integrity, records

TASK = "pocket_facts"


@pytest.fixture
def evaluation(call, tmp_path):
    """A folder of `statewise eval` of the embedded model on four sampled items."""
    assert call("eval", "pocket", "--tasks", TASK, "--limit", 4, "-o", "ev")[0] == 0
    return tmp_path / "ev"


def change_rows(folder, **change):
    """Write other values into the recorded rows, as if they had been recorded so."""
    path, header = folder / "evals" / f"{TASK}.parquet", folder / "eval.json"
    rows = [row | change for row in records.read_table(path)]
    stored = integrity.read_sealed(header)
    stored["tasks"][TASK]["sha256"] = records.write_table(path, rows, records.ITEM_SCHEMA)
    integrity.write_sealed(header, stored)


def test_the_samples_of_an_evaluation_are_compared_with_itself(call, evaluation, tmp_path):
    code, out, _ = call("samples", "ev", "-o", "out")
    assert code == 0
    assert out.count("Written: out/pocket/") == 2
    (score,) = compare(read_side(str(evaluation)), read_side(str(tmp_path / "out"))).scores
    assert (score.difference.value, score.difference.num_items, score.chance) == (0, 4, 0.25)
    (path,) = (tmp_path / "out").rglob("samples_*.jsonl")
    ids = [json.loads(line)["doc_id"] for line in path.read_text().splitlines()]
    assert ids == sorted(ids) != list(range(4))  # a sample of the items, under their own numbers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"item_sha256": "0" * 64}, "is another document or prompt than was evaluated; evaluate it again"),
        ({"item_sha256": None}, "has no digest; evaluate it again"),
        ({"logprobs": None}, "was recorded by an older version, without log-likelihoods; evaluate it again"),
        ({"score": 0.5}, "now and was recorded as 0.5; another version graded it"),
        ({"decoding": "sampled"}, "was not decoded greedily"),
    ],
)
def test_what_is_missing_or_other_than_recorded_is_refused(call, evaluation, change, words):
    change_rows(evaluation, **change)
    code, _, err = call("samples", "ev", "-o", "out")
    assert code == 2
    assert words in err


def test_chats_several_seeds_and_mistyped_names_are_one_line(call, tmp_path):
    folder = write_run(tmp_path / "run", POCKET_MODEL, "pocket")
    for seed in (0, 1):
        evaluated(folder, "sft", seed, sums=[1, 0], facts=[1, 0])
    for arguments, words in (
        (("run:sft",), "has seeds 0, 1; name one, run:sft:0"),
        (("run:sff:0",), "unknown arm 'sff'"),
        (("nowhere",), "no such folder"),
    ):
        code, _, err = call("samples", *arguments, "-o", "out")
        assert code == 2
        assert words in err
    assert not (tmp_path / "out").exists()
