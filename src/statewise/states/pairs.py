"""Given preferences as a file: one JSON object a line, with the index of a training document and two answers to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from statewise.errors import UsageError
from statewise.storage.rows import Row, read_rows


@dataclass(frozen=True)
class GivenPair:
    """Line `line` of a file: to training document `index` the text `chosen` is preferred to `rejected`."""

    line: int
    index: int
    chosen: str
    rejected: str


def read_pairs(path: Path) -> tuple[GivenPair, ...]:
    """The preferences of a file; blank lines are passed over.

    Raises:
        UsageError: no such file, not text, no pairs, or a line that is no pair of two different texts.
    """
    try:
        rows = read_rows(path)
    except UsageError as error:
        raise UsageError(f"source.pairs: {error}") from None
    return tuple(_pair_of(row) for row in rows)


def _pair_of(row: Row) -> GivenPair:
    missing = [key for key in ("index", "chosen", "rejected") if key not in row.values]
    if missing:
        raise _not_a_pair(row, f"{', '.join(missing)} is missing")
    index, chosen, rejected = row.values["index"], row.values["chosen"], row.values["rejected"]
    if not isinstance(index, int) or isinstance(index, bool):
        raise _not_a_pair(row, f"index is {index!r}")
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str) or not text:
            raise _not_a_pair(row, f"{key} is {text!r}")
    if chosen == rejected:
        raise _not_a_pair(row, "both texts are the same")
    return GivenPair(row.number, index, chosen, rejected)


def _not_a_pair(row: Row, found: str) -> UsageError:
    return UsageError(
        f'{row.place}: expected {{"index": a training document, "chosen": text, "rejected": another text}}, but {found}'
    )
