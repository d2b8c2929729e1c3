"""Real runs of a tiny study on the embedded model, by the command line, with real workers and real signals.

The processes are forked from a server that has torch and lm-eval imported, and fork their workers: the imports of
`spawn` take longer than all these runs. That a plan survives the pickling of `spawn` is tested in `test_plan_dag`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest
from forked import CONTEXT, command, start_server

from statewise.config.read import read_study
from statewise.folder.store import Store
from statewise.plan.request import StudyRequest, plan_study
from statewise.report.summary_json import summary_from_json
from statewise.storage import records

NUM_UPDATES = 16
STUDY = f"""
[study]
name = "real"
description = "arms that train, one that diverges, and their students"
seeds = [0]
factors = ["source", "signal", "teacher", "update", "adapter"]
[shared.evaluation]
limit = 12
max_new_tokens = 24
[shared.drift]
num_prompts = 6
max_new_tokens = 24
num_permutations = 19
[shared.update]
checkpoint_every = 2
num_updates = 4
lr = 3e-4
[arms.sft]
source = {{ kind = "dataset", num_trajectories = 4 }}
signal = {{ kind = "imitate" }}
update = {{ num_updates = {NUM_UPDATES} }}
[arms.opd]
teacher = "sft"
source = {{ kind = "rollout", num_prompts = 4, max_new_tokens = 24 }}
signal = {{ kind = "continuation", num_tokens = 8 }}
[arms.wild]
source = {{ kind = "dataset", num_trajectories = 4 }}
signal = {{ kind = "imitate" }}
update = {{ lr = 1e30 }}
[arms.heir]
teacher = "wild"
source = {{ kind = "rollout", num_prompts = 4, max_new_tokens = 24 }}
signal = {{ kind = "reverse_kl" }}
[arms."slim.mlp"]
source = {{ kind = "dataset", num_trajectories = 4 }}
signal = {{ kind = "imitate" }}
adapter = {{ kind = "lora", rank = 2 }}
[arms.slim-opd]
teacher = "slim.mlp"
source = {{ kind = "rollout", num_prompts = 4, max_new_tokens = 24 }}
signal = {{ kind = "reverse_kl" }}
adapter = {{ kind = "lora", rank = 2 }}
[[hypotheses]]
name = "p"
statement = "SFT forgets."
measure = "forgetting"
comparison = "more"
arms = ["sft"]
"""


class Runs:
    """Runs commands on the tiny study."""

    def __init__(self, folder):
        self.folder = folder
        self.study = folder / "real.toml"
        self.log = folder / "log.txt"
        self.study.write_text(STUDY)

    def start(self, out, *options, **flags):
        arguments = ["run", self.study, "--out", self.folder / out, "--workers", 1, *options]
        process = CONTEXT.Process(target=command, args=(arguments, self.log), kwargs=flags)
        process.start()
        return process

    def finish(self, out, *options, **flags):
        """Run to the end; returns exit code and output."""
        process = self.start(out, *options, **flags)
        process.join(600)
        return process.exitcode, self.log.read_text()

    def send_at_checkpoint(self, out, arm, step, number, *, to_worker=False):
        """Start a run and send it, or its worker, the signal `number` at the first checkpoint of `step` or more.

        At one that this run wrote: a process that has just been started does not hear Ctrl-C yet.
        """
        folder = self.folder / out / "arms" / arm / "0" / "checkpoints"

        def steps():
            return {int(path.name) for path in folder.glob("[0-9]*")} if folder.is_dir() else set()

        before = steps()
        process = self.start(out)
        deadline = time.monotonic() + 300
        while max(steps() - before, default=0) < step:
            assert process.is_alive() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)
        os.kill(child_of(process.pid) if to_worker else process.pid, number)
        process.join(600)
        return process.exitcode


def child_of(parent):
    """The only child of a process."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    (child,) = [stat for stat in stats if int(stat.rpartition(")")[2].split()[1]) == parent]
    return int(child.split()[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    start_server()
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs):
    """Folder and output of a run that nothing disturbed."""
    code, output = runs.finish("whole")
    assert code == 0, output
    return runs.folder / "whole", output


def test_a_run_ends_with_the_records_that_are_documented(whole):
    folder, _ = whole
    for name in ("study.toml", "plan.json", "summary.json", "results.parquet", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert {path.name for path in (folder / "arms" / "opd" / "0").iterdir()} == {
        "config.toml", "started.json", "metrics.jsonl", "timing.jsonl", "states", "supervised", "model", "evals",
        "rollouts.parquet", "drift.json", "train.json", "done.json",
    }  # fmt: skip
    assert not list(folder.rglob("*.tmp")) + list(folder.rglob("*.pkl")) + list(folder.rglob("traceback.txt"))


def test_every_prompt_is_rolled_out_twice_so_that_drift_within_prompts_is_measured(whole):
    arms = whole[0] / "arms"
    for name in ("sft/0/rollouts", "base/0/rollouts", "base/0/rollouts_again"):
        rows = records.read_table(arms / f"{name}.parquet")
        assert [row["prompt_index"] for row in rows] == [*range(6), *range(6)]
        assert all(a["prompt_ids"] == b["prompt_ids"] for a, b in zip(rows[:6], rows[6:], strict=True))
        assert any(a["token_ids"] != b["token_ids"] for a, b in zip(rows[:6], rows[6:], strict=True))
    drift = records.read_json(arms / "sft" / "0" / "drift.json")
    assert drift["within_prompt_mmd"]["num_rollouts"] == 12


def test_every_state_and_update_is_recorded(whole):
    folder = whole[0] / "arms" / "opd" / "0"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 1, 2, 3]
    assert sorted(path.name for path in (folder / "states").iterdir()) == ["000002.parquet", "000004.parquet"]
    rows = [row for path in sorted((folder / "states").iterdir()) for row in records.read_table(path)]
    assert len(rows) == 4 * 4
    assert sum(sum(row["action_mask"]) for row in rows) == sum(line["states/num_states"] for line in metrics)
    result = records.read_json(folder / "train.json")
    assert result["state_hash"] == metrics[-1]["states/hash"]
    assert result["weights_sha256"] == records.digest_file(folder / "model" / "model.safetensors")
    assert result["budget"]["num_states"] == sum(line["states/num_states"] for line in metrics)


def test_every_item_of_every_task_is_recorded(whole):
    folder = whole[0] / "arms" / "sft" / "0" / "evals"
    math = records.read_table(folder / "pocket_math.parquet")
    metrics = ("exact_match,strict-match", "exact_match,flexible-extract", "style,bare", "style,worked", "style,graded")
    assert {(row["decoding"], row["metric"]) for row in math} == {*itertools.product(("greedy", "sampled"), metrics)}
    assert len(math) == 12 * 10
    done = [records.read_json(whole[0] / "arms" / arm / "0" / "done.json") for arm in ("base", "sft")]
    assert done[0]["items_sha256"] == done[1]["items_sha256"]
    assert set(done[0]["items_sha256"]) == set(done[0]["protocols"])
    assert len(records.read_table(folder / "pocket_facts.parquet")) == 12


def test_the_resolved_study_and_the_summary_read_back(whole, runs):
    folder, _ = whole
    assert read_study(folder / "study.toml") == plan_study(StudyRequest(str(runs.study))).config
    summary = summary_from_json(records.read_json(folder / "summary.json"))
    assert [run.arm for run in summary.runs] == ["base", "sft", "opd", "wild", "heir", "slim.mlp", "slim-opd"]
    rows = records.read_table(folder / "results.parquet")
    assert len(rows) == 5 * len(summary.columns)
    value = {(row["arm"], row["column"]): row["value"] for row in rows}
    key = "pocket_facts:choices:acc,none"
    stored = records.read_table(folder / "arms" / "sft" / "0" / "evals" / "pocket_facts.parquet")
    assert value["sft", key] == pytest.approx(sum(row["score"] for row in stored) / 12)


def test_an_adapter_is_stored_as_one_and_read_by_its_student_and_its_evaluation(whole):
    arms = whole[0] / "arms"
    for arm in ("slim.mlp", "slim-opd"):
        names = {path.name for path in (arms / arm / "0").iterdir()}
        assert "adapter" in names and "model" not in names
        assert records.read_json(arms / arm / "0" / "done.json")["status"] == "evaluated"
    trained = records.read_json(arms / "slim-opd" / "0" / "train.json")
    assert trained["num_trainable"] < trained["num_parameters"] / 10
    # A student that starts as the base and hears its teacher, not itself: its loss is not 0.
    first = json.loads((arms / "slim-opd" / "0" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loop/loss_nats"] > 1e-4


def test_a_diverged_arm_is_marked_its_student_skipped_and_the_study_goes_on(whole):
    folder, output = whole
    arms = folder / "arms"
    assert records.read_json(arms / "wild" / "0" / "train.json")["status"] == "diverged"
    assert not (arms / "wild" / "0" / "model").exists()
    assert records.read_json(arms / "heir" / "0" / "train.json")["reason"] == "wild, which it needs, diverged"
    assert records.read_json(arms / "opd" / "0" / "done.json")["status"] == "evaluated"
    summary = summary_from_json(records.read_json(folder / "summary.json"))
    assert {run.arm: (run.num_seeds, run.num_diverged) for run in summary.runs} == {
        "base": (1, 0), "sft": (1, 0), "opd": (1, 0), "wild": (0, 1), "heir": (0, 0),
        "slim.mlp": (1, 0), "slim-opd": (1, 0),
    }  # fmt: skip
    page = (folder / "report.html").read_text()
    for text in (output, page):
        assert "train:wild:0 diverged: update 1: loss" in text.replace("\n", " ")
        assert "train:heir:0 skipped: wild, which it needs, diverged" in text


def test_off_a_terminal_there_are_plain_lines(whole):
    _, output = whole
    assert "train:sft:0 trained in" in output
    assert "[100 %]" in output
    assert "\x1b[" not in output


def test_the_same_command_again_starts_no_worker_and_changes_no_record(whole, runs):
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (folder / "arms").rglob("*")}
    code, output = runs.finish("whole", has_workers=False)
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in (folder / "arms").rglob("*")} == before
    code, output = runs.finish("whole", "--json", has_workers=False)
    answer = json.loads(output[output.index("{") :])
    assert (code, answer["failed"], answer["interrupted"]) == (0, {}, False)


def test_other_settings_in_the_same_folder_are_refused(whole, runs):
    code, output = runs.finish("whole", "--set", "sft.update.lr=1e-2", has_workers=False)
    assert code == 2
    assert "holds a run of another study or with other settings" in output
    assert "Traceback" not in output


def identical(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes for the same seed, by its place in the folder."""
    names = ("metrics.jsonl", "drift.json", "config.toml", "results.parquet", "study.toml")
    kept = [path for path in folder.rglob("*") if path.suffix in (".parquet", ".safetensors") or path.name in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_killed_and_an_interrupted_run_end_with_the_same_bytes_as_an_undisturbed_one(whole, runs):
    out = runs.folder / "broken"
    metrics = out / "arms" / "sft" / "0" / "metrics.jsonl"
    assert runs.send_at_checkpoint("broken", "sft", 2, signal.SIGKILL) == -signal.SIGKILL
    killed_at = len(metrics.read_text().splitlines())
    assert 2 <= killed_at < NUM_UPDATES
    assert runs.send_at_checkpoint("broken", "sft", 6, signal.SIGINT) == 3
    assert "run the same command to continue" in runs.log.read_text().replace("\n", " ")
    plan = plan_study(StudyRequest(str(runs.study)))
    assert [job.id for job in plan.jobs if job.arm == "opd" and Store(out).result(job)] == []
    code, output = runs.finish("broken")
    assert code == 0, output
    expected, got = identical(whole[0]), identical(out)
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []
    assert any(name.endswith("model.safetensors") for name in got)
    assert any("states/" in name for name in got)


def test_a_run_whose_worker_is_killed_ends_by_itself_with_the_same_bytes(whole, runs):
    out = runs.folder / "orphaned"
    assert runs.send_at_checkpoint("orphaned", "sft", 4, signal.SIGKILL, to_worker=True) == 0
    text = " ".join(runs.log.read_text().split())
    told = "train:sft:0: its worker process was ended by SIGKILL (out of memory, or killed); the job is tried once more"
    assert text.count(told) == text.count("its worker process") == 1
    steps = [json.loads(line)["step"] for line in (out / "arms/sft/0/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(NUM_UPDATES))
    expected, got = identical(whole[0]), identical(out)
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []
