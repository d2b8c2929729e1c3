"""The command line: exit codes, messages without traceback, JSON, and that light commands stay light."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version

import pytest
from report_fixture import fake_study
from study_fixture import STUDY, write_study
from typer.main import get_command

from statewise import cli
from statewise.run.executor import Outcome
from statewise.storage import records


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path, STUDY)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "poket"], "statewise: unknown study 'poket'. Did you mean 'pocket'?"),
        (["run", "none.toml"], "statewise: none.toml: no such study file"),
        (["run", "pocket", "--seeds", "0"], "--seeds 0: expected a number >= 1"),
        (["run", "pocket", "--world", "w", "--model", "m"], "--world and --model both name the base model"),
        (["run", "pocket", "--model", "nowhere"], "model 'nowhere': no such folder"),
        (["run", "pocket", "--world", "nowhere"], "model 'nowhere': no such folder"),
        (["run", "pocket", "--set", "rl.update.lrr=1"], "unknown key in [arms.rl.update]: 'lrr'. Did you mean 'lr'?"),
        (["run", "pocket", "--set", "shared.retention=['pocket_fact']"], "'pocket_fact'. Did you mean 'pocket_facts'?"),
        (["run", "pocket", "--set", "rl=1"], "--set rl=1: expected arm.key=value"),
        (["run", "pocket", "--dry-run", "--set", "rl.source.kind=logs"], "unknown source 'logs'. Did you mean 'log'?"),
        (["run", "pocket", "--workers", "0"], "Invalid value for '--workers'"),
        (["run", "pocket", "--wrokers", "1"], "No such option"),
        (["run", "pocket", "--set", "shared.reward_metric=em"], "unknown reward metric 'em'. "),
        (["run", "grid", "--set", "shared.target=pocket_facts"], "task 'pocket_facts'"),
        (["run", "pocket", "--out", "/dev/null/x"], "/dev/null/x: cannot be used as a folder of results (Not a dir"),
        (["list", "pocket", "-o", "x"], "No such option"),
        (["list", "sgnals"], "unknown shelf 'sgnals'. Did you mean 'signals'?"),
        (["list", "signals", "--all"], "list signals: takes no --all; list tasks --all WORD does"),
        (["list", "cells", "kl"], "list cells: takes no word"),
        (["list", "tasks", "mth"], "list tasks: no name of 3 contains 'mth'"),
        (["list", "tasks", "--all", "gsm9k"], "contains 'gsm9k'; the nearest: gsm8k"),
        (["pretrain", "--out", "x", "--size", "smok"], "unknown size 'smok'. Did you mean 'smoke'?"),
        (["pretrain", "--out", "/dev/null/x"], "Not a directory: /dev/null/x; give another place"),
        (["report", "nowhere"], "nowhere: no summary.json; give the folder of a `statewise run`"),
        (["reprot"], "No such command 'reprot'"),
        (["export", "nowhere", "sft", "--out", "x"], "nowhere: not a run folder (no plan.json)"),
        (["export", "nowhere", "sft"], "Missing option '--out'"),
        (["eval", "poket", "--tasks", "pocket_math"], "model 'poket'"),
        (["eval", "pocket", "--tasks", "pocket_mth"], "unknown task 'pocket_mth'. Did you mean 'pocket_math'?"),
        (["eval", "pocket", "--tasks", ","], "--tasks ',': names no task"),
        (["eval", "pocket", "--tasks", "pocket_math", "--limit", "1"], "Invalid value for '--limit'"),
        (["compare", "runs/pocket:base", "evals/x"], "runs/pocket:base: no such folder"),
    ],
)
def test_what_cannot_be_used_ends_with_code_2_one_message_and_no_file(call, tmp_path, arguments, words):
    code, out, err = call(*arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["run", "poket"], "UsageError", "unknown study 'poket'. Did you mean 'pocket'?"),
        (["run", "pocket", "--dry-run", "--seeds", "0"], "UsageError", "--seeds 0: expected a number >= 1"),
        (["plan", "poket"], "UsageError", "unknown study 'poket'. Did you mean 'pocket'?"),
        (["list", "sgnals"], "UsageError", "unknown shelf 'sgnals'. Did you mean 'signals'?"),
        (["verify", "nowhere"], "UsageError", "nowhere: not a run folder"),
        (["eval", "pocket", "--tasks", ","], "UsageError", "--tasks ',': names no task"),
        (["compare", "nowhere", "nowhere:rl"], "UsageError", "nowhere: no such folder"),
        (["run", "pocket", "--workers", "0"], "UsageError", "Invalid value for '--workers'"),
        (["eval", "pocket"], "UsageError", "names no task; give --tasks, or --study"),
    ],
)
def test_an_error_under_json_is_an_object_in_the_place_of_the_answer(call, arguments, kind, words):
    code, out, err = call(*arguments, "--json")
    error = json.loads(out)["error"]
    assert (code, error["type"]) == (2, kind)
    assert error["message"].startswith(words)
    assert " ".join(error["message"].split()[:3]) in " ".join(err.split())  # people read it where they always do
    assert out.isascii()


def test_a_failed_disk_and_ctrl_c_under_json_are_objects_too(call, study, fake_run):
    fake_run(OSError(28, "No space left on device", "runs/small/plan.json"))
    code, out, err = call("run", study, "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "OSError")
    assert err.startswith("statewise: No space left on device: runs/small/plan.json")
    fake_run(KeyboardInterrupt())
    code, out, _ = call("run", study, "--json")
    assert (code, json.loads(out)["error"]["type"]) == (130, "KeyboardInterrupt")


def test_a_mistyped_key_of_a_file_is_named_with_its_line(call, study):
    study.write_text(STUDY.replace("num_updates = 4", "num_updats = 4"))
    code, _, err = call("run", study)
    assert code == 2
    assert "small.toml:10: unknown key" in err
    assert "Did you mean 'num_updates'?" in err


def test_a_folder_that_is_no_run_folder_has_no_report(call, tmp_path):
    (tmp_path / "other").mkdir()
    code, _, err = call("report", "other")
    assert (code, "no summary.json" in err) == (2, True)


@pytest.mark.parametrize("content", ["{", '{"name": "x"}', "[]", '{"nmae": "x"}'])
def test_a_damaged_summary_has_no_report_and_no_traceback(call, tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    code, _, err = call("report", tmp_path)
    assert code == 2
    assert err.startswith("statewise: ")


def test_a_report_is_printed_and_written_again(call, tmp_path):
    records.write_json(tmp_path / "summary.json", asdict(fake_study()))
    code, out, _ = call("report", tmp_path)
    assert code == 0
    assert "made-up-study" in out
    assert "stress SFT" in out
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_dry_run_prints_the_plan_and_makes_no_folder(call, study, tmp_path):
    code, out, _ = call("run", study, "--dry-run", "--workers", 3)
    assert code == 0
    for words in (
        "sft",
        "needs sft",
        "× continuation",
        "14 jobs, seeds 0, 1",
        "on 3 processes",
    ):
        assert words in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml"]


def test_a_dry_run_is_json_on_demand(call, study, tmp_path):
    code, out, _ = call("run", study, "--dry-run", "--json", "--seeds", 1)
    plan = json.loads(out)
    assert code == 0
    assert {job["id"]: job["needs"] for job in plan["jobs"]}["train:opd:0"] == ["train:sft:0"]
    assert list(plan["arms"]) == ["sft", "opd", "rl"]
    assert plan["arms"]["sft"]["num_updates"] == 4
    assert plan["wall_s"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml"]


@pytest.mark.parametrize("what", ["studies", "sources", "signals", "tasks", "distances"])
def test_every_shelf_is_listed_as_text_and_as_json(call, what):
    code, out, _ = call("list", what)
    names = {line.split()[0] for line in out.splitlines()}
    known = {
        "studies": {"pocket"}, "sources": {"dataset", "rollout"}, "signals": {"imitate", "reward", "jsd"},
        "tasks": {"pocket_math", "pocket_facts", "pocket_myths"}, "distances": {"mmd", "jaccard"},
    }  # fmt: skip
    assert code == 0
    assert known[what] <= names
    code, out, _ = call("list", what, "--json")
    assert (code, set(json.loads(out))) == (0, names)


def test_lm_evals_own_tasks_are_listed_on_demand_and_searched_by_a_part_of_their_name(call):
    code, out, _ = call("list", "tasks", "--all", "GSM8K_cot")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert rows["gsm8k_cot_zeroshot"] == "lm-eval: gsm8k/gsm8k-cot-zeroshot.yaml"
    assert "gsm8k_cot_self_consistency" in rows
    assert all("gsm8k_cot" in name for name in rows)
    code, out, _ = call("list", "tasks", "--all", "--json")
    names = json.loads(out)
    assert len(names) > 13_000
    assert names["gsm8k_cot_zeroshot"] == rows["gsm8k_cot_zeroshot"]
    assert names["pocket_math"] == "embedded"
    assert list(json.loads(call("list", "tasks", "--json")[1])) == ["pocket_facts", "pocket_math", "pocket_myths"]


def test_a_word_searches_every_shelf(call):
    code, out, _ = call("list", "signals", "kl", "--json")
    assert (code, set(json.loads(out))) == (0, {"forward_kl", "reverse_kl"})


FAKE = fake_study()


@pytest.fixture
def fake_run(monkeypatch):
    """`statewise run` without a run: it ends as the test says."""

    def end_with(outcome, summary=FAKE):
        def run_study(plan, folder, on_event, num_workers):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome, summary

        monkeypatch.setattr("statewise.run.run.run_study", run_study)
        monkeypatch.setattr("statewise.report.page.write_report", lambda summary, folder: folder / "report.html")

    return end_with


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(["a"]), 0),
        (Outcome([], {"a": "x"}), 1),
        (Outcome(["a"], {"b": "x"}), 3),
        (Outcome(["a"], {}, interrupted=True), 3),
        (Outcome([], {}, interrupted=True), 3),
    ],
)
def test_the_exit_code_says_how_a_run_ended(call, study, fake_run, outcome, code):
    fake_run(outcome)
    got, out, err = call("run", study)
    assert got == code
    assert "Report: runs/small/report.html" in out
    assert ("Interrupted. What is done is kept in runs/small" in err) == outcome.interrupted


def test_a_run_interrupted_before_any_score_says_one_thing(call, study, fake_run):
    fake_run(Outcome(["evaluate:base:0"], {}, interrupted=True), summary=None)
    code, out, err = call("run", study)
    assert (code, out) == (3, "")
    assert err == "Interrupted. What is done is kept in runs/small; run the same command to continue.\n"


def test_ctrl_c_outside_of_the_work_is_one_line_and_code_130(call, study, fake_run):
    fake_run(KeyboardInterrupt())
    code, out, err = call("run", study)
    assert (code, out) == (130, "")
    assert err == "statewise: interrupted; `run` and `eval` keep what is done, the same command resumes\n"


def test_a_runs_json_is_all_of_its_output(call, study, fake_run):
    fake_run(Outcome(["a"], {"b": "disk full"}))
    code, out, _ = call("run", study, "--json", "--out", "here")
    answer = json.loads(out)
    assert code == 3
    assert (answer["folder"], answer["failed"], answer["interrupted"]) == ("here", {"b": "disk full"}, False)


def test_a_full_disk_is_a_failed_run_and_says_that_nothing_is_lost(call, study, fake_run):
    fake_run(OSError(28, "No space left on device", "runs/small/plan.json"))
    code, _, err = call("run", study)
    assert code == 1
    assert err.startswith("statewise: No space left on device: runs/small/plan.json; what was written before")


def test_an_error_of_the_disk_that_names_no_file_is_told_in_its_own_words(call, study, fake_run):
    fake_run(OSError("cannot write weights.safetensors: I/O error"))
    code, _, err = call("run", study)
    assert code == 1
    assert err.startswith("statewise: cannot write weights.safetensors: I/O error; what was written before")


def test_a_place_that_cannot_be_written_is_an_unusable_input(call, study, fake_run):
    fake_run(PermissionError(13, "Permission denied", "/root/x"))
    code, _, err = call("run", study)
    assert (code, err) == (2, "statewise: Permission denied: /root/x; give another place\n")


def test_pretraining_needs_an_empty_folder(call, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("words")
    for out in ("model", "model/thesis.tex"):
        code, _, err = call("pretrain", "--out", out)
        assert (code, "exists and is not an empty folder" in err) == (2, True)


COMMANDS = get_command(cli.app)
# Under the help of a command, without what a shell would take for a comment.
EXAMPLES = {
    name: [shlex.split(line, comments=True) for line in (command.epilog or "").splitlines() if "statewise" in line]
    for name, command in {"": COMMANDS, **COMMANDS.commands}.items()
}
# That compute nothing, and need nothing that is not there.
QUICK = [
    words for lines in EXAMPLES.values() for words in lines if {"list", "plan", "--dry-run"}.intersection(words[1:])
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_help_ends_with_examples_that_can_be_parsed(call, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(*name.split(), "--help")
    lines = out.partition("Examples:")[2].splitlines()
    assert code == 0
    assert len([line for line in lines if line.startswith("  statewise ")]) == len(EXAMPLES[name]) > 0
    assert max(map(len, lines)) <= 80
    for _, command, *rest in EXAMPLES[name]:
        assert name in ("", command)
        assert COMMANDS.commands[command].make_context(command, list(rest)).params  # an option that is none is an error


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_every_example_that_takes_no_time_does_what_it_says(call, words):
    code, out, _ = call(*words[1:])
    assert code == 0
    assert len(out) > 100


@pytest.mark.parametrize("start", [["-c", "from statewise.cli import main; main()"], ["-m", "statewise"]])
def test_the_version_is_that_of_the_package(tmp_path, start):
    done = subprocess.run(
        [sys.executable, *start, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"statewise {version('statewise')}\n", "")


@pytest.mark.parametrize("name", COMMANDS.commands)
def test_what_writes_a_folder_takes_its_name_in_short_too(name):
    options = [one.opts for one in COMMANDS.commands[name].params if "--out" in one.opts]
    assert all(opts == ["--out", "-o"] for opts in options)
    assert bool(options) == (name in ("run", "eval", "export", "samples", "pretrain"))


LIGHT = [
    ["--version"],
    ["--help"], ["run", "--help"], ["run", "poket"], ["run", "pocket", "--set", "rl.update.lrr=1"],
    ["run", "pocket", "--dry-run"], ["list", "studies"], ["list", "sources"], ["list", "signals"], ["list", "tasks"],
    ["list", "distances"], ["list", "tasks", "--all", "gsm8k"], ["export", "--help"],
    ["export", "nowhere", "sft", "--out", "x"],
    ["eval", "pocket", "--tasks", "pocket_mth"], ["compare", "nowhere", "nowhere:rl"],
    ["show", "nowhere:rl"], ["report", "nowhere"],
]  # fmt: skip
WATCH = """
import sys
from statewise import cli
codes, heavy = [], []
for arguments in {commands!r}:
    sys.argv = ["statewise", *arguments]
    try:
        cli.main()
    except SystemExit as left:
        codes.append(left.code or 0)
    heavy.append(sorted({names!r} & sys.modules.keys()))
