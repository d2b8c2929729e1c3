"""The commands about studies and their run folders: run, plan, report, verify."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statewise.cli.completion import complete_keys, complete_studies, complete_trackers
from statewise.cli.options import (
    ChatOption,
    JsonOption,
    RunArgument,
    TrustOption,
    examples,
    print_json,
    tell_code,
)
from statewise.console.entry import FAILED, PARTIAL
from statewise.errors import UsageError

if TYPE_CHECKING:
    from statewise.plan.request import StudyRequest
    from statewise.storage.records import StudySummary
    from statewise.trackers import Tracker

app = typer.Typer()

StudyArgument = Annotated[
    str,
    typer.Argument(
        help="A built-in study (see: statewise list studies) or a .toml file.", autocompletion=complete_studies
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="ARM.KEY=VALUE", help="Override a key; may be repeated.", autocompletion=complete_keys
    ),
]
SeedsOption = Annotated[int | None, typer.Option(help="Number of seeds; default: as the study says.")]
ModelOption = Annotated[
    str | None, typer.Option(help="Base model: pocket, a folder, or a Hugging Face name org/name[@revision].")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="The study's own small size, to try it out.")]
ReportToOption = Annotated[
    list[str] | None,
    typer.Option(
        "--report-to",
        metavar="TRACKER",
        help="Show the numbers in a tracker too: see list trackers; may be repeated.",
        autocompletion=complete_trackers,
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes side by side; default: one a core, one for a large model.")
]
FullOption = Annotated[bool, typer.Option("--full", help="Print all tables, not the answer and the scores alone.")]


@app.command(
    epilog=examples(
        "statewise run pocket --workers 2",
        "statewise run pocket --set rl.update.lr=3e-5 --seeds 1 -o runs/low-lr",
        "statewise run grid --quick --dry-run",
    )
)
def run(  # noqa: PLR0913, PLR0917  (a command has as many parameters as it has options)
    study: StudyArgument,
    overrides: SetOption = None,
    seeds: SeedsOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default: runs/<study>.")] = None,
    world: Annotated[
        Path | None, typer.Option(help="Folder of `statewise pretrain`: another world's model and tasks.")
    ] = None,
    model: ModelOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of local copies of the benchmarks' data, for a machine without the hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items a task and prompts of drift, at most.")] = None,
    quick: QuickOption = False,
    chat: ChatOption = False,
    trust_task_code: TrustOption = False,
    workers: WorkersOption = None,
    report_to: ReportToOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study to its report. The same command resumes what was interrupted."""
    from statewise.plan.request import StudyRequest

    trackers: dict[str, type[Tracker]] = {}
    if report_to:
        from statewise.trackers import trackers_named

        trackers = trackers_named(report_to)
    if world and model:
        raise UsageError("--world and --model both name the base model; give one of them")
    request = StudyRequest(
        study, tuple(overrides or ()), seeds, str(world) if world else model,
        str(data) if data else None, limit, is_quick=quick, is_chat=chat, is_dry=dry_run,
        trusts_task_code=trust_task_code,
    )  # fmt: skip
    if dry_run:
        _print_plan(request, workers, as_json)
        return
    raise typer.Exit(_run(request, out, workers, trackers, full=full, as_json=as_json))


def _run(
    request: StudyRequest,
    out: Path | None,
    workers: int | None,
    trackers: dict[str, type[Tracker]],
    *,
    full: bool,
    as_json: bool,
) -> int:
    from statewise.plan.request import plan_study, run_folder_of

    plan = plan_study(request)  # before the slow imports: a mistyped word is answered at once
    tell_code(plan.task_code)

    from statewise.progress import run_to_report
    from statewise.report.terminal import CleanConsole

    folder = out or run_folder_of(request, plan.config)
    outcome, summary = run_to_report(plan, folder, workers, CleanConsole(stderr=True), trackers)
    if summary is not None and not as_json:
        _print_summary(summary, folder, full=full)
    if as_json:
        print_json({"folder": str(folder), "failed": outcome.failed, "interrupted": outcome.interrupted})
    if outcome.interrupted:
        typer.echo(f"Interrupted. What is done is kept in {folder}; run the same command to continue.", err=True)
    if outcome.interrupted or (outcome.failed and outcome.done):
        return PARTIAL
    return FAILED if outcome.failed else 0


