"""Write the tables of docs/methods.md that name every cell: source × signal, as the kinds themselves say.

    uv run python tools/cells_table.py [PAGE]

Cells and names come from the kinds, those of other packages that are installed included. Where a name comes from and
how the cell differs is prose of the page, and is kept; a cell that is new gets "–" there, and a signal that is new a
table of its own below the others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from statewise.plan.cells import matrix

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = "| states | signal | name in the literature | source | differs |\n|---|---|---|---|---|\n"
TABLE = re.compile(re.escape(HEAD) + r"((?:\|.*\n)*)")
NOTHING = ("–", "–")
Prose = dict[tuple[str, str], tuple[str, str]]


def rows_of(table: str) -> list[list[str]]:
    """The cells of each row; an escaped bar does not part two."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]


def names_in(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def write_table(signals: Iterable[str], prose: Prose) -> str:
    """One row a source, or several where the literature has other names for some of the signals."""
    wanted, lines = list(signals), []
    cells = [cell for cell in matrix() if cell["signal"] in wanted]
    for source in dict.fromkeys(cell["source"] for cell in cells):
        named = [(cell["name"], cell["signal"]) for cell in cells if cell["source"] == source]
        for name, group in groupby(named, key=lambda one: one[0]):
            together = [signal for _, signal in group]
            told = prose.get((source, together[0]), NOTHING)
            lines.append(
                f"| `{source}` | {', '.join(f'`{one}`' for one in together)} | {name} | {' | '.join(told)} |\n"
            )
    return HEAD + "".join(lines)


def rewrite(page: str) -> str:
    """The page with all of its tables of cells written anew."""
    prose: Prose = {}
    told = set[str]()
    for table in TABLE.findall(page):
        for states, signals, _, source, differs in rows_of(table):
            told |= set(names_in(signals))
            prose |= {(names_in(states)[0], signal): (source, differs) for signal in names_in(signals)}

    def anew(match: re.Match[str]) -> str:
        signals = dict.fromkeys(name for row in rows_of(match[1]) for name in names_in(row[1]))
        return write_table(signals, prose)

    page = TABLE.sub(anew, page)
    new = [signal for signal in dict.fromkeys(cell["signal"] for cell in matrix()) if signal not in told]
    end = list(TABLE.finditer(page))[-1].end()
    return page[:end] + "".join(f"\n### `{one}`\n\n{write_table([one], prose)}" for one in new) + page[end:]


def main(arguments: list[str]) -> None:
    """Rewrite the page."""
    page = Path(arguments[0]) if arguments else PAGE
    page.write_text(rewrite(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
