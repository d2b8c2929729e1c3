"""What a shell completes: studies, keys, shelves, tasks, run folders, arms. Reads names only, and nothing slow.

`statewise --install-completion` puts typer's script for a shell in its place. What nothing here knows, such as the
files of a study or a model, the shell completes by itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from statewise.console.printing import printable
from statewise.errors import UsageError

Table = dict[str, Any]

# Of `folder.store` and `models.evaluation`, whose imports take longer than a completion may.
PLAN, STUDY, HEADER = "plan.json", "study.toml", "eval.json"
# What arms take from [shared], a fact of `config.study.ArmSection`.
ARM_KEYS = ("source", "signal", "teacher", "locality", "adapter", "update")
BASE = "base"
PLAIN = re.compile(r"[\w./+-]*")


def complete_studies(incomplete: str) -> list[str]:
    """Built-in studies; a file's path the shell completes."""
    from statewise.assets import STUDIES

    return [name for path in sorted(STUDIES.glob("*.toml")) if (name := path.stem).startswith(incomplete)]


def complete_keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of the study's arms with the values that they have; of several arms first the arms."""
    from statewise.assets import STUDIES

    name = _argument(ctx, "study")
    built_in = STUDIES / f"{name}.toml"
    raw = _study_of(built_in if built_in.is_file() else Path(name))
    shared, arms = raw.get("shared", {}), raw.get("arms", {})
    sections = {arm: _merged(shared, keys) for arm, keys in arms.items() if "." not in arm}
    sections |= {root: raw[root] for root in ("study", "shared") if root in raw}
    found = [arm for arm in sections if f"{arm}.".startswith(incomplete) or incomplete.startswith(f"{arm}.")]
    if len(found) > 1:
        return [f"{arm}." for arm in found]
    return [f"{arm}.{key}" for arm in found for key in _leaves(sections[arm])]


def complete_tasks(incomplete: str) -> list[str]:
    """The embedded tasks, after those that are given already."""
    from statewise.assets import POCKET_MODEL

    given = incomplete[: incomplete.rfind(",") + 1]
    return [given + path.stem for path in sorted((POCKET_MODEL / "tasks").glob("*.yaml"))]


def complete_runs(incomplete: str) -> list[str]:
    """Run folders."""
    return list(_folders(incomplete, PLAN))


def complete_arms(ctx: typer.Context) -> list[str]:
    """Arms of the run that is given."""
    return _arms_of(Path(_argument(ctx, "run")))


def complete_run_arms(incomplete: str) -> list[str]:
    """RUN:ARM; of several runs first the runs."""
    run, colon, _ = incomplete.rpartition(":")
    runs = [run] if colon else list(_folders(incomplete, PLAN))
    if len(runs) > 1:
        return [f"{run}:" for run in runs]
    return [f"{run}:{arm}" for run in runs for arm in _arms_of(Path(run))]


def complete_sides(incomplete: str) -> list[str]:
    """Folders of `statewise eval`, and RUN:ARM."""
    return [*_folders(incomplete, HEADER), *complete_run_arms(incomplete)]


def complete_tasks_of_arm(ctx: typer.Context) -> list[str]:
    """Tasks of the study that RUN:ARM is of."""
    shared = _study_of(Path(_argument(ctx, "arm").partition(":")[0]) / STUDY).get("shared", {})
    return [str(task) for task in (shared.get("target", ""), *shared.get("retention", ())) if task]


def complete_trackers() -> list[str]:
    """Trackers by name."""
    from statewise.trackers import TRACKERS

    return list(TRACKERS)


def one_of(*words: str) -> Callable[[], list[str]]:
    """A completion from a few words."""
    return lambda: list(words)


def _argument(ctx: typer.Context, name: str) -> str:
    """The first argument; it is not yet known by its name where an option behind it has no value."""
    return str(ctx.params.get(name) or next(iter(ctx.args), ""))


def _folders(incomplete: str, marker: str) -> Iterator[str]:
    """Folders that hold `marker`, here or one level deeper, whose path begins as it was typed."""
    head, _, start = incomplete.rpartition("/")
    above = f"{head}/" if head or incomplete.startswith("/") else ""
    found = chain(Path(above).glob(f"*/{marker}"), Path(above).glob(f"*/*/{marker}"))
    for path in sorted(found):
        name = above + str(path.parent.relative_to(above))
        if name.removeprefix(above).startswith(start):
            yield name


def _study_of(path: Path) -> Table:
    """The tables of a study file with the arms of its grid; {} where it cannot be read, since nobody can be told."""
    from statewise.config.grid import expand_grid

    try:
        return expand_grid(tomllib.loads(path.read_text(encoding="utf-8")), lambda keys: str(path))
    except (OSError, ValueError, UsageError):
        return {}


def _arms_of(run: Path) -> list[str]:
    arms = _study_of(run / STUDY).get("arms", {})
    return [BASE, *arms] if arms else []


def _merged(shared: Table, arm: Table) -> Table:
    """An arm with what it takes from [shared]: a table of the same kind key by key, all else whole."""
    merged = {key: shared[key] for key in ARM_KEYS if key in shared}
    for key, value in arm.items():
        above = merged.get(key)
        if (
            isinstance(value, dict)
            and isinstance(above, dict)
            and ("kind" not in value or value["kind"] == above.get("kind"))
        ):
            value = {**above, **value}
        merged[key] = value
    return merged


def _leaves(table: Table, above: str = "") -> Iterator[str]:
    """`key=value` of everything that one override can set; a value that a shell would take apart is left open."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        elif not isinstance(value, list) or not any(isinstance(one, dict) for one in value):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{above}{key}={text if PLAIN.fullmatch(text) else ''}"


def complete_bash(command: Callable[[], None]) -> None:
    """Answer bash, which takes `:` and `=` for ends of words: `command` sees whole words, bash the end of the last.

    The script of typer hands over bash's words, a line each, and the index of the one to complete.
    """
    words, last = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    whole: list[str] = []
    for word in (*words, "")[: last + 1]:  # an empty last word may have been lost on the way
        is_part = word in (":", "=") or (whole and whole[-1].endswith((":", "=")) and word)
        whole[-1:] = [whole[-1] + word] if is_part and len(whole) > 1 else [*whole[-1:], word]
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(whole), str(len(whole) - 1)
    typed, printed = whole[-1], io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            command()
    finally:
        known = typed[: max(typed.rfind(":"), typed.rfind("=")) + 1]
        for line in printed.getvalue().splitlines():
            typer.echo(printable(line).removeprefix(known))
