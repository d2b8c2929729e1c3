"""The commands about single models: export, evaluate, compare, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from statewise.cli.completion import (
    complete_arms,
    complete_run_arms,
    complete_sides,
    complete_studies,
    complete_tasks,
    complete_tasks_of_arm,
    one_of,
)
from statewise.cli.options import ChatOption, JsonOption, RunArgument, TrustOption, examples, print_json, tell_code
from statewise.console.entry import PARTIAL
from statewise.errors import UsageError

app = typer.Typer()


@app.command(
    epilog=examples(
        "statewise export runs/pocket rl -o rl-model", "statewise export runs/pocket rl --seed 1 --merge -o rl-1"
    )
)
def export(
    run: RunArgument,
    arm: Annotated[str, typer.Argument(help="An arm of its study, or base.", autocompletion=complete_arms)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not exist or be empty.")],
    seed: Annotated[int | None, typer.Option(help="Seed of the arm; default: the study's first.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add a LoRA adapter to the base model's weights (float32).")
    ] = False,
) -> None:
    """Copy a trained model out of a run: weights, tokenizer, model card, statewise.json."""
    from statewise.models.export import ExportRequest, export_model
    from statewise.report.card import render_card

    facts = export_model(ExportRequest(run, arm, seed, merge), out, render_card)
    what = {"full": "model", "adapter": "LoRA adapter", "merged": "model with merged adapter"}[facts.weights]
    older = facts.provenance.get("not_verified")
    if older:
        typer.echo(f"note: {older}", err=True)
    typer.echo(f"Written: {out}, the {what} of arm {facts.arm}, seed {facts.seed}. Its card: {out / 'README.md'}")


@app.command(
    name="eval",
    epilog=examples(
        "statewise eval pocket --tasks pocket_math,pocket_myths",
        "statewise eval rl-model --tasks gsm8k --limit 200 -o evals/rl-gsm8k",
        "statewise eval rl-model --study apples.toml -o evals/rl-apples",
    ),
)
def eval_(  # noqa: PLR0913, PLR0917  (a command has as many parameters as it has options)
    model: Annotated[str, typer.Argument(help="pocket, a model folder, or RUN/arms/<arm>/<seed>/model.")],
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Tasks by name, or paths of YAML files.", autocompletion=complete_tasks),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="The tasks, own [data] and protocol of a study, in the place of --tasks.",
            autocompletion=complete_studies,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="So many items of a task, a seeded sample; default: all.")
    ] = None,
    first: Annotated[
        bool, typer.Option("--first", help="The first items of --limit, as lm-eval, not a sample.")
    ] = False,
    samples: Annotated[int | None, typer.Option(min=2, help="Sampled answers an item, for pass@k.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of local copies of the benchmarks' data, for a machine without the hub.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of sampled answers; default: 0, or the study's first.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the scores; default: evals/<model>.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer; default: that of a study.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Worked examples in a prompt; default: as each task says.")
    ] = None,
    chat: ChatOption = False,
    trust_task_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score any model on any task, item by item. The same command resumes; done tasks are kept."""
    from statewise.models.evaluation import evaluate_tasks, plan_evaluation
    from statewise.models.evaluation_request import EvaluationRequest

    names = tuple(dict.fromkeys(name for part in (tasks or "").split(",") if (name := part.strip())))
    if tasks is not None and not names:
        raise UsageError(f"--tasks {tasks!r}: names no task; give one or several, separated by commas")
    plan = plan_evaluation(
        EvaluationRequest(
            model, names, limit, data, seed, out=out, is_chat=chat, num_fewshot=num_fewshot,
            trusts_task_code=trust_task_code, items="first" if first else "sample", samples=samples, study=study,
            max_new_tokens=max_new_tokens,
        )
    )  # fmt: skip
    tell_code(plan.task_code)

    from statewise.progress import telling
    from statewise.report.comparison import print_scores
    from statewise.report.terminal import CleanConsole

    with telling(CleanConsole(stderr=True)) as tell:
        rows = evaluate_tasks(plan, tell)
    if as_json:
        print_json({"folder": str(plan.out), "model": plan.stored["model"], "scores": rows})
        return
    print_scores(rows, CleanConsole())
    typer.echo(f"Items: {plan.out / 'evals'}")


@app.command(
    epilog=examples(
        "statewise samples evals/rl-model -o samples",
        "statewise samples runs/pocket:rl:0 -o samples",
    )
)
def samples(
    evaluated: Annotated[
        str,
        typer.Argument(help="A folder of `statewise eval`, or RUN:ARM:SEED.", autocompletion=complete_sides),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into, as lm-eval's --output_path.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with local data of the tasks, as in the evaluation.")
    ] = None,
    trust_task_code: TrustOption = False,
) -> None:
    """Write what was evaluated here as lm-eval's samples_*.jsonl and results_*.json, for tools that read those."""
    from statewise.models.samples import export_samples

    for path in export_samples(evaluated, out, data, trust_task_code, tell_code):
        typer.echo(f"Written: {path}")


@app.command(
    epilog=examples(
        "statewise compare runs/pocket:base runs/pocket:rl",
        "statewise compare evals/a evals/b --json",
        "statewise compare before/ after/    # of `lm_eval --log_samples`, or inspect",
    )
)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="A folder of `statewise eval`, RUN:ARM (all seeds), RUN:ARM:SEED, or logs: what lm-eval wrote with "
            "--log_samples, inspect's .eval.",
            autocompletion=complete_sides,
        ),
    ],
    b: Annotated[str, typer.Argument(help="The same; differences are B minus A.", autocompletion=complete_sides)],
    as_json: JsonOption = False,
) -> None:
    """Compare two models or arms on the same items. Exit code 3: some tasks cannot be compared."""
    from statewise.models.sides import read_side

    sides = read_side(a), read_side(b)  # before the slow imports: a mistyped word is answered at once

    from statewise.models.compare import compare as compare_sides
    from statewise.report.comparison import comparison_to_json, print_comparison
    from statewise.report.terminal import CleanConsole

    comparison = compare_sides(*sides)
    if as_json:
        print_json(comparison_to_json(comparison))
    else:
        print_comparison(comparison, CleanConsole())
    if comparison.refused:
        raise typer.Exit(PARTIAL)


@app.command(
    epilog=examples(
        "statewise show runs/pocket:rl --items lost --task pocket_facts",
        "statewise show runs/pocket:rl:0 --items gained --head 3 --json",
        "statewise show runs/pocket:rl --states",
    )
)
def show(
    arm: Annotated[str, typer.Argument(help="RUN:ARM (all seeds) or RUN:ARM:SEED.", autocompletion=complete_run_arms)],
    items: Annotated[
        str | None,
        typer.Option(
            help="gained (score above base's), lost (below), flipped (either) or kept (equal); default: all.",
            autocompletion=one_of("gained", "lost", "flipped", "kept"),
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Items of this task alone.", autocompletion=complete_tasks_of_arm)
    ] = None,
    states: Annotated[bool, typer.Option("--states", help="What was trained on, as text, not items.")] = False,
    head: Annotated[int, typer.Option(min=1, help="So many, at most.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Items of an arm: prompt, base's answer and its own, scores. Or the states that it was trained on."""
    from dataclasses import asdict

    from statewise.models.show import show_items, show_states, told

    if states and (items or task):
        raise UsageError("--states shows what was trained on; --items and --task are of what was evaluated")
    shown = show_states(arm, head) if states else show_items(arm, items, task, head)
    if as_json:
        print_json(asdict(shown))
        return
    for line in told(shown):
        typer.echo(line)
