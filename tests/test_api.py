"""`import statewise as sw`: docs/api.md and every example of a docstring are run, on a study that takes seconds."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from run_fixture import write_evaluation
from threads import ThreadPool

import statewise as sw
from statewise import api, results
from statewise.plan.request import StudyRequest, plan_study
from statewise.run.executor import JobEvent, Outcome
from statewise.storage import integrity

PAGE = (Path(sw.__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
# Of small.toml.
UPDATE = {"num_updates": 2, "lr": 1e-3, "checkpoint_every": 1}
SFT = {"source": {"kind": "dataset", "num_trajectories": 8}, "signal": {"kind": "imitate"}}
# What a test process must not keep: a worker sets them for itself.
SET_BY_WORKERS = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")


def examples(text: str, name: str) -> str:
    """Run the examples in `text`; returns what differed."""
    parsed = doctest.DocTestParser().get_doctest(text, {"sw": sw}, name, name, 0)
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(parsed, out=told.append)
    return "".join(told)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run docs/api.md in an empty folder, which holds its run afterwards; what differed from the page."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SET_BY_WORKERS:
            patch.setenv(name, os.environ.get(name, "1"))
        patch.setattr("statewise.run.run.Pool", ThreadPool)
        patch.setattr("statewise.run.run.check_materials", lambda plan: [])  # seconds, and known to be sound
        patch.chdir(tmp_path_factory.mktemp("page"))
        Path("small.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
        yield examples(re.sub(r"(?m)^```.*$", "", PAGE), "docs/api.md")


@pytest.fixture
def run(page):
    return sw.Run.open("runs/small")


def test_the_page_says_what_happens(page):
    assert page == ""


@pytest.mark.parametrize("module", [api, results], ids=["api", "results"])
def test_the_examples_of_the_docstrings_give_what_they_say(page, module):
    found = [one for one in doctest.DocTestFinder().find(module) if one.examples]
    # A registered kind would stay for the tests after these; `test_plugins` registers one, and takes it back.
    without = ("Error", "__", "drift", "register_locality", "register_signal", "register_source", "register_tracker")
    public = [getattr(sw, name) for name in sw.__all__ if not name.endswith(without)]
    assert {one.__name__ for one in public if one.__module__ == module.__name__} <= {
        one.name.split(".")[2] for one in found
    }
    assert [examples(one.docstring, one.name) for one in found] == [""] * len(found)


def test_importing_statewise_imports_nothing_else():
    code = (
        "import sys; before = {*sys.modules}; import statewise\n"
        "print(sorted(n for n in {*sys.modules} - before if n.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout.replace("'", '"')) == ["statewise"]
    (cumulative,) = re.findall(r"\| +(\d+) \| statewise$", done.stderr, re.MULTILINE)
    assert int(cumulative) < 100_000  # µs; 1,000 on an idle machine


FIRST_STEPS = """
import sys, statewise as sw, statewise.drift.measure as room
assert sw.drift.measure is room
sw.Study.load("pocket")
sw.Run.open("runs/small").arm("rl")
try: sw.drift("nowhere:a", "b")
except sw.UsageError as error: print(error)
print({"torch", "pandas", "transformers", "lm_eval", "matplotlib"} & {*sys.modules})
"""


def test_first_steps_need_neither_torch_nor_pandas_and_drift_is_both_a_room_and_a_function(run):
    done = subprocess.run([sys.executable, "-c", FIRST_STEPS], capture_output=True, text=True, timeout=60)
    assert re.fullmatch("nowhere:a: no arm of a run.*\nset\\(\\)\n", done.stdout), done.stderr


def test_all_public_names_are_there_and_no_other():
    assert [name for name in sw.__all__ if getattr(sw, name) is None] == []
    assert dir(sw) == sorted(sw.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'stduy'"):
        sw.stduy  # noqa: B018


class Interrupting(ThreadPool):
    """Ctrl-C after the first update of a training, which does not go on before it is heard."""

    def _serve(self, job):
        say = self._said.put

        def hear(said):
            say(said)
            event = said[1]
            if isinstance(event, JobEvent) and event.kind == "progress" and event.done and job.action == "train":
                os.kill(os.getpid(), signal.SIGINT)
                assert self._stop.wait(60)

        self._said.put = hear
        super()._serve(job)


@pytest.fixture
def heard():
    """Ctrl-C, which a test run that was itself started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_raises_and_the_same_call_resumes(run, monkeypatch, heard):
    lengths = {"max_new_tokens": 4}
    shared = {"update": UPDATE, "retention": [], "drift": lengths, "evaluation": lengths}
    study = sw.Study(shared=shared, arms={"sft": SFT}, limit=2)
    with monkeypatch.context() as patch:
        patch.setattr("statewise.run.run.Pool", Interrupting)
        with pytest.raises(KeyboardInterrupt, match="kept in runs/cut; the same call continues it"):
            study.run("runs/cut", quiet=True)
    assert [path.name for path in Path("runs/cut/arms/sft/0/checkpoints").glob("[0-9]*")] == ["000001"]
    again = study.run("runs/cut", quiet=True)
    hashes = [next(one.state_hashes for one in r.summary.runs if one.arm == "sft") for r in (again, run)]
    assert hashes[0] == hashes[1] != {}


