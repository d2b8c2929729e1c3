"""Where the keys of a study stand: file and line, level of the grid, or the override that set them; for errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statewise.config.grid import held_depth, origin
from statewise.config.overrides import split_key
from statewise.errors import UsageError

Table = dict[str, Any]
COMMAND = "--set"  # begins what an override of the command line is called
OLD_NAMES = {"phenomena": "hypotheses"}  # sections of a study file, and of a summary, as they were called before


@dataclass(frozen=True)
class Location:
    """Where a study was read from.

    `raw`: the study as parsed and overridden, before its grid is expanded. `overrides`: keys and how the override that
    set them is called, in the order in which they were applied.
    """

    path: Path
    text: str = ""
    raw: Table = field(default_factory=dict)
    overrides: tuple[tuple[tuple[str, ...], str], ...] = ()

    def of(self, keys: Iterable[str | int]) -> str:
        """`file:line` of the deepest key of the dotted path `keys` that the text holds, or the override that set it.

        A key of an arm may stand in `[shared]` or, for an arm of the grid, in a level, which is then named; `file`
        alone where the text holds none of the keys.
        """
        wanted, level = self._owner([str(key) for key in keys])
        if set_last := self._set_last(wanted):
            return set_last
        depth, line = self._deepest(wanted)
        below = [called for set_keys, called in self.overrides if [*set_keys[: len(wanted)]] == wanted]
        if below and depth < len(wanted):
            return below[-1]
        return f"{self.path}:{line}{level}" if line else str(self.path)

    def folder_of(self, *keys: str) -> Path:
        """The folder that a path at `keys` is relative to: the study file's, or the working directory for `--set`."""
        return Path.cwd() if self._set_last([*keys]).startswith(COMMAND) else self.path.parent

    def _set_last(self, wanted: list[str]) -> str:
        """How the override is called that set the key `wanted` last; "" where none did."""
        called = [called for keys, called in self.overrides if wanted[: len(keys)] == [*keys]]
        return called[-1] if called else ""

    @contextmanager
    def naming(self, *keys: str) -> Iterator[None]:
        """Put the location of the table at `keys`, or of its key that an error is about, before every usage error."""
        try:
            yield
        except UsageError as error:
            raise UsageError(f"{self.of([*keys, *error.keys])}: {error}") from None

    def _owner(self, wanted: list[str]) -> tuple[list[str], str]:
        """The keys under which the file holds the key `wanted` of an arm, and how the level of a grid is named."""
        if wanted[:1] != ["arms"] or len(wanted) < 2:
            return wanted, ""
        name, rest = wanted[1], wanted[2:]
        owner, named, depth = wanted, "", held_depth(self.raw.get("arms"), [name, *rest]) - 1
        if level := origin(self.raw, wanted):
            owner, depth = level.keys, level.depth
            named = f" (level {level.keys[3]!r} of axis {level.keys[2]!r})"
        if held_depth(self.raw.get("shared"), rest) > max(depth, 0):
            return ["shared", *rest], ""
        return owner, named

    def _deepest(self, wanted: list[str]) -> tuple[int, int]:
        """How many of the keys `wanted` the text holds at most, and the line where; 0 and 0 for none."""
        best, best_line, section, counts = (0, False), 0, list[str](), dict[str, int]()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[(\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$", line):
                section = split_key(header[2])
                section[0] = OLD_NAMES.get(section[0], section[0])
                if header[1]:  # one of a list of tables
                    counts[header[2]] = counts.get(header[2], -1) + 1
                    section.append(str(counts[header[2]]))
                here = section
            elif key := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
                here = section + split_key(key[1])
            else:
                continue
            # An inline table holds the keys below `here` on the same line; a header, those above it.
            shorter = min(len(here), len(wanted))
            found = (shorter if wanted[:shorter] == here[:shorter] else 0, len(here) == shorter)
            if found[0] and found > best:
                best, best_line = found, number
        return best[0], best_line
