"""Kinds of another package, one entry point each, are listed, planned, trained and reported like the built-in ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from forked import CONTEXT, command, start_server

import statewise as sw
from statewise.drift import DISTANCES
from statewise.errors import UsageError
from statewise.kind import Kinds
from statewise.locality import LOCALITIES
from statewise.policy.samplers import SAMPLERS
from statewise.signals import SIGNALS, Imitate, Signal
from statewise.states import SOURCES

ARMS = {
    "own": {
        "source": {"kind": "dataset"}, "signal": {"kind": "registered"}, "update": {"num_updates": 1, "lr": 1e-3},
    }
}  # fmt: skip
PLUGIN = Path(__file__).parent / "toy_plugin"
STUDY = """\
[study]
name = "own"
factors = ["source", "signal", "locality"]
[shared]
sampler = "by_hand"
evaluation = { limit = 4, max_new_tokens = 8 }
drift = { num_prompts = 4, max_new_tokens = 8, num_permutations = 19 }
update = { num_updates = 2, lr = 1e-3 }
[arms.own]
source = { kind = "beginning", num_tokens = 5 }
signal = { kind = "smoothed", share = 0.5 }
locality = { kind = "counted" }
[arms.rl]
source = { kind = "rollout", num_prompts = 2, max_new_tokens = 8 }
signal = [{ kind = "smoothed" }, { kind = "imitate", weight = 0.5 }]
"""


def statewise_with_plugin(*arguments):
    """The command line in a process of its own, which finds the other package."""
    path = os.pathsep.join([str(PLUGIN), str(Path(sw.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "statewise", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_kinds_of_another_package_are_listed():
    cells = json.loads(statewise_with_plugin("list", "cells", "--json").stdout)
    found = {(cell["source"], cell["signal"]): cell for cell in cells}
    assert found["beginning", "imitate"]["refused"] == ""
    assert found["learner", "smoothed"]["name"] == "smoothed on learner states"
    assert "advantage would be 0" in found["beginning", "reward"]["refused"]
    assert "furthest" in statewise_with_plugin("list", "distances").stdout


def command_with_plugin(arguments, log):
    """As `forked.command`, where the server that it is forked from did not know of the other package."""
    sys.path.insert(0, str(PLUGIN))
    for registry in (SOURCES, SIGNALS, LOCALITIES, DISTANCES, SAMPLERS):
        registry._has_others = False
    command(arguments, log)


def test_kinds_of_another_package_are_planned_trained_and_reported(tmp_path):
    (tmp_path / "own.toml").write_text(STUDY)
    plan = statewise_with_plugin("run", tmp_path / "own.toml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "beginning" in plan.stdout
    arguments = ["run", tmp_path / "own.toml", "--out", tmp_path / "run", "--workers", 1]
    start_server()
    process = CONTEXT.Process(target=command_with_plugin, args=(arguments, tmp_path / "log.txt"))
    process.start()
    process.join(300)
    assert process.exitcode == 0, (tmp_path / "log.txt").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    own = next(run for run in summary["runs"] if run["arm"] == "own")
    assert own["recipe"].startswith("smoothed on beginning states · 2 updates of 4 · lr 0.001")
    assert own["recipe"].endswith("counted")
    assert "furthest" in own["drift"]
    metrics = [json.loads(line) for line in (tmp_path / "run/arms/own/0/metrics.jsonl").read_text().splitlines()]
    assert [line["locality/counted_steps"] for line in metrics] == [1, 2]
    assert [line["states/num_states"] for line in metrics] == [20, 20]  # 5 tokens of 4 texts
    page = (tmp_path / "run" / "report.html").read_text()
    assert "smoothed on beginning states" in page
    typo = statewise_with_plugin("run", tmp_path / "own.toml", "--dry-run", "--set", "own.source.num_token=3")
    assert "unknown key in [arms.own.source]: 'num_token'. Did you mean 'num_tokens'?" in typo.stderr


def test_a_class_is_registered_in_python():
    class Registered(Signal):
        kind: Literal["registered"] = "registered"

    with pytest.raises(UsageError, match="unknown signal 'registered'"):
        sw.Study(arms=ARMS)
    sw.register_signal(Registered)
    try:
        assert sw.Study(arms=ARMS).config.arms["own"].signal[0].signal == Registered()
    finally:
        del SIGNALS._held["registered"]


def test_a_name_is_given_once():
    kinds = Kinds("signal", "statewise.none")
    kinds.add(Imitate)

    class Again(Signal):
        kind: str = "imitate"

    with pytest.raises(UsageError, match="signal 'imitate' is there already; choose another name"):
        kinds.add(Again)


def test_what_cannot_be_loaded_is_named_when_it_is_asked_for():
    kinds = Kinds("signal", "statewise.none")
    kinds.put_later("broken", "statewise.nowhere:Broken")
    assert [*kinds] == ["broken"]
    assert "broken" in kinds
    with pytest.raises(UsageError, match=r"signal 'broken': statewise\.nowhere:Broken cannot be loaded: No module"):
        kinds["broken"]
    kinds.put_later("other", "statewise.errors:UsageError")
    with pytest.raises(UsageError, match=r"signal .*UsageError.*: needs a field kind: Literal\['other'\] = 'other'"):
        kinds["other"]