def _print_summary(summary: StudySummary, folder: Path, *, full: bool) -> None:
    from statewise.report.screen import render_screen
    from statewise.report.terminal import CleanConsole, render_terminal

    (render_terminal if full else render_screen)(summary, CleanConsole())
    if not full:
        typer.echo(f"All tables: statewise report {shlex.quote(str(folder))} --full")
    typer.echo(f"Report: {folder / 'report.html'}")


def _print_plan(request: StudyRequest, workers: int | None, as_json: bool, *, has_cards: bool = False) -> None:
    from dataclasses import asdict

    from statewise.plan.estimate import estimate_plan
    from statewise.plan.materials import check_materials
    from statewise.plan.memory import estimate_memory
    from statewise.plan.request import choose_workers, plan_study
    from statewise.progress import cards_table, plan_table
    from statewise.report.terminal import CleanConsole

    plan = plan_study(request)
    tell_code(plan.task_code)
    notes = check_materials(plan)
    num_workers = choose_workers(plan, workers).count
    estimate = estimate_plan(plan, num_workers)
    if as_json:
        jobs = [{"id": j.id, "needs": list(j.needs), "seconds": estimate.seconds[j.id]} for j in plan.jobs]
        print_json(
            {
                "jobs": jobs,
                "arms": {k: asdict(v) for k, v in estimate.arms.items()},
                "wall_s": estimate.wall_s,
                "reward": plan.reward,
                "notes": notes,
            }
            | ({"memory": {k: asdict(v) for k, v in estimate_memory(plan).items()}} if has_cards else {})
        )
        return
    CleanConsole().print(plan_table(plan, estimate, num_workers))
    if has_cards:
        CleanConsole().print(cards_table(plan, estimate))
    for note in notes:
        typer.echo(note)
    if plan.download_bytes:
        typer.echo(f"Model {plan.config.shared.model}: {plan.download_bytes / 1e9:.1f} GB to be downloaded.")
    if missing := sum(plan.other_bytes.values()):
        typer.echo(f"Models {', '.join(plan.others)}: {missing / 1e9:.1f} GB to be downloaded.")


@app.command(epilog=examples("statewise plan pocket", "statewise plan grid --seeds 1 --quick --json"))
def plan(  # noqa: PLR0913, PLR0917  (a command has as many parameters as it has options)
    study: StudyArgument,
    overrides: SetOption = None,
    seeds: SeedsOption = None,
    model: ModelOption = None,
    quick: QuickOption = False,
    trust_task_code: TrustOption = False,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a study will need: arms, budget, time, and memory on GPUs of 24, 40 and 80 GB. Computes nothing."""
    from statewise.plan.request import StudyRequest

    request = StudyRequest(
        study, tuple(overrides or ()), seeds, model, is_quick=quick, is_dry=True, trusts_task_code=trust_task_code
    )
    _print_plan(request, workers, as_json, has_cards=True)


@app.command(epilog=examples("statewise report runs/pocket", "statewise report runs/pocket --full"))
def report(
    folder: RunArgument,
    full: FullOption = False,
) -> None:
    """Print what came out of a run folder again, and write its report.html anew."""
    from statewise.report.page import write_report
    from statewise.report.summary_json import read_summary

    summary, note = read_summary(folder)
    if note:
        typer.echo(f"note: {note}", err=True)
    write_report(summary, folder)
    _print_summary(summary, folder, full=full)


@app.command(epilog=examples("statewise verify runs/pocket"))
def verify(
    folder: RunArgument,
    as_json: JsonOption = False,
) -> None:
    """Compare every file of a run folder with what was recorded of it. Exit code 1: not all match."""
    from dataclasses import asdict

    from statewise.folder.verify import told, verify_run

    found = verify_run(folder)
    if as_json:
        print_json({"folder": str(folder), "is_sound": found.is_sound, **asdict(found)})
    else:
        typer.echo("\n".join(told(found)))
    if not found.is_sound:
        raise typer.Exit(FAILED)
