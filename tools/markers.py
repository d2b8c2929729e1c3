"""Generated parts of a page: what stands between two marks is written by a command, the rest by hand."""

from __future__ import annotations

from pathlib import Path


def between(path: Path, start: str, end: str, text: str) -> tuple[str, str]:
    """The page as it is, and as it is with `text` between the lines `start` and `end`.

    Raises:
        SystemExit: the page has not one of each, in this order.
    """
    before = path.read_text(encoding="utf-8")
    if before.count(start) != 1 or end not in before.partition(start)[2]:
        raise SystemExit(f"{path}: must hold {start.strip()!r} once, and {end.strip()!r} below it")
    head, _, rest = before.partition(start)
    return before, head + start + text + end + rest.partition(end)[2]
