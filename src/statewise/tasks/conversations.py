"""Conversations in a column of rows: lists of turns, `{"role": …, "content": …}`, as chat models are trained on.

An answer is an assistant's turn; its state is the turns before it, which a chat template renders. The plain form
(`plain_text`) is what rewards, records and reports show of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from statewise.errors import UsageError
from statewise.storage.rows import Row

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
KEYS = ("role", "content")
THOUGHT_END = "</think>"  # templates leave out what an earlier turn thought, up to here

Turn = dict[str, str]
Turns = Literal["last", "all"]


def turns_of(row: Row, column: str, told: str = "") -> list[Turn]:
    """The turns in a column of a row, each with a role and a text.

    Raises:
        UsageError: no list of turns, or a turn that is not a text of `ROLES`; `told` says whose column it is.
    """
    value = row.values.get(column)
    what = f"{row.place}: column {column!r}{told}"
    if value is None:
        raise UsageError(
            f"{row.place}: no value in column {column!r}{told}; its columns are {', '.join(map(repr, row.values))}"
        )
    if not isinstance(value, list):
        raise UsageError(f"{what} is no list of turns, but {type(value).__name__}; {_EXPECTED}")
    if not value:
        raise UsageError(f"{what} is empty")
    for number, turn in enumerate(value, start=1):
        if problem := _problem_of(turn):
            raise UsageError(f"{what}, turn {number}: {problem}")
    turns = [{key: turn[key] for key in KEYS} for turn in value]
    for number, (turn, before) in enumerate(zip(turns[1:], turns, strict=False), start=2):
        if turn["role"] == before["role"] == ASSISTANT:
            raise UsageError(f"{what}, turn {number}: follows another turn of the assistant; join the two")
    return turns


_EXPECTED = 'expected [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'


def _problem_of(turn: Any) -> str:
    """Why one turn cannot be used; "" if it can. Parquet gives every turn the keys of all, with no value."""
    if not isinstance(turn, dict) or any(turn.get(key) is None for key in KEYS):
        return f"has no role and content; {_EXPECTED}"
    if unknown := [key for key, value in turn.items() if key not in KEYS and value is not None]:
        return f"has {unknown[0]!r}, which is not rendered; leave the conversation or the key out"
    if turn["role"] not in ROLES:
        return f"role {turn['role']!r} is unknown; expected {', '.join(ROLES)}"
    if not isinstance(turn["content"], str):
        kind = "a list of parts (images, audio?)" if isinstance(turn["content"], list) else type(turn["content"])
        return f"content is no text, but {kind if isinstance(kind, str) else kind.__name__}"
    return "" if turn["content"].strip() else f"content of the {turn['role']} is empty"


def answers_of(
    turns: Sequence[Turn], place: str, which: Turns = "last", *, has_answer: bool = True
) -> list[tuple[list[Turn], str]]:
    """The examples of a conversation: the turns before an answer, and the answer.

    Args:
        turns: of the conversation.
        place: where it lies, for the error.
        which: "last", or "all" turns of the assistant that a user's turn comes before.
        has_answer: the last turn is an answer; False: all turns are asked, and the one answer is "".

    Raises:
        UsageError: the last turn is not the assistant's (the user's, without an answer), or no user's comes before it.
    """
    expected = ASSISTANT if has_answer else USER
    if (last := turns[-1]["role"]) != expected:
        raise UsageError(f"{place}: the last turn is of the {last}; {_END[has_answer]}")
    if not has_answer:
        return [([*turns], "")]
    roles = [turn["role"] for turn in turns]
    starts = [index for index, role in enumerate(roles) if role == ASSISTANT and USER in roles[:index]]
    if not starts:
        raise UsageError(f"{place}: no turn of the user comes before the answer")
    return [([*turns[:start]], turns[start]["content"]) for start in (starts if which == "all" else starts[-1:])]


_END = {
    True: 'end the conversation with an answer of the assistant, or set completion = "" where no answer is needed',
    False: 'with completion = "" it is what is asked, and ends with the user',
}


def first_asked(turns: Sequence[Turn]) -> str:
    """The first turn of the user, by which conversations are shared out: those that begin alike stay together."""
    return next(turn["content"] for turn in turns if turn["role"] == USER)


def plain_text(turns: Sequence[Turn]) -> str:
    """A single turn of the user as it stands; several with their roles, a blank line between them."""
    if is_plain(turns):
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def is_plain(turns: Sequence[Turn]) -> bool:
    """Whether the turns are a prompt like any other, which needs no chat template."""
    return [turn["role"] for turn in turns] == [USER]


def left_out_by(turns: Sequence[Turn], rendered: str) -> Turn | None:
    """A turn whose text a chat template did not write; None where it wrote all, save what an assistant thought."""
    texts = [turn["content"].rpartition(THOUGHT_END)[2].strip() for turn in turns]
    for turn, text in zip(turns, texts, strict=True):
        if text and rendered.count(text) < sum(one.count(text) for one in texts):  # it may stand in other turns, too
            return turn
    return None
