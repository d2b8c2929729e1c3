"""The command line: parse, load the configuration, one call. Heavy imports are in commands.

Exit codes: see `console.entry`.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from statewise.cli import data, models, pretrain, shelf, studies
from statewise.cli.completion import complete_bash
from statewise.cli.options import examples
from statewise.console.entry import answer

app = typer.Typer(
    name="statewise",
    help="Post-train language models with the states they are trained on as a knob of their own.",
    epilog=examples(
        "statewise run pocket              # the paper's six runs, three seeds",
        "statewise run pocket --dry-run    # what would run, and how long it takes",
        "statewise list signals            # what can be combined",
        "statewise compare runs/pocket:base runs/pocket:rl",
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        import statewise

        typer.echo(f"statewise {statewise.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


for part in (studies, shelf, pretrain, models, data):
    app.registered_commands += part.app.registered_commands


def main() -> None:
    """Entry point."""
    if os.environ.get("_STATEWISE_COMPLETE") == "complete_bash":
        complete_bash(app)
    answer(app)
