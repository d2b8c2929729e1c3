"""The commands about a user's own data: what is in it, and a study begun from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statewise.cli.options import JsonOption, examples, print_json

if TYPE_CHECKING:
    from statewise.plan.new_study import DataFacts

app = typer.Typer()

PromptOption = Annotated[str | None, typer.Option(help="Column of the prompt; default: the likeliest.")]
CompletionOption = Annotated[
    str | None, typer.Option(help="Column of the answer, '' for none; default: the likeliest.")
]
MessagesOption = Annotated[
    str | None,
    typer.Option(help="Column of conversations instead of the two; default: one called so, if it holds lists."),
]
ROWS = (
    "Rows: .jsonl, .json, .csv, .parquet, a folder of save_to_disk[:split], or "
    "hub:org/name[/config][@revision][:split]."
)
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help=ROWS)]
PARTS = {"prompt": "before the last answer", "completion": "the last answer"}  # of a conversation
NUM_TOLD = 5


@app.command(
    name="data",
    epilog=examples(
        "statewise data rows.jsonl",
        "statewise data rows.jsonl --test test.jsonl --model pocket",
        "statewise data saved:train",
        "statewise data hub:openai/gsm8k/main:train",
    ),
)
def data_(  # noqa: PLR0913, PLR0917  (a command has as many parameters as it has options)
    file: FileArgument,
    prompt: PromptOption = None,
    completion: CompletionOption = None,
    messages: MessagesOption = None,
    test: Annotated[str, typer.Option(help="Others, whose prompts are looked for in these.")] = "",
    model: Annotated[str, typer.Option(help="Whose tokens lengths are counted in; default: characters.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What a study would see of prompts and answers, or conversations: rows, lengths, duplicates, overlap, bad rows."""
    from statewise.plan.new_study import Columns, describe_data

    facts = describe_data(file, Columns(prompt, completion, messages), test=test, model=model)
    if as_json:
        print_json(asdict(facts) | {"path": file})
        return
    _tell(facts, file, test)


@app.command(epilog=examples("statewise init mine --data rows.jsonl", "statewise init mine --data rows.csv --prompt q"))
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
    data: Annotated[str, typer.Option(help=f"{ROWS} Default: a few example rows, to begin with.")] = "",
    model: Annotated[
        str, typer.Option(help="pocket, a folder, or a Hugging Face name org/name[@revision].")
    ] = "pocket",
    prompt: PromptOption = None,
    completion: CompletionOption = None,
    messages: MessagesOption = None,
) -> None:
    """Begin a study on your own data: study.toml, rewards.py and a README.md; it runs as it is."""
    from statewise.plan.new_study import EXAMPLE, Columns, describe_data, write_study

    facts = describe_data(data or str(EXAMPLE), Columns(prompt, completion, messages), model=model)
    study = write_study(folder, facts, model)
    _tell(facts, data or "Example rows")
    columns = f"column {facts.messages}" if facts.messages else f"columns {facts.prompt} and {facts.completion}"
    typer.echo(f"Written: {study}, on {columns}; {folder / 'rewards.py'}; {folder / 'README.md'}")
    typer.echo(f"Look at them, then: statewise run {study} --quick")


def _tell(facts: DataFacts, name: str, test: str = "") -> None:
    """Print what is in rows."""
    typer.echo(f"{name}: {facts.num_rows:,} rows; columns {', '.join(facts.columns)}")
    if facts.turns:
        low, middle, high = facts.turns.num_turns
        typer.echo(
            f"conversations: {facts.messages}; turns of the 5 %, 50 % and 95 % quantile: {low}, {middle}, {high}; "
            f"{facts.turns.num_with_system:,} with a system turn, {facts.turns.num_with_more_answers:,} with several "
            "answers"
        )
    for what, column, lengths in (
        ("prompt", facts.prompt, facts.prompt_lengths),
        ("completion", facts.completion, facts.completion_lengths),
    ):
        if column:
            low, middle, high = lengths
            told = f"{what}: {column}" if not facts.messages else PARTS[what]
            typer.echo(f"{told}; {facts.unit} of the 5 %, 50 % and 95 % quantile: {low}, {middle}, {high}")
    for asked, answered in facts.first:
        typer.echo(f"  {asked!r}\n    → {answered!r}")
    if facts.context:
        typer.echo(f"rows of more tokens than the model's context of {facts.context:,}: {facts.num_too_long:,}")
    typer.echo(f"rows whose prompt came before: {facts.num_twice:,}")
    if facts.num_in_test is not None:
        what = "first questions" if facts.messages else "prompts"
        typer.echo(f"{what} of {test} that are here too: {facts.num_in_test:,}")
    typer.echo(f"rows that a study would refuse: {len(facts.problems):,}")
    for problem in facts.problems[:NUM_TOLD]:
        typer.echo(f"  {problem}")
