"""Kinds of another package, one entry point each, are listed, planned, trained and reported like the built-in ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import abstractmethod
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from forked import CONTEXT, command, start_server
from study_fixture import small_plan

import statewise as sw
from statewise.drift import DISTANCES
from statewise.errors import UsageError
from statewise.folder.verify import verify_run
from statewise.kind import Kind, Kinds
from statewise.locality import LOCALITIES
from statewise.policy.engine import ENGINES
from statewise.registry import Registry
from statewise.signals import SIGNALS, Imitate, Signal
from statewise.states import SOURCES
from statewise.trackers import TRACKERS

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
    assert "noted" in statewise_with_plugin("list", "trackers").stdout


def command_with_plugin(arguments, log):
    """As `forked.command`, where the server that it is forked from did not know of the other package."""
    sys.path.insert(0, str(PLUGIN))
    for registry in (SOURCES, SIGNALS, LOCALITIES, DISTANCES, ENGINES, TRACKERS):
        registry._has_others = False
    command(arguments, log)


def test_kinds_of_another_package_are_planned_trained_and_reported(tmp_path):
    (tmp_path / "own.toml").write_text(STUDY)
    plan = statewise_with_plugin("run", tmp_path / "own.toml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "beginning" in plan.stdout
    arguments = ["run", tmp_path / "own.toml", "--out", tmp_path / "run", "--workers", 1]
    arguments += ["--report-to", "noted"]
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
    noted = [json.loads(line) for line in (tmp_path / "noted.jsonl").read_text().splitlines()]
    told = {(name, step): metrics for name, step, metrics in noted}
    # Base: scores. An arm: two updates, scores. The summary. Each of them with its end.
    assert len(told) == len(noted) == 2 + 2 * 4 + 2
    for step, line in enumerate(metrics):
        assert told["own-0", step] == {key: value for key, value in line.items() if key not in ("step", "states/hash")}
    scores = {f"evals/{key.replace(':', '/').replace(',', '/')}": one["value"] for key, one in own["scores"].items()}
    assert {key: value for key, value in told["own-0", 2].items() if key in scores} == pytest.approx(scores)
    assert told["summary", 0]["own/forgetting/value"] == own["forgetting"]["value"]
    (tmp_path / "run" / "trackers" / "page.html").touch()
    assert verify_run(tmp_path / "run").is_sound  # what trackers keep is nobody's record
    assert all(told[name, -1]["is_done"] for name in ("base-0", "own-0", "rl-0", "summary"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "smoothed on beginning states" in page
    typo = statewise_with_plugin("run", tmp_path / "own.toml", "--dry-run", "--set", "own.source.num_token=3")
    assert "unknown key in [arms.own.source]: 'num_token'. Did you mean 'num_tokens'?" in typo.stderr


class Registered(Signal):
    kind: Literal["registered"] = "registered"

    def loss(self, inputs):
        return -inputs.required("policy_logprobs")


def test_a_class_is_registered_in_python():
    with pytest.raises(UsageError, match="unknown signal 'registered'"):
        sw.Study(arms=ARMS)
    with pytest.raises(UsageError, match="Registered is no registered signal; register the class first"):
        sw.Study(arms={"own": {**ARMS["own"], "signal": Registered()}})
    sw.register_signal(Registered)
    try:
        for signal in ({"kind": "registered"}, Registered()):
            study = sw.Study(arms={"own": {**ARMS["own"], "signal": signal}})
            assert study.config.arms["own"].signal[0].signal == Registered()
    finally:
        del SIGNALS._held["registered"]


class Room(Kind):
    registry: ClassVar[Kinds] = Kinds("thing", "statewise.none")

    @abstractmethod
    def answer(self): ...


class One(Room):
    kind: Literal["one"] = "one"

    def answer(self):
        return 1


class Again(One):
    pass


class Silent(Room):
    kind: Literal["silent"] = "silent"


class Nameless(Room):
    def answer(self):
        return 2


class Path_(Room):
    kind: Literal["../one"] = "../one"

    def answer(self):
        return 3


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        (Again, r"thing 'one' of test_plugins:Again is there already, of test_plugins:One; choose another name"),
        (Silent, "thing 'Silent': does not say answer; the base class tells what each is"),
        (Nameless, r"thing 'Nameless': needs a field kind: Literal\['its_name'\] = 'its_name'"),
        (Path_, r"thing '../one': a name has letters, digits, '_' and '-', and begins with a letter"),
        (Imitate, "thing 'Imitate': is no class of a thing; derive it from the base class of that name"),
        (dict, "thing 'dict': is no class of a thing"),
    ],
)
def test_what_cannot_be_registered_is_refused_by_name(thing, told):
    Room.registry.put("one", One)
    with pytest.raises(UsageError, match=told):
        Room.registry.add(thing)
    assert [*Room.registry] == ["one"]
    Room.registry.add(One)  # again, as by an entry point


def test_names_that_packages_give_twice_are_refused_whenever_they_are_asked_for(monkeypatch):
    kinds = Kinds("thing", "statewise.none")
    entries = [EntryPoint("two", "a:Two", "statewise.none"), EntryPoint("two", "b:Two", "statewise.none")]
    monkeypatch.setattr("statewise.registry.entry_points", lambda group: entries)
    for _ in range(2):
        with pytest.raises(UsageError, match="thing 'two' of b:Two is there already, of a:Two"):
            len(kinds)
    entries[1] = entries[0]
    assert [*kinds] == ["two"]


def test_a_thing_that_an_entry_point_gives_from_another_module_is_the_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reexports.py").write_text("from test_plugins import One as Other, Room")
    things = Registry("thing", "statewise.none")
    things.put("one", One)
    things.put_later("one", "reexports:Other")
    assert things["one"] is One
    with pytest.raises(UsageError, match="of reexports:Room is there already, of test_plugins:One"):
        things.put_later("one", "reexports:Room")
    things.put("part", partial(max, 1))  # which has no name of its own
    with pytest.raises(UsageError, match="thing 'part' of functools:partial is there already, of functools:partial"):
        things.put("part", partial(max, 2))


def test_what_cannot_be_loaded_is_named_when_it_is_asked_for():
    kinds = Kinds("signal", "statewise.none")
    kinds.put_later("broken", "statewise.nowhere:Broken")
    assert [*kinds] == ["broken"]
    assert "broken" in kinds
    with pytest.raises(UsageError, match=r"signal 'broken': statewise\.nowhere:Broken cannot be loaded: No module"):
        kinds["broken"]
    kinds.put_later("other", "statewise.errors:UsageError")
    with pytest.raises(UsageError, match="signal 'UsageError': is no class of a signal"):
        kinds["other"]


def test_only_code_of_other_packages_is_digested(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "others_code").mkdir()
    for name, text in (("__init__", ""), ("signals", "class A: pass"), ("helpers", "x = 1")):
        (tmp_path / "others_code" / f"{name}.py").write_text(text)
    things = Registry("signal", "statewise.none")
    things.put_later("theirs", "others_code.signals:A")
    things.put_later("ours", "statewise.policy.sampler:sample")
    before = things.code_digest("theirs")
    assert before == things.code_digest("theirs")
    (tmp_path / "others_code" / "helpers.py").write_text("x = 2")
    assert things.code_digest("theirs") != before
    assert things.code_digest("ours") is None
    things.put_later("script", "__main__:A")
    with pytest.raises(UsageError, match="signal 'script' is defined in '__main__', which workers cannot import"):
        things.code_digest("script")


def test_the_code_of_a_kind_of_another_package_is_in_the_fingerprint_of_the_arms_that_have_it(tmp_path, monkeypatch):
    monkeypatch.setitem(SIGNALS._held, "registered", Registered)
    set_signal = "sft.signal={ kind = 'registered' }"

    def prints():
        return {job.id: job.fingerprint for job in small_plan(tmp_path, set_signal).jobs}

    plain = {job.id: job.fingerprint for job in small_plan(tmp_path).jobs}
    before = prints()
    monkeypatch.setattr("statewise.registry._digest_package", lambda package, what: f"other code of {package}")
    after = prints()
    changed = {job for job in after if after[job] != before[job]}
    assert changed == {job for job in after if before[job] != plain[job]}  # those that stand on the arm
    assert {"train:sft:0", "evaluate:sft:0"} <= changed < {*after}


def test_kinds_of_another_package_get_their_rows_in_the_table_of_methods(tmp_path):
    root = Path(sw.__file__).parents[2]
    page = tmp_path / "methods.md"
    page.write_bytes((root / "docs" / "methods.md").read_bytes())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), str(root / "src")])}
    subprocess.run([sys.executable, root / "tools/cells_table.py", page], env=environment, check=True, timeout=300)
    rows = page.read_text().splitlines()
    assert "| `beginning` | `imitate` | imitate on beginning states | – | – |" in rows
    assert "### `smoothed`" in rows
    assert "| `learner` | `smoothed` | smoothed on learner states | – | – |" in rows
