"""How a command ends: readers that leave, files that are full, terminals that are gone, Ctrl-C at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from statewise.console.interruption import INTERRUPTION

# A command line in a process of its own, where output is real; `{body}` is the command.
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.{before})
from statewise.console.entry import answer

def command():
{body}

sys.argv = ["statewise", "{name}"]
answer(command)
"""
TALK = """
    for stream in (sys.stdout, sys.stderr):
        for line in range(20000):
            print(line, file=stream)
    open("done", "w").close()
    sys.exit({code})
"""


def start(folder, body, name="run", before="default_int_handler", **streams):
    text = SCRIPT.format(body=body, name=name, before=before)
    return subprocess.Popen([sys.executable, "-c", text], cwd=folder, text=True, **streams)


@pytest.mark.parametrize(
    ("name", "code", "expected"), [("run", 0, 0), ("run", 3, 3), ("eval", 0, 0), ("list", 0, 141), ("list", 2, 2)]
)
def test_a_reader_that_leaves_ends_no_work_and_causes_not_a_word(tmp_path, name, code, expected):
    # As `statewise run … 2>&1 | head -1`: 130,000 bytes do not fit into a pipe.
    process = start(tmp_path, TALK.format(code=code), name, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait(60) == expected
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(("name", "code", "expected"), [("run", 0, 0), ("list", 0, 141)])
def test_where_only_one_reader_leaves_the_other_hears_nothing_of_it(tmp_path, name, code, expected):
    body = TALK.format(code=code).replace("(sys.stdout, sys.stderr)", "(sys.stdout,)")
    process = start(tmp_path, body, name, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr as heard:
        assert (heard.read(), process.wait(60)) == ("", expected)


def test_a_file_for_the_output_that_is_full_is_a_failure_and_is_said_once(tmp_path):
    with open("/dev/full", "w") as full:
        body = TALK.format(code=0).replace("(sys.stdout, sys.stderr)", "(sys.stdout,)")
        process = start(tmp_path, body, "list", stdout=full, stderr=subprocess.PIPE)
        err = process.communicate(timeout=60)[1]
    assert err == "statewise: standard output: No space left on device; not all was printed\n"
    assert process.returncode == 1


def test_a_terminal_that_is_closed_ends_no_work(tmp_path):
    here, there = os.openpty()
    process = start(tmp_path, TALK.format(code=0), stdout=there, stderr=there)
    os.close(there)
    assert os.read(here, 1) == b"0"
    os.close(here)
    assert process.wait(60) == 0
    assert (tmp_path / "done").exists()


def test_a_closed_standard_output_is_no_error(tmp_path):
    process = start(tmp_path, TALK.format(code=0), preexec_fn=lambda: os.close(1), stderr=subprocess.DEVNULL)
    assert process.wait(60) == 0


INTERRUPTED_IMPORT = """
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("numpy._core.multiarray failed to import") from None
"""


@pytest.mark.parametrize("body", [INTERRUPTED_IMPORT, "    signal.raise_signal(signal.SIGINT)"])
def test_ctrl_c_is_one_line_whatever_an_import_makes_of_it(tmp_path, body):
    process = start(tmp_path, body, stderr=subprocess.PIPE)
    assert process.communicate(timeout=60)[1] == f"{INTERRUPTION}\n"
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_asks_to_end_is_said_and_ends_with_its_own_code(tmp_path, number):
    process = start(tmp_path, f"    signal.raise_signal({int(number)})", "eval", stderr=subprocess.PIPE)
    assert process.communicate(timeout=60)[1] == f"{INTERRUPTION}\n"
    assert process.returncode == 128 + number


def test_a_signal_that_is_ignored_is_not_heard(tmp_path):
    body = "    signal.raise_signal(signal.SIGINT)\n    sys.exit(0)"
    process = start(tmp_path, body, "eval", before="SIG_IGN", stderr=subprocess.PIPE)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)


def test_a_defect_keeps_its_traceback(tmp_path):
    process = start(tmp_path, "    1 / 0", stderr=subprocess.PIPE)
    assert "ZeroDivisionError" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


# Ctrl-C while `statewise.cli` is imported.
IMPORTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.{before})

class Presser:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Presser())
sys.argv = ["statewise", "list", "distances", "--help"]
from statewise.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("before", "code", "told"), [("default_int_handler", 130, f"{INTERRUPTION}\n"), ("SIG_IGN", 0, "")]
)
def test_ctrl_c_before_the_command_line_is_there_is_one_line_unless_it_is_ignored(tmp_path, before, code, told):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(before=before)], cwd=tmp_path, text=True, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (code, told)
