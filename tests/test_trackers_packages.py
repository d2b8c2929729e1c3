"""What the packages themselves hold after a run that was interrupted: offline, read back with their own readers."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from statewise.trackers import TrackedRun, trackers_named

POINTS = [{"loop/loss_nats": 1 / (1 + step), "states/num_states": 8.0 * step} for step in range(5)]
LAST = {"evals/pocket_math/greedy/exact_match/flexible-extract": 0.5, "drift/mmd/value": -0.25}
WHOLE = [*POINTS, LAST]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in which the packages keep what they keep, and nothing of the network."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("WANDB_PROJECT", "WANDB_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def track(name, folder, sessions):
    """Two runs side by side, by a process for each of `sessions`: how many points there are when it ends."""
    runs = [
        TrackedRun(f"{number:016x}", "small", f"sft-{number}", folder, {"arm": "sft", "n": {"lr": 0.5}})
        for number in (0, 1)
    ]
    held = []
    for count in sessions:
        tracker = trackers_named(name)[name]()
        steps = [tracker.start(run) for run in runs]
        held.append(steps)
        for step in range(min(steps), count):
            for run in runs:
                tracker.log(run, step, WHOLE[step])
        for run in runs:
            tracker.finish(run, count == len(WHOLE))
        assert tracker.place
    return held


def values(points):
    return [(step, key, value) for step, point in enumerate(points) for key, value in sorted(point.items())]


def test_tensorboard_is_written_anew_and_read_back(home):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert track("tensorboard", home, [3, 6]) == [[0, 0], [0, 0]]
    for number in (0, 1):
        found = EventAccumulator(
            str(home / "trackers" / "tensorboard" / f"sft-{number}"), size_guidance={"tensors": 0}
        ).Reload()
        tensors = {key: found.Tensors(key) for key in found.Tags()["tensors"]}
        read = [(event.step, key, event.tensor_proto.float_val[0]) for key in tensors for event in tensors[key]]
        assert sorted(read) == [(step, key, pytest.approx(value, rel=1e-6)) for step, key, value in values(WHOLE)]


def test_trackio_goes_on_after_what_it_holds(home, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackio"))
    for module in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, module)  # it reads the variable when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert track("trackio", home, [3, 6, 6]) == [[0, 0], [3, 3], [6, 6]]
    names = SQLiteStorage.get_runs("small")
    assert sorted(names) == ["sft-0-00000000", "sft-1-00000000"]
    for name in names:
        rows = SQLiteStorage.get_logs("small", name)
        read = [(row["step"], key, row[key]) for row in rows for key in row if key not in ("step", "timestamp")]
        assert sorted(read) == values(WHOLE)
        assert SQLiteStorage.get_run_config("small", name)["n"] == {"lr": 0.5}


# Of SQLAlchemy, as MLflow calls it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_goes_on_after_what_it_holds(home):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    assert track("mlflow", home, [3, 6, 6]) == [[0, 0], [3, 3], [6, 6]]
    client = MlflowClient()
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["sft-0", "sft-1"]
    for run in runs:
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        read = [(metric.step, key, metric.value) for key, history in histories.items() for metric in history]
        assert sorted(read) == values(WHOLE)
        assert run.data.params == {"arm": "sft", "n.lr": "0.5"} and run.info.status == "FINISHED"


def test_wandb_writes_the_whole_run_anew_where_it_is_offline(home):
    wandb = pytest.importorskip("wandb")
    assert track("wandb", home, [3, 6]) == [[0, 0], [0, 0]]
    wandb.teardown()
    files = sorted((home / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert sorted(path.stem for path in files) == sorted(2 * ["run-0000000000000000", "run-0000000000000001"])
    assert [read_wandb(path) for path in files[-2:]] == 2 * [values(WHOLE)]
    assert [read_wandb(path) for path in files[:2]] == 2 * [values(WHOLE[:3])]


def read_wandb(path: Path):
    """What W&B's service would be sent of a run: the file is a LevelDB log of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in log_records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found += [(items["_step"], key, value) for key, value in items.items() if not key.startswith("_")]
    return sorted(found)


def log_records(data: bytes):
    """The records of a log: in blocks of 32 KiB, each part with CRC, length and whether it is whole, first or last."""
    place, pending, header = 7, b"", struct.Struct("<IHB")
    while place + header.size <= len(data):
        if 32768 - place % 32768 < header.size:
            place += 32768 - place % 32768
            continue
        _, length, kind = header.unpack_from(data, place)
        place += header.size + length
        pending += data[place - length : place]
        if kind in (1, 4):  # whole, or last
            yield pending
            pending = b""
