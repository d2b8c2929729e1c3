"""Given preferences as a file: one JSON object a line, with the index of a training document and two answers to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statewise.errors import UsageError


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
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path}: cannot read the pairs ({reason}); give source.pairs a JSONL file") from None
    pairs = tuple(_read_pair(path, number, line) for number, line in enumerate(lines, start=1) if line.strip())
    if not pairs:
        raise UsageError(f"{path}: holds no pairs; give source.pairs a JSONL file with one a line")
    return pairs


def _read_pair(path: Path, number: int, line: str) -> GivenPair:
    try:
        pair: Any = json.loads(line)
    except ValueError as error:
        raise _not_a_pair(path, number, f"this is no JSON ({error})") from None
    missing = [key for key in ("index", "chosen", "rejected") if not isinstance(pair, dict) or key not in pair]
    if missing:
        raise _not_a_pair(path, number, f"{', '.join(missing)} is missing")
    index, chosen, rejected = pair["index"], pair["chosen"], pair["rejected"]
    if not isinstance(index, int) or isinstance(index, bool):
        raise _not_a_pair(path, number, f"index is {index!r}")
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str) or not text:
            raise _not_a_pair(path, number, f"{key} is {text!r}")
    if chosen == rejected:
        raise _not_a_pair(path, number, "both texts are the same")
    return GivenPair(number, index, chosen, rejected)


def _not_a_pair(path: Path, number: int, found: str) -> UsageError:
    return UsageError(
        f'{path}:{number}: expected {{"index": a training document, "chosen": text, "rejected": another text}}, but '
        f"{found}"
    )
