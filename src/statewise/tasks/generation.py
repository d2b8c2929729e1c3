"""What lm-eval's generation keywords say of an answer: where it ends, and how long it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DEFAULT_MAX_NEW_TOKENS = 256  # lm_eval.defaults.DEFAULT_MAX_GEN_TOKS
MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in lm-eval's priority


def stops_of(generation_kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop strings in lm-eval's generation keywords."""
    until = generation_kwargs.get("until") or []
    return tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)


def max_tokens_of(generation_kwargs: Mapping[str, Any]) -> int:
    """The most new tokens in lm-eval's generation keywords."""
    given = (generation_kwargs[key] for key in MAX_TOKENS_KEYS if generation_kwargs.get(key))
    return int(next(given, DEFAULT_MAX_NEW_TOKENS))


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
    """`text` up to the first of its stop strings."""
    for stop in stop_strings:
        text = text.split(stop)[0]
    return text