print(codes, heavy, file=open({log!r}, "w"), sep="\\n")
"""


def test_light_commands_import_nothing_heavy(tmp_path):
    # Seconds depend on the machine, imports do not: torch alone takes longer than the half second that --help may take.
    log = tmp_path / "log"
    names = {"torch", "transformers", "lm_eval", "datasets", "peft", "matplotlib"}
    code = WATCH.format(commands=LIGHT, names=names, log=str(log))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    codes, heavy = log.read_text().splitlines()
    assert json.loads(codes) == [0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2]
    for arguments, found in zip(LIGHT[:-1], json.loads(heavy.replace("'", '"')), strict=False):
        assert found == [], f"statewise {' '.join(arguments)} imports {', '.join(found)}"


def test_help_imports_no_room_but_the_errors(tmp_path):
    code = "import sys; from statewise import cli; print(sorted(n for n in sys.modules if n.startswith('statewise.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout.replace("'", '"')) == [
        "statewise.cli", "statewise.cli.completion", "statewise.cli.data", "statewise.cli.models",
        "statewise.cli.options", "statewise.cli.pretrain", "statewise.cli.shelf", "statewise.cli.studies",
        "statewise.console", "statewise.console.entry", "statewise.console.interruption",
        "statewise.console.printing", "statewise.console.streams", "statewise.errors",
    ]  # fmt: skip
