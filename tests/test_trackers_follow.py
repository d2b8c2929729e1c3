"""A tracker is told each point once and in order, whatever interrupts the run or the tracker: by files made by hand."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from dataclasses import replace

import pytest
from fake_tracker import DyingTracker, FakeTracker, HangingTracker, points, told
from forked import CONTEXT, start_server
from run_fixture import METRIC, PROTOCOL, item_rows
from study_fixture import job_named, small_plan

import statewise as sw
from statewise.errors import UsageError
from statewise.folder.store import Store
from statewise.storage import integrity, records
from statewise.storage.records import ITEM_SCHEMA
from statewise.trackers import TRACKERS, Tracker, follow, process, trackers_named
from statewise.trackers.arm_record import ArmRecord, flat
from statewise.trackers.follow import Follower
from statewise.trackers.process import Reporting, followed_runs

NUM_UPDATES = 5
DRIFT = {"mmd": {"value": 0.25, "floor": 0.0, "p_value": 0.01, "num_rollouts": 8}}


class Running:
    """A run folder that grows as that of a study does: arm `sft` of seed 0 trains, and the base model is evaluated."""

    def __init__(self, folder):
        self.plan = small_plan(folder, "study.seeds=[0]")
        self.folder = folder / "run"
        self.store = Store(self.folder)
        self.train = job_named(self.plan, "train:sft:0")
        self.arm = self.store.arm_folder("sft", 0)
        self.arm.mkdir(parents=True)
        integrity.write_sealed(self.arm / "started.json", {"fingerprint": self.train.fingerprint})

    def update(self, first, last):
        """Lines of the updates from `first` to before `last`, in the place of what is there from `first` on."""
        lines = self.lines()[:first] + [self.line(step) for step in range(first, last)]
        (self.arm / "metrics.jsonl").write_text("".join(lines))

    def lines(self):
        path = self.arm / "metrics.jsonl"
        return path.read_text().splitlines(keepends=True) if path.exists() else []

    @staticmethod
    def line(step):
        return json.dumps({"step": step, "loop/loss_nats": 1 / (1 + step), "states/hash": f"{step:x}"}) + "\n"

    def checkpoint(self, step):
        digest = hashlib.sha256("".join(self.lines()[:step]).encode()).hexdigest()
        progress = {"step": step, "records": {"metrics.jsonl": digest}}
        (self.arm / "checkpoints" / f"{step:06d}").mkdir(parents=True)
        integrity.write_sealed(self.arm / "checkpoints" / f"{step:06d}" / "progress.json", progress)

    def end_training(self, status="trained"):
        self.store.finish(self.train, {"status": status, "node_s": 0.0})
        shutil.rmtree(self.arm / "checkpoints", ignore_errors=True)

    def evaluate(self, arm="sft", scores=(1.0, 0.0, None, 1.0)):
        job = job_named(self.plan, f"evaluate:{arm}:0")
        folder = self.store.arm_folder(arm, 0)
        records.write_table(folder / "evals/sums.parquet", item_rows("sums", "greedy", METRIC, [*scores]), ITEM_SCHEMA)
        if arm != "base":
            records.write_json(folder / "drift.json", DRIFT)
        self.store.finish(job, {"status": "evaluated", "protocols": {"sums": PROTOCOL}, "node_s": 0.0})

    def follower(self, said=None, kind=FakeTracker):
        """As a new process of the tracker has it."""
        _, followed = followed_runs(self.plan, self.folder, "id of the folder")
        return Follower(kind, [ArmRecord(*one) for one in followed], [].append if said is None else said.append)


@pytest.fixture
def running(tmp_path):
    return Running(tmp_path)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeTracker, "fails", {})
    return tmp_path / "told.jsonl"


@pytest.fixture
def whole(file, running):
    """What a tracker is told of a run that nothing disturbs; as after that, the folder and its file are empty."""
    follower = running.follower()
    running.evaluate("base")
    running.update(0, NUM_UPDATES)
    running.end_training()
    running.evaluate()
    follower.sweep()
    follower.close()
    found = points(file)
    file.unlink()
    shutil.rmtree(running.folder)
    running.__init__(running.folder.parent)
    return found


def test_a_run_has_a_point_an_update_and_then_one_of_its_scores(whole):
    # Of four answers two are right and one could not be scored, which counts as not correct: 2/4.
    scores = {"evals/sums/greedy/exact_match/none": 0.5}
    drift = {"drift/mmd/value": 0.25, "drift/mmd/floor": 0.0, "drift/mmd/p_value": 0.01, "drift/mmd/num_rollouts": 8.0}
    losses = [(step, {"loop/loss_nats": 1 / (1 + step)}) for step in range(NUM_UPDATES)]
    assert whole == {"base-0": [(0, scores)], "sft-0": [*losses, (NUM_UPDATES, {**scores, **drift})]}


def test_a_point_is_told_when_a_checkpoint_holds_it_and_nothing_takes_it_back(running, file):
    follower = running.follower()
    running.update(0, 3)
    follower.sweep()
    assert points(file) == {}
    running.checkpoint(2)
    follower.sweep()
    assert [step for step, _ in points(file)["sft-0"]] == [0, 1]
    running.update(2, 5)
    running.checkpoint(4)
    follower.sweep()
    assert [step for step, _ in points(file)["sft-0"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("is_killed", [True, False])
@pytest.mark.parametrize("last", [0, 2, 4])
def test_an_interrupted_run_tells_a_tracker_what_an_undisturbed_one_does(running, file, whole, last, is_killed):
    follower = running.follower()
    running.evaluate("base")
    for step in range(0, last, 2):
        running.update(step, step + 2)
        running.checkpoint(step + 2)
        follower.sweep()
    with (running.arm / "metrics.jsonl").open("a") as stream:  # behind the checkpoint: it is done again, by itself
        stream.write('{"step": 9, "loop/loss_nats": 9.0}\n{"st')
    follower.sweep()
    if not is_killed:
        follower.close()
    follower = running.follower()
    follower.sweep()
    running.update(last, NUM_UPDATES)
    follower.sweep()
    running.end_training()
    follower.sweep()
    running.evaluate()
    follower.sweep()
    follower.close()
    assert points(file) == whole
    ends = [line["is_done"] for line in told(file, "sft-0") if line["call"] == "finish"]
    assert ends == ([True] if is_killed or last == 0 else [False, True])


def test_a_folder_that_is_done_is_told_to_a_tracker_that_comes_later(running, file, whole):
    running.evaluate("base")
    running.update(0, NUM_UPDATES)
    running.end_training()
    running.evaluate()
    for _ in range(2):
        running.follower().close()
    assert points(file) == whole


def test_the_config_says_what_the_arm_is(running, file):
    running.evaluate("base")
    running.update(0, 1)
    running.end_training()
    running.follower().sweep()
    base, sft = (line["config"] for line in told(file) if line["call"] == "start")
    assert (base["arm"], base["settings"]) == ("base", {})
    assert (sft["study"], sft["arm"], sft["seed"]) == ("small", "sft", 0)
    assert sft["settings"]["source"]["num_trajectories"] == 8
    assert sft["shared"]["evaluation"]["limit"] == 12


def test_a_diverged_arm_has_its_updates_and_no_scores(running, file):
    running.update(0, 2)
    running.end_training("diverged")
    running.store.finish(job_named(running.plan, "evaluate:sft:0"), {"status": "skipped", "node_s": 0.0})
    running.follower().close()
    assert [step for step, _ in points(file)["sft-0"]] == [0, 1]
    assert told(file)[-1]["is_done"]


def test_lines_that_are_not_what_was_recorded_are_not_told(running, file):
    running.update(0, 4)
    running.checkpoint(4)
    path = running.arm / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.4"))
    follower = running.follower()
    follower.sweep()
    running.end_training()
    path.write_text(path.read_text().replace("0.4", "0.3"))
    follower.sweep()
    assert points(file) == {}


def test_what_another_configuration_left_is_not_told(running, file):
    running.update(0, 2)
    running.checkpoint(2)
    running.end_training()
    running.train = replace(running.train, fingerprint="another")
    running.plan = replace(running.plan, jobs=(running.train, job_named(running.plan, "evaluate:sft:0")))
    running.follower().close()
    assert points(file) == {}


def test_another_folder_or_other_settings_are_other_runs_of_a_tracker(running):
    plan, folder = running.plan, running.folder
    ids = {run.id for identity in "ab" for run, _, _ in followed_runs(plan, folder, identity)[1]}
    changed = replace(plan, jobs=tuple(replace(job, fingerprint="another") for job in plan.jobs))
    ids |= {run.id for run, _, _ in followed_runs(changed, folder, "a")[1]}
    assert len(ids) == 3 * 4


def test_numbers_are_flat_and_finite():
    found = {"a": {"b": 1, "c": {"d": 0.5}}, "e": "text", "f": float("nan"), "g": float("inf"), "h": None, "i": [1]}
    assert dict(flat({**found, "step": 3, "t:greedy:acc,none": 0.25})) == {
        "a/b": 1,
        "a/c/d": 0.5,
        "t/greedy/acc/none": 0.25,
    }


def test_a_tracker_that_fails_is_told_once_and_gets_every_point_when_it_works_again(running, file, whole, monkeypatch):
    monkeypatch.setattr(follow, "PAUSE_S", 0.0)
    FakeTracker.fails |= {
        "start": [ValueError("no such\nproject")], "log": [OSError("no network")] * 3, "finish": [SystemExit(2)],
    }  # fmt: skip
    said = []
    follower = running.follower(said)
    running.evaluate("base")
    running.update(0, NUM_UPDATES)
    running.end_training()
    running.evaluate()
    for _ in range(8):
        follower.sweep()
    follower.close()
    assert points(file) == whole
    assert said == [
        "ValueError: no such project; the run goes on, and this is tried again",
        "see a file", "5 calls failed; every point was sent",
    ]  # fmt: skip


def test_a_tracker_that_fails_to_the_end_rests_between_its_tries_and_what_it_lacks_is_counted(running, file):
    FakeTracker.fails["log"] = [OSError("no network")] * 9
    said = []
    follower = running.follower(said)
    running.update(0, 4)
    running.checkpoint(4)
    for _ in range(20):
        follower.sweep()
    follower.close()
    assert len(FakeTracker.fails["log"]) == 7  # once, and once more at the end
    assert said[-1] == "2 calls failed; 4 points of 1 runs were not sent; the same command sends them"
    FakeTracker.fails.clear()
    running.follower().close()
    assert [step for step, _ in points(file)["sft-0"]] == [0, 1, 2, 3]


@pytest.fixture
def report(running, file, monkeypatch):
    """A short run whose trackers have processes of their own; returns what was told of them."""
    start_server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: CONTEXT)
    monkeypatch.setattr(process, "POLL_S", 0.05)
    running.evaluate("base")
    running.update(0, NUM_UPDATES)
    running.end_training()

    def run_with(*kinds, is_complete=False, hear=lambda text: None):
        said = []

        def tell(text):
            said.append(text)
            hear(text)

        trackers = {kind.__name__: kind for kind in kinds}
        with Reporting(trackers, running.plan, running.folder, tell) as reporting:
            for kind in ("warning", "skipped", "progress"):
                reporting.hear(kind)
            reporting.hear("done")
            reporting.is_complete = is_complete
        assert not [child for child in reporting._children.values() if child.process.is_alive()]
        return said

    return run_with


SUMMARY = {"arm": "sft", "scores": {"sums:greedy:acc,none": {"value": 0.5, "low": None}}, "forgetting": {"value": 0.1}}


def test_the_process_of_a_tracker_tells_what_is_left_when_the_run_ends_and_the_summary_of_a_whole_one(
    report, running, file
):
    before = {path: path.read_bytes() for path in running.folder.rglob("*") if path.is_file()}
    running.evaluate()
    integrity.write_sealed(running.folder / "summary.json", {"runs": [{**SUMMARY, "against_base": {}, "drift": {}}]})
    said = report(FakeTracker, is_complete=True)
    assert said == ["tracker FakeTracker: see a file"]
    found = points(file)
    assert len(found["sft-0"]) == NUM_UPDATES + 1
    assert found["summary"] == [(0, {"sft/scores/sums/greedy/acc/none/value": 0.5, "sft/forgetting/value": 0.1})]
    assert all(path.read_bytes() == data for path, data in before.items())
    report(FakeTracker, is_complete=True)  # the same command again
    assert points(file) == found
    assert len({line["id"] for line in told(file, "sft-0")}) == 1


def test_a_tracker_whose_process_dies_is_told_and_the_run_and_other_trackers_go_on(report, running, file):
    said = report(DyingTracker, FakeTracker)
    assert "tracker DyingTracker: its process died; the run goes on, the same command sends the rest" in said
    assert len(points(file)["sft-0"]) == NUM_UPDATES


def test_a_tracker_that_hangs_is_left_after_a_while_or_by_another_ctrl_c(report, monkeypatch):
    told_last = "trackers HangingTracker were not waited for; the same command sends the rest"
    monkeypatch.setattr(process, "CLOSE_S", 0.3)
    assert report(HangingTracker)[-1] == told_last
    monkeypatch.setattr(process, "CLOSE_S", 60.0)
    monkeypatch.setattr(process, "SILENT_S", 0.0)

    def interrupt(text):
        if text.startswith("waiting for trackers: HangingTracker"):
            raise KeyboardInterrupt

    assert report(HangingTracker, hear=interrupt)[-1] == told_last


def test_where_no_process_can_be_started_the_run_goes_on_without(report, monkeypatch, running):
    said = report()
    assert said == [] and not (running.folder / process.IDENTITY).exists()  # without trackers nothing is written
    monkeypatch.setattr(
        process, "start_child", lambda *_: (_ for _ in ()).throw(BlockingIOError(11, "no more processes"))
    )
    said = report(FakeTracker)
    assert said == ["trackers: cannot be started ([Errno 11] no more processes); the run goes on without them"]


class Silent(Tracker):
    requires = ("no_such_package",)

    def start(self, run):
        return 0


class Absent(FakeTracker):
    requires = ("no_such_package",)


def test_what_is_asked_for_and_cannot_be_used_is_refused_before_anything_runs(call, monkeypatch):
    monkeypatch.setattr(TRACKERS, "_held", {**TRACKERS._all(), "absent": Absent})
    code, _, err = call("run", "pocket", "--report-to", "trakcio")
    assert code == 2 and "unknown tracker 'trakcio'. Did you mean 'trackio'? Known: absent, mlflow, tensor" in err
    code, _, err = call("run", "pocket", "--dry-run", "--report-to", "absent")
    assert (
        code == 2 and "--report-to absent: the package 'no_such_package' is not installed; pip install no_such" in err
    )
    code, _, err = call("run", "pocket", "--report-to", "wandb,")
    assert code == 2 and "unknown tracker ''" in err
    monkeypatch.setattr("statewise.trackers.find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"--report-to wandb: .* is not installed; pip install 'statewise\[wandb\]'"):
        sw.Study.load("pocket", quick=True).run(report_to=["wandb"])


def test_a_folder_of_the_name_that_wandb_leaves_behind_is_no_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "left_behind").mkdir()
    monkeypatch.setattr(TRACKERS, "_held", {"fake": type("Fake", (FakeTracker,), {"requires": ("left_behind",)})})
    with pytest.raises(UsageError, match="'left_behind' is not installed"):
        trackers_named("fake")


def test_a_tracker_is_registered_in_python_and_one_that_lacks_something_is_refused(monkeypatch):
    monkeypatch.setattr(TRACKERS, "_held", dict(TRACKERS._all()))
    sw.register_tracker("fake", FakeTracker)
    assert trackers_named(["fake", "fake"]) == {"fake": FakeTracker}
    with pytest.raises(UsageError, match="tracker 'silent': does not say finish, log; the base class tells"):
        sw.register_tracker("silent", Silent)
    with pytest.raises(UsageError, match="tracker 'one': is no class of a tracker"):
        sw.register_tracker("one", dict)
    sw.register_tracker("script", type("Script", (FakeTracker,), {"__module__": "__main__"}))
    with pytest.raises(UsageError, match="tracker 'script'"):
        trackers_named("script")
    with pytest.raises(UsageError, match="tracker 'trackio' of fake_tracker:FakeTracker is there already"):
        sw.register_tracker("trackio", FakeTracker)


def test_the_trackers_are_listed(call):
    code, out, _ = call("list", "trackers")
    assert (
        code == 0
        and os.linesep.join(line.split()[0] for line in out.splitlines()) == "mlflow\ntensorboard\ntrackio\nwandb"
    )
