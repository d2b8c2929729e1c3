"""What a shell completes, by the protocol of its script: words in the environment, candidates on standard output."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from study_fixture import STUDY as SMALL

from statewise.cli import app, main
from statewise.cli.completion import ARM_KEYS, BASE, HEADER, PLAN, STUDY
from statewise.config.study import ArmSection
from statewise.folder import store
from statewise.models import evaluation
from statewise.plan import dag

TASKS = 'target = "pocket_math"\nretention = ["pocket_facts", "pocket_myths"]\n'


@pytest.fixture
def complete(tmp_path, monkeypatch, capsys):
    """Candidates for the last of bash's words, in a folder with two runs and an evaluation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["statewise"])
    monkeypatch.setattr(sys.modules["__main__"], "__package__", "", raising=False)  # or it is "python -m pytest"
    for run in ("runs/small", "runs/other"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "plan.json").write_text("{}")
        (tmp_path / run / "study.toml").write_text(f"{SMALL}\n[shared]\n{TASKS}")
    (tmp_path / "evals" / "a").mkdir(parents=True)
    (tmp_path / "evals" / "a" / "eval.json").write_text("{}")

    def run(*words):
        monkeypatch.setenv("COMP_WORDS", "\n".join(("statewise", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_STATEWISE_COMPLETE", "complete_bash")
        with pytest.raises(SystemExit, match="0"):
            main()
        out, err = capsys.readouterr()
        assert err == ""
        return out.split()

    return run


def test_commands_options_and_studies_are_completed(complete):
    assert complete("ver") == ["verify"]
    assert "--full" in complete("report", "--")
    assert complete("run", "hyb") == ["hybrid"]
    assert {"pocket", "grid", "settle"} <= set(complete("plan", ""))
    assert complete("run", "mine.to") == []  # files are the shell's


def test_keys_of_a_study_are_completed_with_their_values(complete):
    arms = complete("run", "pocket", "--set", "")
    assert {"rl.", "mild-sft.", "study.", "shared."} <= set(arms)
    keys = complete("run", "pocket", "--set", "rl.update.")
    assert "rl.update.clip_norm=1.0" in keys  # of [shared]
    assert any(key.startswith("rl.update.lr=") for key in keys)
    assert not any("num_trajectories" in key for key in complete("run", "pocket", "--set", "rl."))
    assert complete("run", "pocket", "--set", "study.se") == ["study.seeds="]
    assert complete("run", "--seeds", "1", "pocket", "--quick", "--set", "shared.evaluation.max")[0].startswith(
        "shared.evaluation.max_new_tokens="
    )


def test_what_bash_takes_apart_at_equals_signs_and_colons_is_put_together_again(complete):
    (lr,) = complete("run", "pocket", "--set", "rl.update.lr", "=")
    assert float(lr) > 0
    assert complete("show", "runs/small", ":") == ["base", "sft", "opd", "rl"]
    assert complete("show", "runs/small", ":", "o") == ["opd"]
    assert complete("compare", "runs/small", ":", "base", "runs/small", ":", "s") == ["sft"]


def test_keys_of_a_study_file_are_completed_and_those_of_none_are_not(complete, tmp_path):
    (tmp_path / "mine.toml").write_text(SMALL)
    assert any(key.startswith("sft.update.") for key in complete("run", "mine.toml", "--set", "sft."))
    for text in ("", "[", "[grid]\naxes = 3\n", "\x00"):
        (tmp_path / "mine.toml").write_text(text)
        assert complete("run", "mine.toml", "--set", "") == []
    assert complete("run", "absent.toml", "--set", "") == []


def test_run_folders_and_their_arms_are_completed(complete, tmp_path):
    for command in ("report", "verify", "export"):
        assert complete(command, "") == ["runs/other", "runs/small"]
    assert complete("report", "runs/s") == ["runs/small"]
    assert complete("report", f"{tmp_path}/runs/o") == [f"{tmp_path}/runs/other"]
    assert complete("export", "runs/small", "r") == ["rl"]
    assert complete("show", "runs/") == ["runs/other:", "runs/small:"]
    assert complete("show", "runs/s") == [f"runs/small:{arm}" for arm in ("base", "sft", "opd", "rl")]
    assert complete("compare", "") == ["evals/a", "runs/other:", "runs/small:"]
    assert complete("show", "absent", ":") == []


def test_shelves_tasks_and_choices_are_completed(complete):
    assert "localities" in complete("list", "")
    assert complete("eval", "pocket", "--tasks", "pocket_math,pocket_f") == ["pocket_math,pocket_facts"]
    assert complete("show", "runs/small", ":", "rl", "--items", "l") == ["lost"]
    assert complete("show", "runs/small", ":", "rl", "--task", "") == ["pocket_math", "pocket_facts", "pocket_myths"]


def test_zsh_gets_the_same_words(complete, monkeypatch, capsys):
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "statewise run hyb")
    monkeypatch.setenv("_STATEWISE_COMPLETE", "complete_zsh")
    with pytest.raises(SystemExit, match="0"):
        main()
    assert '"hybrid"' in capsys.readouterr().out


def test_names_of_files_cannot_send_escape_sequences(complete, tmp_path):
    (tmp_path / "runs" / "z\x1b[31m").mkdir()
    (tmp_path / "runs" / "z\x1b[31m" / "plan.json").write_text("{}")
    assert complete("report", "runs/z") == ["runs/z"]


def test_an_arm_takes_the_keys_from_shared_that_a_study_gives_it():
    assert set(ARM_KEYS) == set(ArmSection.model_fields) - {"label", "levels"}


def test_what_folders_are_known_by_is_what_they_hold():
    assert (PLAN, STUDY, HEADER, BASE) == (store.PLAN, store.STUDY, evaluation.HEADER, dag.BASE)


def test_a_completion_imports_nothing_slow(tmp_path):
    code = (
        "import sys, atexit; sys.argv = ['statewise'];"
        "atexit.register(lambda: sys.stderr.write(' '.join({n.partition('.')[0] for n in sys.modules})));"
        "from statewise.cli import main; main()"
    )
    words = {
        "COMP_WORDS": "statewise\nrun\npocket\n--set\nrl.",
        "COMP_CWORD": "4",
        "_STATEWISE_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True, timeout=60
    )
    assert "rl.update.lr=" in done.stdout
    slow = {"torch", "numpy", "lm_eval", "transformers", "pyarrow", "rich", "scipy", "multiprocessing"}
    assert slow & set(done.stderr.split()) == set()


def test_the_script_of_a_shell_is_installed_by_an_option():
    assert app._add_completion
