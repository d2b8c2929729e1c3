import json
import math
from dataclasses import replace

import numpy as np
import pytest

from statewise.batch import Trajectory, collate, state_rows, states_of_rows
from statewise.loop.recorder import Recorder
from statewise.storage import records
from statewise.storage.state_records import chain_hash


def make_states(step=0):
    return collate([
        Trajectory((5, 6, 7 + step), 1, 4, "rollout", "learner", (-0.5, -0.25), is_finished=False,
                   writer_update=3),
        Trajectory((8, 9), 1, 2, "dataset", "data"),
    ], temperature=0.5, top_p=0.9)  # fmt: skip


def record(recorder, steps, flush_every=2):
    for step in steps:
        recorder.states(step, make_states(step), [])
        recorder.step(step, {"loop/loss_nats": 0.5 + step}, {"loop/update_s": 0.123456})
        if (step + 1) % flush_every == 0:
            recorder.flush(step + 1)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_line_of_metrics_an_update_and_the_time_apart(tmp_path):
    recorder = Recorder(tmp_path)
    record(recorder, range(2))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1] == {"step": 1, "loop/loss_nats": 1.5, "states/hash": recorder.state_hash}
    times = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert times[1] == {"step": 1, "loop/update_s": 0.1235}


def test_every_training_state_is_recorded_without_padding(tmp_path):
    record(Recorder(tmp_path), range(2))
    rows = records.read_table(tmp_path / "states" / "000002.parquet")
    assert [(row["step"], row["row"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert math.isnan(rows[2].pop("behavior_logprobs")[0])
    assert rows[2] == {
        "step": 1, "row": 0, "source": "rollout", "writer": "learner", "writer_update": 3, "prompt_index": 4,
        "group_id": 4, "prompt_length": 1, "num_given": 0, "token_ids": [5, 6, 8], "action_mask": [False, True, True],
        "label_ids": None, "temperature": 0.5, "top_p": 0.9, "is_finished": False, "reward": None, "advantage": None,
    }  # fmt: skip
    assert rows[3]["token_ids"] == [8, 9]


def test_rewards_and_advantages_are_recorded_where_there_are_any(tmp_path):
    recorder = Recorder(tmp_path)
    visited = make_states()
    graded = replace(visited, rewards=np.array([0.5, np.nan], np.float32), advantages=np.array([0.25, 0.0], np.float32))
    recorder.states(0, visited, [graded])
    recorder.flush(1)
    assert not (tmp_path / "supervised").exists()  # the same tokens and mask
    rows = records.read_table(tmp_path / "states" / "000001.parquet")
    assert [(row["reward"], row["advantage"]) for row in rows] == [(0.5, 0.25), (None, 0.0)]


def test_what_a_signal_made_of_the_states_is_recorded_beside_them(tmp_path):
    recorder, visited = Recorder(tmp_path), make_states()
    labels = np.full_like(visited.token_ids, 3)
    other = make_states(step=4)
    recorder.states(0, visited, [visited, replace(visited, label_ids=labels), other])
    recorder.flush(1)
    assert recorder.state_hash == chain_hash(Recorder(tmp_path).state_hash, visited)
    rows = records.read_table(tmp_path / "supervised" / "000001.parquet")
    assert [row["token_ids"] for row in rows] == [[5, 6, 7], [8, 9], [5, 6, 11], [8, 9]]
    assert [row["label_ids"] for row in rows] == [[3, 3, 3], [3, 3], None, None]
    assert [row["token_ids"] for row in records.read_table(tmp_path / "states" / "000001.parquet")] == [
        [5, 6, 7],
        [8, 9],
    ]


def test_recorded_states_are_read_back_as_they_were(tmp_path):
    recorder, visited = Recorder(tmp_path), make_states()
    visited.action_mask[0, 1] = False  # as a mixture by state leaves it
    recorder.states(0, visited, [])
    recorder.flush(1)
    read = states_of_rows(records.read_table(tmp_path / "states" / "000001.parquet"))
    assert chain_hash("a", read) == chain_hash("a", visited)
    assert [*map(str, state_rows(0, read))] == [*map(str, state_rows(0, visited))]


def test_the_hash_changes_with_one_token_one_mask_or_the_past():
    states = make_states()
    before = chain_hash("a", states)
    assert chain_hash("a", make_states()) == before
    assert chain_hash("b", states) != before
    assert chain_hash("a", make_states(1)) != before
    states.action_mask[0, 1] = False
    assert chain_hash("a", states) != before


def test_padding_does_not_enter_the_hash():
    states = make_states()
    before = chain_hash("a", states)
    states.token_ids[1, 2] = 77
    assert chain_hash("a", states) == before


def test_the_hash_knows_where_a_row_ends():
    one = collate([Trajectory((1, 2, 3, 4), 1, 0, "dataset", "data")])
    two = collate([Trajectory((1, 2), 1, 0, "dataset", "data"), Trajectory((3, 4), 1, 0, "dataset", "data")])
    assert chain_hash("a", one) != chain_hash("a", two)


def test_a_rewind_forgets_what_came_after_and_doing_it_again_gives_the_same_bytes(tmp_path):
    whole, cut = Recorder(tmp_path / "whole"), Recorder(tmp_path / "cut")
    record(whole, range(6))
    record(cut, range(2))
    hash_at_two, rewards_at_two = cut.state_hash, cut.reward_hash
    record(cut, range(2, 5))
    cut.rewind(2, hash_at_two, rewards_at_two)
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 2
    assert [p.name for p in (tmp_path / "cut" / "states").iterdir()] == ["000002.parquet"]
    record(cut, range(2, 6))
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    assert cut.state_hash == whole.state_hash


def test_a_rewind_drops_half_a_line(tmp_path):
    recorder = Recorder(tmp_path)
    record(recorder, range(2))
    expected = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 2, "loop/lo')
    recorder.rewind(2, recorder.state_hash, recorder.reward_hash)
    assert (tmp_path / "metrics.jsonl").read_bytes() == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Recorder(tmp_path).step(0, {"loop/loss_nats": value}, {})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_metrics_are_durable_once_they_are_flushed(tmp_path, monkeypatch):
    # A checkpoint that outlives a power cut must not stand beside metrics that did not.
    synced = []
    monkeypatch.setattr(records, "sync_folder", synced.append)
    record(Recorder(tmp_path), range(2))
    assert {tmp_path / "metrics.jsonl", tmp_path / "timing.jsonl"} <= set(synced)


def test_a_flush_without_new_states_writes_nothing(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.flush(3)
    assert list(tmp_path.iterdir()) == []
