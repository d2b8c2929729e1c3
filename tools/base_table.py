"""Write the measured criterion of the pocket worlds into docs/pocket.md, from their base.json.

    uv run python tools/base_table.py [--check]

The embedded world's stands beside its model, those of other seeds in docs/results/worlds/. `--check` writes nothing and
fails where the page is not what the files say.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from markers import between

from statewise.assets import POCKET_MODEL
from statewise.storage import records

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pocket.md"
START, END = "<!-- base: uv run python tools/base_table.py -->\n", "<!-- /base -->"


def main() -> None:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_checked = parser.parse_args().check
    paths = [POCKET_MODEL / "base.json", *sorted((ROOT / "docs" / "results" / "worlds").glob("*.json"))]
    before, after = between(PAGE, START, END, table([records.read_json(path) for path in paths]))
    if is_checked and before != after:
        raise SystemExit(f"{PAGE}: its table is not that of the files; run tools/base_table.py")
    if not is_checked:
        PAGE.write_text(after, encoding="utf-8")


def table(bases: list[dict[str, Any]]) -> str:
    """The criterion, world by world, and what was measured beside it."""
    lines = [
        _row(["", "must be", *(f"world {base['world_seed']}" for base in bases)]),
        _row(["---"] * (2 + len(bases))),
    ]
    for index, one in enumerate(bases[0]["criteria"]):
        values = [base["criteria"][index] for base in bases]
        cells = [_rate(value["value"]) + ("" if value["is_met"] else " **not met**") for value in values]
        lines.append(_row([one["statement"], f"{_rate(one['low'], 2)}–{_rate(one['high'], 2)}", *cells]))
    lines += ["", "What is behind it, with exact 95 % intervals:", ""]
    lines += [_row(["", *(f"world {base['world_seed']}" for base in bases)]), _row(["---"] * (1 + len(bases)))]
    for name in bases[0]["values"]:
        lines.append(_row([name, *(_share(base["values"][name]) for base in bases)]))
    for name in bases[0]["quartiles"]:
        cells = [" / ".join(_rate(one["value"]) for one in base["quartiles"][name]) for base in bases]
        lines.append(_row([f"{name}, quarters from the best known", *cells]))
    for operation in bases[0]["operations"]:
        found = [_operation(base, operation["operation"]) for base in bases]
        lines.append(_row([f"{operation['operation']}, and how many of 20,000 documents hold it", *found]))
    return "\n".join(lines) + "\n"


def _operation(base: dict[str, Any], name: str) -> str:
    (one,) = (one for one in base["operations"] if one["operation"] == name)
    return (f"{_rate(one['share']['value'])} of {one['share']['num_items']}" if one["share"] else "–") + (
        f"; {one['num_documents']}"
    )


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(share: dict[str, Any]) -> str:
    return f"{_rate(share['value'])} [{_rate(share['low'])}, {_rate(share['high'])}], n = {share['num_items']}"


def _rate(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


if __name__ == "__main__":
    main()
