"""docs/how-to/own-evaluation.md does what it says: its files are written and its commands run, in one empty folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import CONTEXT, command, start_server

import statewise
from statewise.config.read import read_study
from statewise.errors import UsageError
from statewise.models.compare import compare
from statewise.models.samples import export_samples
from statewise.models.sides import read_side
from statewise.plan.request import StudyRequest, plan_study
from statewise.storage import records

PAGE = (Path(statewise.__file__).parents[2] / "docs" / "how-to" / "own-evaluation.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|toml|yaml) (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line.removeprefix("$ ") for line in re.search(r"```console\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()]
TASKS = ["apples", "pocket_facts", "pears"]


def rows_of(folder, task):
    return records.read_table(folder / "evals" / f"{task}.parquet")


def test_the_page_runs_and_an_evaluation_by_a_study_is_that_of_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    subprocess.run([sys.executable, *COMMANDS[0].split()[1:]], check=True)
    start_server()
    for line in COMMANDS[1:]:
        process = CONTEXT.Process(target=command, args=(line.split()[1:], tmp_path / "log.txt"))
        process.start()
        process.join(300)
        assert process.exitcode == 0, (line, Path("log.txt").read_text())

    base, evaluated = Path("runs/apples/arms/base/0"), Path("evals/apples")
    for task in TASKS:  # greedy and sampled answers, scores, digests of items: all the same
        assert rows_of(evaluated, task) == rows_of(base, task)
        assert len({row["item"] for row in rows_of(evaluated, task)}) == 12
    compared = compare(read_side("evals/apples"), read_side("runs/apples:sft"))
    assert ({score.task for score in compared.scores}, compared.refused) == ({*TASKS}, {})
    assert compared.forgetting_tasks == ("pears", "pocket_facts")
    assert {score.difference.num_items for score in compared.scores} == {12}
    assert json.loads(Path("evals/pears/eval.json").read_text())["asked"] == {"pears.yaml": "pears"}
    assert read_study(Path("runs/apples/study.toml")).tasks["pears"].file == str(tmp_path / "pears.yaml")

    with pytest.raises(UsageError, match="was evaluated by a study; give RUN:ARM:SEED of its run, or evaluate with"):
        export_samples("evals/apples", tmp_path / "samples", None, False, lambda code: None)
    export_samples("runs/apples:sft:0", tmp_path / "samples", None, False, lambda code: None)
    assert {path.name.split("_2")[0] for path in (tmp_path / "samples").rglob("samples_*")} == {
        f"samples_{task}" for task in TASKS
    }

    # As the page says of a target.
    data = re.search(r"\[data\].*?\n\n", FILES["apples.toml"], re.DOTALL)[0]
    text = FILES["apples.toml"].replace(data, "").replace("[shared]", '[shared]\ntarget = "pears.yaml"')
    Path("pears.toml").write_text(text.replace(', "pears.yaml"]', "]"))
    assert plan_study(StudyRequest("pears.toml", is_dry=True)).reward == "exact_match,none of pears"
