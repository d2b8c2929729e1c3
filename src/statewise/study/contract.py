"""What a study promises and a plan must keep: arms differ in declared factors only, claims measure what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statewise.config import StudyConfig
from statewise.errors import UsageError, unknown


def check_factors(arms: Mapping[str, Mapping[str, Any]], factors: list[str], where: str) -> None:
    """Refuse arms that differ in a key that is not a declared factor or below one.

    Args:
        arms: resolved tables by name, with the defaults of source and signal written out, so that only a difference in
            what is done counts as one.
        factors: `study.factors`, dotted keys.
        where: the study file, for the error.

    Raises:
        UsageError: names every undeclared key in which arms differ.
    """
    leaves = [_leaves(arm) for arm in arms.values()]
    keys = sorted({key for leaf in leaves for key in leaf})
    differing = [key for key in keys if len({repr(leaf.get(key)) for leaf in leaves}) > 1]
    undeclared = [key for key in differing if not any(key == f or key.startswith(f"{f}.") for f in factors)]
    if undeclared:
        raise UsageError(
            f"{where}: arms differ in {', '.join(undeclared)}, which study.factors does not declare; "
            "set them in [shared], or add them to study.factors so that the report says so"
        )


def check_measures(config: StudyConfig, where: str) -> None:
    """Refuse a claim about something that the study does not measure; call it when the tasks are known to exist.

    Raises:
        UsageError: names the claim and the nearest measure.
    """
    target, retention = config.shared.target, config.shared.retention
    measures = [target, f"{target}:greedy", f"{target}:sampled", *retention, *(["forgetting"] if retention else [])]
    for phenomenon in config.phenomena:
        if phenomenon.measure not in measures:
            raise unknown("measure", phenomenon.measure, measures, f"{where}: [[phenomena]] {phenomenon.name!r}")


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
