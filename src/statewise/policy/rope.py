"""Rotary positions: which kinds are understood, and up to which length a text has one law.

With most kinds a token's angle is a function of its place. With some it depends on the length of the whole text too:
one token more then changes the law of every earlier state, so that what was sampled there is not what is scored.
"""

from __future__ import annotations

from typing import Any

STEADY = {"default", "linear", "yarn", "llama3", "proportional"}
SWITCHING = {"longrope", "dynamic"}


def rope_kinds(config: Any) -> set[str]:
    """The kinds of rope, by transformers' names, that a text configuration asks for; empty for other positions."""
    return {str(rope.get("rope_type", "default")) for rope in _ropes(config)}


def context_length(config: Any) -> int:
    """Tokens of the longest text that has one law from start to end: the context, or less where rope switches in it."""
    # "dynamic" switches at `max_position_embeddings` itself, whatever else is named.
    switches = [
        int(rope["original_max_position_embeddings"]) for rope in _ropes(config) if rope.get("rope_type") == "longrope"
    ]
    return min([int(config.max_position_embeddings), *switches])


def _ropes(config: Any) -> list[dict[str, Any]]:
    """One a model, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    several = [value for value in parameters.values() if isinstance(value, dict)]
    return several or ([parameters] if parameters else [])
