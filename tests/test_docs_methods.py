"""The documents say of every cell, field and locality what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import cells_table
import pytest

import statewise
from statewise.config.study import BudgetSection, UpdateSection
from statewise.locality import LOCALITIES
from statewise.plan.cells import matrix
from statewise.signals import SIGNALS
from statewise.states import SOURCES
from statewise.states.ramp import Ramp

DOCS = Path(statewise.__file__).parents[2] / "docs"
# Of a table of methods.md: states, signal, name, source, differs.
CELL_COLUMNS = 5


def table_rows(page: Path = DOCS / "methods.md") -> list[list[str]]:
    """The cells of every table row of a page; an escaped bar does not part a cell."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| ")]


def documented_names(page: Path = DOCS / "methods.md") -> dict[tuple[str, str], str]:
    """(source column, signal) → name, of the tables that have a cell of the matrix a row."""
    columns = {cell["source"] for cell in matrix()}
    names = {}
    for row in table_rows(page):
        if len(row) == CELL_COLUMNS and row[0].strip("`") in columns:
            for signal in re.findall(r"`([^`]+)`", row[1]):
                assert (row[0].strip("`"), signal) not in names, f"{row[0]} × {signal} has two rows"
                names[row[0].strip("`"), signal] = row[2]
    return names


def test_the_methods_name_every_cell_as_the_code_does():
    assert documented_names() == {(cell["source"], cell["signal"]): cell["name"] for cell in matrix()}


def test_the_tables_of_cells_are_those_that_the_tool_writes(tmp_path):
    page = tmp_path / "methods.md"
    page.write_bytes((DOCS / "methods.md").read_bytes())
    cells_table.main([str(page)])
    assert page.read_bytes() == (DOCS / "methods.md").read_bytes()
    # A name that somebody changed by hand is that of the kind again, and a row that is gone is back, without its prose.
    first = next(line for line in page.read_text().splitlines() if line.startswith("| `dataset` | `expert` |"))
    page.write_text(page.read_text().replace("| SFT |", "| other |").replace(first + "\n", ""))
    cells_table.main([str(page)])
    assert documented_names(page) == documented_names()
    assert "| `dataset` | `expert` | hard-label KD (teacher's arg-max) | – | – |" in page.read_text()


def fields_row(kind: str, what: str) -> str:
    """The row of the table of fields that belongs to a component."""
    found = [row[1] for row in table_rows() if re.match(rf"{what}s? ", row[0]) and f"`{kind}`" in row[0]]
    assert found, f"docs/methods.md has no fields for {what} {kind!r}"
    return found[0]


@pytest.mark.parametrize(
    ("what", "kind", "component"),
    [
        (what, kind, component)
        for what, registry in (("source", SOURCES), ("signal", SIGNALS), ("locality", LOCALITIES))
        for kind, component in registry.items()
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_methods_explain_every_field_of_a_component(what, kind, component):
    names = [name for name in component.model_fields if name != "kind"]
    text = fields_row(kind, what)
    missing = [name for name in names if f"`{name}`" not in text]
    assert not missing, f"docs/methods.md does not explain {what} {kind!r}: {missing}"


def test_the_methods_explain_every_key_of_an_update_and_of_a_ramp():
    rows = {row[0]: row[1] for row in table_rows() if len(row) > 1}
    assert all(f"`{name}`" in rows["`update`"] for name in UpdateSection.model_fields)
    assert all(name in rows["`update`"] for name in BudgetSection.model_fields)
    assert all(f"`{name}`" in rows["a ramp"] for name in Ramp.model_fields)


def test_every_built_in_study_is_described():
    text = (DOCS / "studies.md").read_text(encoding="utf-8")
    studies = [path.stem for path in sorted((Path(statewise.__file__).parent / "assets/studies").glob("*.toml"))]
    assert studies
    assert [name for name in studies if f"`{name}`" not in text] == []