def end(monkeypatch, outcome):
    monkeypatch.setattr("statewise.run.run.run_study", lambda *given: (outcome, None))
    return sw.Study.load("pocket").run("nowhere", quiet=True)


def test_jobs_that_fail_are_an_error_that_names_them(monkeypatch):
    with pytest.raises(
        sw.FailedRunError, match=r"train:rl:0: no memory; what is done: Run.open\('nowhere'\)"
    ) as failed:
        end(monkeypatch, Outcome(["a"], {"train:rl:0": "no memory"}))
    assert failed.value.failed == {"train:rl:0": "no memory"}


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: sw.Study.load("pockt"), "unknown study 'pockt'. Did you mean 'pocket'?"),
        (lambda: sw.Study.load("pocket", seds=[0]), "Study.load: unknown keyword 'seds'. Did you mean 'seeds'?"),
        (lambda: sw.Study.load("pocket", seeds=[0, 0]), "0 occurs twice"),
        (lambda: sw.Study.load("pocket", seeds=0), "expected a number >= 1"),
        (lambda: sw.Study.load("pocket", overrides="rl.update.lr=1"), r"expected a list, such as \['rl.update.lr=1'\]"),
        (lambda: sw.Study.load("pocket", overrides=["lr.update.lr=1"]), "unknown arm 'lr'. Did you mean 'rl'?"),
        (lambda: sw.Study(arm={}), "Study: unknown keyword 'arm'. Did you mean 'arms'?"),
        (lambda: sw.Study(study="pocket", arms={}), "study: Input should be a table with name, description, seeds"),
        (lambda: sw.Study(arms={"a": {"sorce": {}}}), r"sw.Study: unknown key in \[arms.a\]: 'sorce'. .*'source'"),
        (lambda: sw.Study.load("pocket").run("x", worker=1), "Study.run: unknown keyword 'worker'. .*'workers'"),
        (lambda: sw.Study.load("pocket").run("x", workers=0), "workers=0: expected a number >= 1"),
        (lambda: sw.Run.open("nowhere"), "nowhere: not a run folder"),
        (lambda: sw.evaluate("pocket", "pocket_mth"), "unknown task 'pocket_mth'. Did you mean 'pocket_math'?"),
        (lambda: sw.evaluate("pocket", "pocket_math", limt=2), "evaluate: unknown keyword 'limt'. .*'limit'"),
        (lambda: sw.evaluate("pocket", "pocket_math", limit=1), "limit=1: expected a number >= 2"),
        (lambda: sw.evaluate("pocket", []), "names no task"),
        (lambda: sw.compare("nowhere", "nowhere"), "nowhere: no such folder"),
        (lambda: sw.drift("nowhere", "nowhere"), "nowhere: no arm of a run"),
    ],
)
def test_a_mistake_is_told_with_the_nearest_right_word(mistake, words):
    with pytest.raises(sw.UsageError, match=words):
        mistake()


def test_a_mistyped_arm_or_task_of_a_run_is_told_too(run):
    with pytest.raises(sw.UsageError, match=r"unknown arm 'rll'. Did you mean 'rl'\?"):
        run.arm("rll")
    with pytest.raises(sw.UsageError, match=r"runs/small:rl: unknown task 'pocket_mth'. Did you mean 'pocket_math'\?"):
        run.arm("rl").items("pocket_mth")
    with pytest.raises(sw.UsageError, match="the base model is not trained"):
        run.arm("base").states()
    with pytest.raises(sw.UsageError, match="unknown arm 'rll'"):
        sw.drift(run.arm("rl"), "runs/small:rll")
    with pytest.raises(sw.UsageError, match=r"\[shared.drift\] of their studies differs"):
        sw.drift(run.arm("rl"), other_run(run, "num_prompts = 6", "num_prompts = 7"))


def other_run(run, before, after):
    """The arm rl of a run with another study."""
    folder = Path(shutil.copytree(run.folder, f"runs/{after.replace(' ', '')}"))
    study = folder / "study.toml"
    study.write_text(study.read_text().replace(before, after))
    plan = integrity.read_sealed(folder / "plan.json")
    integrity.write_sealed(folder / "plan.json", {**plan, "files": integrity.table_of(folder, ["study.toml"])})
    return f"{folder}:rl"


def test_a_study_in_python_is_the_study_of_the_file(page):
    rollout = {"kind": "rollout", "num_prompts": 2, "samples_per_prompt": 4, "max_new_tokens": 24}
    given = {
        "study": {"factors": ("source", "signal")},
        "shared": {
            "update": UPDATE,
            "evaluation": {"max_new_tokens": 24},
            "drift": {"num_prompts": 6, "max_new_tokens": 16, "num_permutations": 99},
        },
        "arms": {"sft": SFT, "rl": {"source": rollout, "signal": {"kind": "reward"}}},
    }
    before = json.dumps(given)
    study = sw.Study(**given, limit=12, seeds=1)
    assert plan_study(study.request).fingerprint == plan_study(StudyRequest("small.toml", limit=12)).fingerprint
    assert json.dumps(given) == before
    SFT["source"]["num_trajectories"] += 1
    try:
        assert plan_study(study.request).config == study.config
    finally:
        SFT["source"]["num_trajectories"] -= 1


