"""What is printed, without what a terminal would obey: escape sequences, control and direction characters in a name,
a text of a model or an error. The command line puts a `CleanStream` in the place of both of its streams, so that this
holds for whatever prints; rich, whose colours are escape sequences of its own, has its segments cleaned instead.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import IO, Any, TextIO

# ECMA-48: CSI and OSC sequences; what is left of a malformed one loses its control characters below.
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
# Cc control, Cf format (bidirectional overrides, zero width), Cs lone surrogates, Co private use, Cn unassigned,
# Zl and Zp line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str, kept: str = "\n\t") -> str:
    """`text` without escape sequences, control, format and unassigned characters but those in `kept`; spaces stay."""
    if text.translate(dict.fromkeys(map(ord, kept))).isprintable():
        return text
    return "".join(
        character
        if character in kept or unicodedata.category(character) not in _UNPRINTABLE
        else " "
        if character.isspace()
        else ""
        for character in _ESCAPE_SEQUENCE.sub("", text)
    )


class CleanStream:
    """A text stream that prints `printable` text; a progress bar may go back to the start of its line."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write("\r" * text.startswith("\r") + printable(text.removeprefix("\r")))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # by which click would write past this, where a terminal is not UTF-8
            raise AttributeError(name)
        return getattr(self.stream, name)


def plural(count: int, noun: str) -> str:
    """The count with its noun: 1 seed, 3 seeds, 3 hypotheses."""
    many = f"{noun.removesuffix('is')}es" if noun.endswith("is") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def clean_streams() -> None:
    """Let all that this process prints from now on be `printable`, a traceback too."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is not None and not isinstance(stream, CleanStream):  # None: closed
            setattr(sys, name, CleanStream(stream))


def uncleaned(stream: TextIO) -> IO[str]:
    """The stream beneath, for who cleans by itself."""
    return stream.stream if isinstance(stream, CleanStream) else stream
