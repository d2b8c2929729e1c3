"""Nothing that a name, a description, a model or an argument holds is obeyed by the terminal."""

from __future__ import annotations

import io
import json
import shutil
import sys
import unicodedata
from dataclasses import asdict, replace

import pytest
from report_fixture import fake_study
from study_fixture import STUDY, write_study

from statewise.assets import POCKET_MODEL
from statewise.console.printing import CleanStream, printable
from statewise.report.terminal import CleanConsole
from statewise.storage import records

# Clears the screen, sets the title, goes back and overwrites, writes from right to left; C1 controls; rich's markup.
HOSTILE = "a\x1b[2J\x1b]0;title\x07b\rc\x08\x9b31m\x85\u202ed\u2066e\u200b[red]f[/][/no] g"


def obeyed(text: str) -> set[str]:
    kinds = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return {character for character in text if unicodedata.category(character) in kinds and character != "\n"}


def test_what_a_terminal_obeys_is_not_printable():
    assert printable(HOSTILE) == "ab c31m de[red]f[/][/no] g"
    assert printable("two\nlines\tand – η² \N{NO-BREAK SPACE}spaces  stay") == (
        "two\nlines\tand – η² \N{NO-BREAK SPACE}spaces  stay"
    )


def test_a_stream_prints_what_is_printable_and_a_bar_goes_back_to_its_start():
    beneath = io.StringIO()
    stream = CleanStream(beneath)
    print(HOSTILE, file=stream)
    stream.writelines([HOSTILE])
    assert obeyed(beneath.getvalue()) == set()
    assert not hasattr(stream, "buffer")
    stream.write("\r 50 %")
    assert beneath.getvalue().endswith("\r 50 %")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rich_keeps_its_own_colours_and_nobody_elses(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", CleanStream(terminal))
    CleanConsole().print(HOSTILE, style="bold")
    assert terminal.getvalue().startswith("\x1b[1ma") and terminal.getvalue().endswith("[red]f[/][/no] g\x1b[0m\n")
    assert obeyed(terminal.getvalue().removeprefix("\x1b[1m").removesuffix("\x1b[0m\n")) == set()


def hostile_study(folder):
    text = STUDY.replace("seeds = [0, 1]", f"description = {json.dumps(HOSTILE)}\nseeds = [0, 1]")
    return write_study(folder, text.replace("[arms.sft]", f"[arms.sft]\nlabel = {json.dumps(HOSTILE)}"))


def hostile_summary(folder):
    study = fake_study()
    runs = tuple(replace(run, label=HOSTILE, recipe=HOSTILE) for run in study.runs)
    changed = replace(study, name=HOSTILE, description=HOSTILE, runs=runs, problems=(HOSTILE,))
    records.write_json(folder / "summary.json", asdict(changed))


NAME = HOSTILE.replace("/", "-").replace("\x00", "")


@pytest.mark.parametrize(
    "command",
    [
        ["run", "STUDY", "--dry-run"],
        ["run", "STUDY", "--dry-run", "--json"],
        ["plan", "STUDY"],
        ["plan", "STUDY", "--json"],
        ["report", "RUN"],
        ["run", HOSTILE],
        ["run", "STUDY", "--set", HOSTILE],
        ["run", "STUDY", "--set", f"shared.end_of_text={json.dumps(HOSTILE)}"],
        ["run", "STUDY", "--set", f"shared.target={json.dumps(HOSTILE)}"],
        ["run", "STUDY", "--dry-run", "--model", HOSTILE],
        ["run", "pocket", f"--{HOSTILE}"],
        ["run", "pocket", "--seeds", HOSTILE],
        [HOSTILE],
        ["list", HOSTILE],
        ["report", HOSTILE],
        ["compare", HOSTILE, HOSTILE],
        ["compare", f"RUN:{HOSTILE}", "RUN:base"],
        ["export", "RUN", HOSTILE, "--out", "x"],
        ["export", "RUN", "sft", "--out", HOSTILE],
        ["eval", HOSTILE, "--tasks", "pocket_math"],
        ["eval", "pocket", "--tasks", HOSTILE],
        ["eval", "MODEL", "--tasks", "pocket_math", "--limit", "2", "--json"],
        ["eval", "MODEL", "--tasks", "pocket_math", "--limit", "2"],
        ["eval", "MODEL", "--tasks", "TASK", "--limit", "2"],
        ["pretrain", "--out", "/dev/null/" + HOSTILE],
        ["pretrain", "--out", "x", "--size", HOSTILE],
    ],
)
def test_no_command_prints_what_a_terminal_obeys(tmp_path, call, command):
    folder = tmp_path / "run"
    folder.mkdir()
    hostile_summary(folder)
    model = tmp_path / NAME
    if "MODEL" in command:
        shutil.copytree(POCKET_MODEL, model)
        (model / "tasks" / f"{NAME}.yaml").write_text("task: [")
    places = {"STUDY": hostile_study(tmp_path), "RUN": folder, "MODEL": model, "TASK": model / "tasks" / f"{NAME}.yaml"}
    words = [str(places.get(word, word)).replace("RUN:", f"{folder}:") for word in command]
    _, out, err = call(*words)
    assert out or err
    assert obeyed(out) | obeyed(err) == set()
    assert "Traceback" not in err
    if "--json" in command and out:
        json.loads(out)