def test_the_tables_hold_the_numbers_of_the_records(run):
    rl = next(one for one in run.summary.runs if one.arm == "rl")
    scores = run.scores[run.scores["arm"] == "rl"]
    assert scores["value"].to_list() == [one.value for one in rl.scores.values()]
    assert scores["n"].to_list() == [one.num_items for one in rl.scores.values()]
    gain = run.gains[run.gains["arm"] == "rl"].iloc[0]
    assert (gain["low"], gain["high"]) == (
        rl.against_base[run.summary.target].low,
        rl.against_base[run.summary.target].high,
    )
    facts, myths, mean = run.forgetting[run.forgetting["arm"] == "rl"].itertuples()
    assert (mean.value, mean.p_adjusted) == (rl.forgetting.value, rl.forgetting.p_adjusted)
    assert mean.value == pytest.approx((facts.value + myths.value) / 2)
    against = rl.against_base[run.summary.retention[0]]
    assert (facts.value, facts.low, facts.high) == (-against.value, -against.high, -against.low)


def test_items_and_states_are_those_of_every_seed(run):
    items = run.arm("rl").items("pocket_facts")
    assert items["score"].mean() == run.scores.query("arm == 'rl' and task == 'pocket_facts'")["value"].item()
    assert len(run.arm("rl").states()) == 2 * 2 * 4  # updates, prompts, samples


def test_drift_from_the_base_model_is_what_the_run_measured(run):
    rl = next(one for one in run.summary.runs if one.arm == "rl")
    drift = sw.drift(run.arm("base"), "runs/small:rl:0")
    assert {name: (row["value"], row["floor"], row["p"]) for name, row in drift.iterrows()} == {
        name: (one.value, one.floor, one.p_value) for name, one in rl.drift.items()
    }


def test_drift_between_trained_arms_has_the_floor_of_their_base_model(run):
    from_base, between = sw.drift("runs/small:base", "runs/small:rl"), sw.drift("runs/small:sft", "runs/small:rl")
    unscaled = ["centroid", "sliced_wasserstein", "jaccard"]  # mmd has a bandwidth of all samples
    assert between.loc[unscaled, "floor"].to_list() == from_base.loc[unscaled, "floor"].to_list()
    symmetric = ["mmd", "within_prompt_mmd", "centroid", "jaccard"]  # projections are drawn by the second arm's name
    back = sw.drift("runs/small:rl", "runs/small:sft").loc[symmetric, "value"]
    assert back.to_list() == pytest.approx(between.loc[symmetric, "value"].to_list())
    same = sw.drift("runs/small:rl", "runs/small:rl")
    assert (same.loc[unscaled, "value"].abs().max(), same["p"].min()) == (pytest.approx(0, abs=1e-7), 1)


def test_paths_and_seeds_may_be_of_any_kind(page):
    study = sw.Study.load(Path("small.toml"), model=Path("pocket"), data=Path(), seeds=np.arange(2))
    assert (study.config.shared.model, study.config.shared.data, study.seeds) == ("pocket", os.getcwd(), (0, 1))
    evaluation = sw.evaluate("pocket", ("pocket_facts",), limit=12, out="evals/pocket", data=None, quiet=True)
    assert (evaluation.folder, len(evaluation.scores)) == (Path("evals/pocket"), 1)


def test_a_comparison_is_that_of_the_command(run, call, tmp_path):
    a = write_evaluation(tmp_path / "a", {"sums": [1, 0, 1, 0]})
    b = write_evaluation(tmp_path / "b", {"sums": [1, 1, 1, 1]})
    comparison = sw.compare(a, sw.Evaluation(b, []))
    code, out, _ = call("compare", a, b, "--json")
    told = json.loads(out)["scores"][0]
    row = comparison.differences.iloc[0]
    assert code == 0
    assert (row["value"], row["low"], row["high"]) == tuple(told["difference"][key] for key in ("value", "low", "high"))
    assert (row["num_only_a"], row["num_only_b"], row["mcnemar_p"]) == (0, 2, told["mcnemar_p"])
    assert asdict(comparison.record)["protocols"] == json.loads(out)["protocols"]


def test_a_summary_of_an_older_version_is_read_and_said_to_be_one(run):
    folder = Path(shutil.copytree(run.folder, "runs/older"))
    summary = integrity.read_sealed(folder / "summary.json")
    (folder / "summary.json").write_text(json.dumps({key: one for key, one in summary.items() if key != "files"}))
    with pytest.warns(UserWarning, match="summary.json"):
        assert len(sw.Run.open(folder).scores) == len(run.scores)
