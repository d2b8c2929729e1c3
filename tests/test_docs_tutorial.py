"""docs/tutorial.md does what it says: its files are written and its commands run, in one empty folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from forked import CONTEXT, command, start_server

import statewise

PAGE = (Path(statewise.__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|toml) (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line.removeprefix("$ ") for line in re.search(r"```console\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()]


def test_the_tutorial_runs_to_its_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    assert [line.split()[0] for line in COMMANDS] == ["python", "statewise", "statewise", "statewise"]
    subprocess.run([sys.executable, *COMMANDS[0].split()[1:]], check=True)
    start_server()
    for line in COMMANDS[1:]:
        process = CONTEXT.Process(target=command, args=(line.split()[1:], tmp_path / "log.txt"))
        process.start()
        process.join(300)
        assert process.exitcode == 0, (line, Path("log.txt").read_text())
    summary = json.loads(Path("runs/apples/summary.json").read_text())
    assert summary["target"] == "apples:greedy:reward,none"
    assert [run["arm"] for run in summary["runs"]] == ["base", "sft", "opd", "rl"]
    recipes = {run["arm"]: run["recipe"] for run in summary["runs"]}
    assert "reverse_kl of big on learner rollout states" in recipes["opd"]
    metrics = [json.loads(line) for line in Path("runs/apples/arms/rl/0/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["signals/reward_mean"] <= 1 for line in metrics)
    assert "apples" in Path("runs/apples/report.html").read_text()
