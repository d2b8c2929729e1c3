"""Text that comes from data (names, recipes, notes) made safe to print.

A terminal obeys escape sequences and bidirectional overrides, and a page can be made to read otherwise than it is
written; so every string that a report takes from a summary goes through `clean`. Markup is escaped where it is written:
by jinja2's autoescape in the page, by `rich.text.Text` in the terminal.
"""

from __future__ import annotations

import re

from statewise.console.printing import printable

_SPACES = re.compile(" {2,}")  # no-break spaces stay
_UNBREAKABLE = re.compile(r"\[[^][]*\]|\bn = ?|\b[\d.]+ %")
_SUPERSCRIPT = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_ASCII = str.maketrans(
    {"−": "-", "–": "-", "…": "...", "×": "x", "·": "|", "≤": "<=", "≥": ">=", "●": "*", "○": "o", "◐": "~"}
    | {"“": '"', "”": '"', "η": "eta", "ω": "omega"}
)


def clean(text: str) -> str:
    """`text` on one line, without escape sequences, control, format and unassigned characters."""
    return _SPACES.sub(" ", printable(text, kept="")).strip(" ")


def to_ascii(text: str) -> str:
    """`text` for a terminal that shows ASCII only; characters without a replacement become "?"."""
    with_powers = _SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPT_DIGITS), text)
    return with_powers.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def keep_together(text: str) -> str:
    """`text` with no-break spaces inside intervals and after "n =", for running text."""
    return _UNBREAKABLE.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
