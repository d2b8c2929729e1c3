"""Text of TOML and JSON into values, with a bound on how deep they lie: what is nested without end is refused, not
descended into, here and wherever the values are used. What is wrong is the format's own error, with its place.
"""

from __future__ import annotations

import json
import tomllib
from typing import Any

MAX_DEPTH = 50  # a study file needs 8, a model's configuration 6


def parse_toml(text: str) -> dict[str, Any]:
    """The table in a TOML text.

    Raises:
        tomllib.TOMLDecodeError: not TOML, a number of thousands of digits, or nested too deeply.
    """
    try:
        value = tomllib.loads(text)
        check_depth(value)
    except tomllib.TOMLDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise tomllib.TOMLDecodeError(_told(error)) from None
    return value


def parse_json(text: str) -> Any:
    """The value in a JSON text.

    Raises:
        json.JSONDecodeError: not JSON, a number of thousands of digits, or nested too deeply.
    """
    try:
        value = json.loads(text)
        check_depth(value)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise json.JSONDecodeError(_told(error), text, 0) from None
    return value


def check_depth(value: Any) -> None:
    """Refuse tables and lists that lie more than MAX_DEPTH deep.

    Raises:
        ValueError: they do.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        holders = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        if not holders:
            return
        level = [inner for holder in holders for inner in holder]
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _told(error: Exception) -> str:
    return f"nested more than {MAX_DEPTH} deep" if isinstance(error, RecursionError) else str(error)
