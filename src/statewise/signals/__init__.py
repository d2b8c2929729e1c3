"""What information is given at a state: the signals S(s). One signal a file; adding one is one entry here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from statewise.component import component
from statewise.errors import UsageError
from statewise.signals.continuation import Continuation
from statewise.signals.divergence import JSD, ForwardKL, ReverseKL
from statewise.signals.expert import Expert
from statewise.signals.imitate import Imitate
from statewise.signals.preference import Preference
from statewise.signals.reward import Reward
from statewise.signals.signal import Signal, Supervision, WeightedSignal

SIGNALS: dict[str, type[Signal]] = {
    "imitate": Imitate,
    "continuation": Continuation,
    "expert": Expert,
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": JSD,
    "reward": Reward,
    "preference": Preference,
}

__all__ = ["SIGNALS", "Signal", "Supervision", "WeightedSignal", "read_signals"]


@dataclass(frozen=True)
class _Weight:
    weight: Annotated[float, Field(gt=0)] = 1.0


def read_signals(tables: dict[str, Any] | list[dict[str, Any]], where: str) -> tuple[WeightedSignal, ...]:
    """The signals that an arm sums: a table, or a list of tables with a `weight` each (1 where there is none).

    Raises:
        UsageError: no signal, no or unknown kind, unknown key, or a value of the wrong type or range.
    """
    if not tables:
        raise UsageError(f"{where}: no signal; give one, e.g. signal = {{ kind = 'imitate' }}")
    return tuple(_read(table, where) for table in (tables if isinstance(tables, list) else [tables]))


def _read(table: dict[str, Any], where: str) -> WeightedSignal:
    rest = {key: value for key, value in table.items() if key != "weight"}
    given = {"weight": table["weight"]} if "weight" in table else {}
    weighted = component({"signal": _Weight}, {"kind": "signal", **given}, "weight of a", where)
    return WeightedSignal(component(SIGNALS, rest, "signal", where), weighted.weight)
