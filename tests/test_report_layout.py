"""How a table is set: one block, no wider than the terminal, no number cut off, and what is left out is said."""

from __future__ import annotations

import io
import re

import pytest
from report_fixture import fake_design, fake_study
from rich.console import Console

from statewise.report import tables
from statewise.report.layout import NARROW, WIDE, cell_lines, set_table, turned, wrapped
from statewise.report.screen import outcome_table
from statewise.report.tables import Cell, Row, Table
from statewise.report.terminal import print_table

STUDY, DESIGN = fake_study(), fake_design()
TABLES = {
    "scores": tables.score_table(STUDY), "differences": tables.base_table(STUDY), "drift": tables.drift_table(STUDY),
    "teacher": tables.teacher_table(STUDY), "budgets": tables.budget_table(STUDY), "outcome": outcome_table(STUDY),
    "52 runs": tables.score_table(DESIGN), "effects": tables.effect_table(DESIGN),
    "cells": tables.cross_tables(DESIGN)[0], "outcome of 52": outcome_table(DESIGN),
}  # fmt: skip


def wide_table(num_columns, num_rows=2, num_needed=0):
    """Of numbers that tell where they stand: row 3, column 4 is 3.004."""
    rows = [
        Row(f"run {row}", tuple(Cell(f"{row}.{column:03}", "[−.500, +.500]") for column in range(num_columns)))
        for row in range(num_rows)
    ]
    return Table(
        "Title", "Caption.", tuple(f"task_{n} greedy" for n in range(num_columns)), tuple(rows), "run", num_needed
    )


def printed(table, width):
    stream = io.StringIO()
    print_table(Console(file=stream, width=width), table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_table_is_one_block_no_wider_than_the_terminal(table, width):
    text = printed(table, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert sum(set(line) == {"─"} for line in text.splitlines()) == 1  # a stacked block has a rule of its own
    setting = set_table(table, width)
    pieces = text.split()
    for row in setting.table.rows:
        for cell in row.cells[: len(setting.widths)]:
            for line, _ in cell_lines(cell, setting.layout):
                assert all(piece in pieces for piece in line.split())
    assert ("Left out: " in text) == (setting.num_left_out > 0)


@pytest.mark.parametrize("num_needed", [0, 4])
def test_what_is_left_out_is_counted_and_is_there_at_the_width_that_is_told(num_needed):
    table = wide_table(20, num_rows=20, num_needed=num_needed)
    text = printed(table, 80)
    left, total, width = map(
        int, re.search(r"Left out: (\d+) of (\d+) columns; a terminal of width (\d+)", text).groups()
    )
    assert total == 20
    assert len(re.findall(r"\b0\.0\d\d\b", text)) == 20 - left  # the first row, a number a column
    assert "Left out" not in printed(table, width)
    assert "Left out" in printed(table, width - 1)


def test_a_table_of_few_rows_and_many_columns_is_turned():
    table = wide_table(12)
    setting = set_table(table, 60)
    assert setting.table == turned(table)
    assert [row.label for row in setting.table.rows] == list(table.headings)
    assert setting.table.headings == ("run 0", "run 1")
    assert setting.table.rows[4].cells == (table.rows[0].cells[4], table.rows[1].cells[4])
    assert "Left out" not in printed(table, 60)


def test_a_note_under_a_label_stays_when_the_table_is_turned():
    table = Table("", "", ("a",), (Row("rl", (Cell("1"),), "diverged"), Row("sft", (Cell("2"),))))
    assert turned(table).headings == ("rl, diverged", "sft")


def test_columns_that_are_needed_come_first_and_the_others_as_there_is_room():
    table = wide_table(9, num_needed=4)
    assert [len(set_table(table, width).widths) for width in (80, 100)] == [4, 5]
    assert set_table(table, 80).layout == WIDE
    assert len(set_table(table, 45).widths) == 5
    assert set_table(table, 45).layout == NARROW


def test_a_narrow_cell_breaks_between_numbers_and_nowhere_else():
    cell = Cell("97,369 / 2.66 × 10¹¹", "[−.010, +.034]", "n.r.", "p .012")
    assert [line for line, _ in cell_lines(cell, NARROW)] == [
        "97,369 /", "2.66 ×", "10¹¹", "n.r.", "[−.010,", "+.034]", "p .012",
    ]  # fmt: skip
    assert [line for line, _ in cell_lines(cell, WIDE)] == ["97,369 / 2.66 × 10¹¹ n.r.", "[−.010, +.034]", "p .012"]


def test_a_label_breaks_at_spaces_hyphens_and_underscores():
    assert wrapped("pocket_math strict-match", 12) == "pocket_math\nstrict-match"
    assert wrapped("pocket_math strict-match", 8) == "pocket_\nmath\nstrict-\nmatch"
    assert wrapped("unbreakable", 4) == "unbreakable"


def test_a_table_without_rows_or_columns_prints():
    assert "Title" in printed(Table("Title", "Caption.", (), ()), 80)
    assert "base" in printed(Table("Title", "Caption.", (), (Row("base", ()),)), 80)
