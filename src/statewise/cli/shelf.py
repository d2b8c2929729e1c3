"""The command that lists what can be named, in a study file or as an option."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Annotated, Any

import typer

from statewise.cli.completion import one_of
from statewise.cli.options import JsonOption, examples, print_json
from statewise.errors import UsageError, unknown

SHELF = ("studies", "sources", "signals", "localities", "cells", "tasks", "distances", "trackers")

app = typer.Typer()


@app.command(
    name="list",
    epilog=examples("statewise list signals", "statewise list cells --json", "statewise list tasks --all gsm8k"),
)
def list_(
    what: Annotated[str, typer.Argument(help="One of " + ", ".join(SHELF) + ".", autocompletion=one_of(*SHELF))],
    word: Annotated[str | None, typer.Argument(help="Only names that contain it.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="Of tasks, lm-eval's own, groups and tags too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what can be named (cells: what each source × signal is called, or why it is refused)."""
    if what not in SHELF:
        raise unknown("shelf", what, SHELF)
    if (is_all and what != "tasks") or (word and what == "cells"):
        raise UsageError(f"list {what}: takes no {'--all' if is_all else 'word'}; list tasks --all WORD does")
    if what == "cells":
        _print_cells(as_json)
        return
    rows = _rows_of(what, is_all)
    found = {name: text for name, text in rows.items() if (word or "").casefold() in name.casefold()}
    if word and not found:
        nearest = difflib.get_close_matches(word, rows, n=3, cutoff=0.5)
        hint = f"; the nearest: {', '.join(nearest)}" if nearest else ""
        raise UsageError(f"list {what}: no name of {len(rows):,} contains {word!r}{hint}")
    if as_json:
        print_json(found)
        return
    width = max((len(name) for name in found), default=0)
    for name, text in found.items():
        typer.echo(f"{name:<{width}}  {text}".rstrip())


def _rows_of(what: str, is_all: bool) -> dict[str, str]:
    from statewise.plan import catalog

    if what == "studies":
        return {name: catalog.describe_study(path) for name, path in catalog.built_in_studies().items()}
    if what == "tasks":
        return (_tasks_of_lm_eval() if is_all else {}) | dict.fromkeys(catalog.pocket_tasks(), "embedded")
    if what == "distances":
        from statewise.drift import DISTANCES

        return {name: _first_line(sys.modules[distance.__module__].__doc__) for name, distance in DISTANCES.items()}
    if what == "trackers":
        from statewise.trackers import TRACKERS

        return {name: _first_line(sys.modules[kind.__module__].__doc__) for name, kind in TRACKERS.items()}
    from statewise.locality import LOCALITIES
    from statewise.signals import SIGNALS
    from statewise.states import SOURCES

    registries: dict[str, dict[str, Any]] = {
        "sources": {**SOURCES}, "signals": {**SIGNALS}, "localities": {**LOCALITIES},
    }  # fmt: skip
    registry = registries[what]
    return {name: f"{_first_line(kind.__doc__)} {_fields_of(kind)}" for name, kind in registry.items()}


def _tasks_of_lm_eval() -> dict[str, str]:
    """Every name with the first file that mentions it, below lm-eval's folder of tasks."""
    from statewise.tasks.find import lm_eval_names
    from statewise.tasks.task_file import built_in_folder

    folder = built_in_folder()
    return {name: f"lm-eval: {paths[0].relative_to(folder)}" for name, paths in sorted(lm_eval_names().items())}


def _print_cells(as_json: bool) -> None:
    """Every cell under its signal, with its name; a refused one with the reason and the nearest that works."""
    from statewise.plan.cells import matrix

    cells = matrix()
    if as_json:
        print_json(cells)
        return
    width = max(len(cell["source"]) for cell in cells)
    signal = ""
    for cell in cells:
        if cell["signal"] != signal:
            signal = cell["signal"]
            typer.echo(f"{signal} on")
        typer.echo(f"  {cell['source']:<{width}}  {cell['name']}")
        if cell["refused"]:
            typer.echo(f"  {'':<{width}}    refused by default: {cell['refused']}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _fields_of(kind: Any) -> str:
    fields = [
        name + ("" if field.is_required() or field.default is None else f" = {json.dumps(field.default, default=str)}")
        for name, field in kind.model_fields.items()
        if name != "kind"
    ]
    return f"({', '.join(fields)})" if fields else ""
