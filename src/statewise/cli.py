"""The command line: parse, load the configuration, one call. The only room that prints; heavy imports are in commands.

Exit codes: see `entry`.
"""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statewise import cli_data, cli_models
from statewise.cli_models import ChatOption, JsonOption, RunArgument, TrustOption, examples, print_json
from statewise.console.entry import FAILED, PARTIAL, answer
from statewise.errors import UsageError, unknown

if TYPE_CHECKING:
    from statewise.plan.request import StudyRequest

SHELF = ("studies", "sources", "signals", "localities", "cells", "tasks", "distances")

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

StudyArgument = Annotated[str, typer.Argument(help="A built-in study (see: statewise list studies) or a .toml file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="ARM.KEY=VALUE", help="Override a key; may be repeated.")
]
SeedsOption = Annotated[int | None, typer.Option(help="Number of seeds; default: as the study says.")]
ModelOption = Annotated[
    str | None, typer.Option(help="Base model: pocket, a folder, or a Hugging Face name org/name[@revision].")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="The study's own small size, to try it out.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes side by side; default: one a core, one for a large model.")
]


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study to its report. The same command resumes what was interrupted."""
    from statewise.plan.request import StudyRequest

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
    raise typer.Exit(_run(request, out, workers, as_json))


def _run(request: StudyRequest, out: Path | None, workers: int | None, as_json: bool) -> int:
    from statewise.plan.request import plan_study, run_folder_of

    plan = plan_study(request)  # before the slow imports: a mistyped word is answered at once
    cli_models.tell_code(plan.task_code)

    from statewise.progress import run_to_report
    from statewise.report.terminal import CleanConsole, render_terminal

    folder = out or run_folder_of(request, plan.config)
    outcome, summary = run_to_report(plan, folder, workers, CleanConsole(stderr=True))
    if summary is not None and not as_json:
        render_terminal(summary, CleanConsole())
        typer.echo(f"Report: {folder / 'report.html'}")
    if as_json:
        print_json({"folder": str(folder), "failed": outcome.failed, "interrupted": outcome.interrupted})
    if outcome.interrupted:
        typer.echo(f"Interrupted. What is done is kept in {folder}; run the same command to continue.", err=True)
    if outcome.interrupted or (outcome.failed and outcome.done):
        return PARTIAL
    return FAILED if outcome.failed else 0


def _print_plan(request: StudyRequest, workers: int | None, as_json: bool, *, has_cards: bool = False) -> None:
    from dataclasses import asdict

    from statewise.plan.estimate import estimate_plan
    from statewise.plan.materials import check_materials
    from statewise.plan.memory import estimate_memory
    from statewise.plan.request import choose_workers, plan_study
    from statewise.progress import cards_table, plan_table
    from statewise.report.terminal import CleanConsole

    plan = plan_study(request)
    cli_models.tell_code(plan.task_code)
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
    if plan.other_bytes:
        typer.echo(f"Models {', '.join(plan.others)}: {plan.other_bytes / 1e9:.1f} GB to be downloaded.")


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


@app.command(epilog=examples("statewise report runs/pocket"))
def report(
    folder: RunArgument,
) -> None:
    """Print the table of a run folder again, and write its report.html anew."""
    from statewise.report.page import write_report
    from statewise.report.summary_json import read_summary
    from statewise.report.terminal import CleanConsole, render_terminal

    summary, note = read_summary(folder)
    if note:
        typer.echo(f"note: {note}", err=True)
    render_terminal(summary, CleanConsole())
    typer.echo(f"Report: {write_report(summary, folder)}")


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


@app.command(
    name="list",
    epilog=examples("statewise list signals", "statewise list cells --json", "statewise list tasks --all gsm8k"),
)
def list_(
    what: Annotated[str, typer.Argument(help="studies, sources, signals, localities, cells, tasks or distances.")],
    word: Annotated[str | None, typer.Argument(help="Only names that contain it.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="Of tasks, lm-eval's own, groups and tags too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what can be named in a study file; cells: what each source × signal is called, or why it is refused."""
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


@app.command(epilog=examples("statewise pretrain --world-seed 1 -o world-1", "statewise pretrain --check world-1"))
def pretrain(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; it must not exist or be empty.")
    ] = None,
    world_seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the world; default: 0, that of the embedded model.")
    ] = None,
    size: Annotated[str, typer.Option(help="full (about half an hour on one core) or smoke (seconds).")] = "full",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: 1. Other counts give other bytes.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Measure a model that is there; exit code 1: not fit for use.")
    ] = None,
) -> None:
    """Build a pocket model from nothing, and measure whether its world is fit for comparing methods (base.json)."""
    if (out is None) == (check is None):
        raise UsageError("give either --out, the folder to write, or --check, a folder to measure")
    if check is not None and (world_seed, threads) != (None, None):
        raise UsageError("--world-seed and --threads are of a world that is built; --check measures one that is there")
    from dataclasses import replace

    from statewise.pocket.pretrain import SIZES
    from statewise.pocket.pretrain import pretrain as build
    from statewise.storage.output_folder import check_empty

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if out is not None:
        check_empty(out)
        out.mkdir(parents=True, exist_ok=True)  # before half an hour's work, not after it
        build(replace(SIZES[size], world_seed=world_seed or 0, num_threads=threads or 1), out, tell)
    from statewise.pocket.check import ITEMS, check_base

    folder = out or Path(str(check))
    base = check_base(folder, tell, ITEMS[size])
    for one in base["criteria"]:
        mark = "met    " if one["is_met"] else "NOT MET"
        typer.echo(f"{mark}  {one['value']:.3f}  in {one['low']:.2f}–{one['high']:.2f}  {one['statement']}")
    if check is not None and not base["is_met"]:
        raise typer.Exit(FAILED)
    if out is not None:
        typer.echo(
            f"Written: {out}. Use it with: statewise run pocket --world {out} --out runs/world-{world_seed or 0}"
        )


app.registered_commands += [*cli_models.app.registered_commands, *cli_data.app.registered_commands]


def main() -> None:
    """Entry point."""
    answer(app)


if __name__ == "__main__":
    main()
