"""The table of a batch's fields: one more line in it is padded, joined, taken, recorded and read like the others."""

from dataclasses import dataclass, fields
from typing import Annotated

import numpy as np
import pytest

from statewise import batch
from statewise.batch import (
    COLUMNS,
    Column,
    States,
    Trajectory,
    collate,
    join_rows,
    state_rows,
    states_of_rows,
    take_rows,
)
from statewise.storage import records


@dataclass(frozen=True)
class ToyTrajectory(Trajectory):
    toy: int = 0
    noises: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ToyStates(States):
    toys: Annotated[batch.IntArray, Column("toy", "int32")]
    noises: Annotated[batch.FloatArray, Column("noises", "float32", "token")]


def test_a_new_column_goes_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "States", ToyStates)
    monkeypatch.setattr(batch, "COLUMNS", batch.columns_of(ToyStates))
    one = collate([ToyTrajectory((5, 6, 7), 1, 4, "rollout", "learner", toy=3, noises=(0.25, 0.5))])
    two = collate([ToyTrajectory((8, 9), 1, 2, "dataset", "data", toy=toy) for toy in (7, 9)])
    taken = take_rows(join_rows([one, two]), [2, 0])
    schema = records.schema_of_states(batch.COLUMNS.values())
    records.write_table(tmp_path / "a.parquet", state_rows(0, taken), schema)
    rows = records.read_table(tmp_path / "a.parquet")
    assert [row["toy"] for row in rows] == [9, 3]
    for states in (taken, states_of_rows(rows)):
        assert states.toys.dtype == np.int64 and states.noises.dtype == np.float32
        assert states.toys.tolist() == [9, 3]
        np.testing.assert_array_equal(states.noises, np.array([[np.nan] * 3, [np.nan, 0.25, 0.5]], np.float32))


def test_a_trajectory_gives_every_column_but_those_that_are_made():
    given = {field.name for field in fields(Trajectory)}
    columns = {column.name for column in COLUMNS.values()}
    assert given - columns == {"first_action", "group"}
    made = {"action_mask", "group_id", "advantage", "label_ids", "temperature", "top_p"}
    assert columns - given == made


def test_every_field_of_a_batch_is_recorded_but_those_that_are_made_anew():
    assert {field.name for field in fields(States)} - set(COLUMNS) == {"lengths", "pair_ids", "old_logprobs"}


def test_a_record_has_these_columns():
    # A change here is one of a file format: it raises RECORD_VERSION.
    assert [f"{field.name} {field.type}" for field in records.STATE_SCHEMA] == [
        "step int32", "row int32", "source string", "writer string", "writer_update int32", "prompt_index int32",
        "group_id int64", "prompt_length int32", "num_given int32", "token_ids list<item: int32>",
        "action_mask list<item: bool>", "label_ids list<item: int32>", "behavior_logprobs list<item: float>",
        "temperature double", "top_p double", "is_finished bool", "reward float", "advantage float",
    ]  # fmt: skip


def test_a_column_that_no_source_gives_is_no_silent_zero(monkeypatch):
    monkeypatch.setattr(batch, "COLUMNS", batch.columns_of(ToyStates))
    with pytest.raises(KeyError, match="toy"):
        collate([Trajectory((5, 6), 1, 0, "dataset", "data")])
