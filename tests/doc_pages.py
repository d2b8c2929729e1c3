"""Pages of docs/ whose blocks are run: one with a name (```toml study.toml) is a file, a line after `$` a command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from forked import CONTEXT, command, start_server

import statewise

ROOT = Path(statewise.__file__).parents[2]


def run_page(name: str, folder: Path) -> None:
    """Write the files of `docs/<name>` into `folder`, the working directory, and run the page's commands, in order."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for file, text in re.findall(r"```(?:python|toml|yaml|json) (\S+)\n(.*?)```", page, re.DOTALL):
        Path(file).write_text(text)
    consoles = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    commands = [line[2:].split() for text in consoles for line in text.splitlines() if line.startswith("$ ")]
    assert {program for program, *_ in commands} <= {"python", "statewise"}
    start_server()
    for program, *arguments in commands:
        if program == "python":
            subprocess.run([sys.executable, *arguments], check=True)
            continue
        process = CONTEXT.Process(target=command, args=(arguments, folder / "log.txt"))
        process.start()
        process.join(300)
        assert process.exitcode == 0, (arguments, (folder / "log.txt").read_text())
