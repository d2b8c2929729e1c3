"""The command that builds a pocket model, or measures one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from statewise.cli.options import examples
from statewise.console.entry import FAILED
from statewise.errors import UsageError, unknown

app = typer.Typer()


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
