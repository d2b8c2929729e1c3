"""The commands about a user's own data: what is in a file, and a study begun from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from statewise.cli.options import JsonOption, examples, print_json

app = typer.Typer()

PromptOption = Annotated[str | None, typer.Option(help="Column of the prompt; default: the likeliest.")]
CompletionOption = Annotated[
    str | None, typer.Option(help="Column of the answer, '' for none; default: the likeliest.")
]
FileArgument = Annotated[Path, typer.Argument(help="Rows: .jsonl, .json, .csv or .parquet.")]
NUM_TOLD = 5


@app.command(
    name="data",
    epilog=examples("statewise data rows.jsonl", "statewise data rows.jsonl --test test.jsonl --model pocket"),
)
def data_(
    file: FileArgument,
    prompt: PromptOption = None,
    completion: CompletionOption = None,
    test: Annotated[Path | None, typer.Option(help="Another file, whose prompts are looked for in this one.")] = None,
    model: Annotated[str, typer.Option(help="Whose tokens lengths are counted in; default: characters.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What a study would see of a file of prompts and answers: rows, lengths, duplicates, overlap, bad rows."""
    from statewise.plan.new_study import describe_data

    facts = describe_data(file, prompt, completion, test=test, model=model)
    if as_json:
        print_json(asdict(facts) | {"path": str(file)})
        return
    typer.echo(f"{file}: {facts.num_rows:,} rows; columns {', '.join(facts.columns)}")
    for what, column, lengths in (
        ("prompt", facts.prompt, facts.prompt_lengths),
        ("completion", facts.completion, facts.completion_lengths),
    ):
        if column:
            low, middle, high = lengths
            typer.echo(f"{what}: {column}; {facts.unit} of the 5 %, 50 % and 95 % quantile: {low}, {middle}, {high}")
    for asked, answered in facts.first:
        typer.echo(f"  {asked!r}\n    → {answered!r}")
    typer.echo(f"rows whose prompt came before: {facts.num_twice:,}")
    if facts.num_in_test is not None:
        typer.echo(f"prompts of {test} that are here too: {facts.num_in_test:,}")
    typer.echo(f"rows that a study would refuse: {len(facts.problems):,}")
    for problem in facts.problems[:NUM_TOLD]:
        typer.echo(f"  {problem}")


@app.command(epilog=examples("statewise init mine --data rows.jsonl", "statewise init mine --data rows.csv --prompt q"))
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
    data: Annotated[Path, typer.Option(help="Rows: .jsonl, .json, .csv or .parquet.")],
    model: Annotated[
        str, typer.Option(help="pocket, a folder, or a Hugging Face name org/name[@revision].")
    ] = "pocket",
    prompt: PromptOption = None,
    completion: CompletionOption = None,
) -> None:
    """Begin a study on your own data: study.toml and rewards.py, which run as they are."""
    from statewise.plan.new_study import describe_data, write_study

    facts = describe_data(data, prompt, completion, model=model)
    study = write_study(folder, facts, model)
    typer.echo(f"Written: {study}, on columns {facts.prompt} and {facts.completion}; {folder / 'rewards.py'}")
    typer.echo(f"Look at both, then: statewise run {study} --quick")
