"""What several commands have in common: their arguments and options, examples in their help, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from statewise.cli.completion import complete_runs

RunArgument = Annotated[Path, typer.Argument(help="A run folder.", autocompletion=complete_runs)]
ChatOption = Annotated[bool, typer.Option("--chat", help="Prompts in the tokenizer's chat template.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-task-code", help="Run the Python that a task file names; it is named first.")
]


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def examples(*commands: str) -> str:
    """The end of a command's help: click leaves the lines after a backspace as they are."""
    return "\n".join(["Examples:", "", "\b", *commands])


def tell_code(task_code: tuple[str, ...]) -> None:
    """Name the Python of task files and rewards, before it runs."""
    for line in task_code:
        typer.echo(f"Python that this runs: {line}", err=True)
