"""How far the policy may move: learning rate, clip, adapter, and the terms that tie it to where it started.

The terms are KL to base, EWC, (A-)GEM and an average of the weights. One term a file; adding one is one entry here. A
term is a frozen dataclass: its fields are its configuration, and reading them needs no torch (`adapter` does, and is
therefore not imported here).
"""

from typing import ClassVar, Protocol

from statewise.locality.ema import EMA
from statewise.locality.ewc import EWC
from statewise.locality.gem import AGEM, GEM
from statewise.locality.kl_to_base import KLToBase


class Locality(Protocol):
    """A term that holds the policy near where it started.

    `needs_base`: base is scored at the training states. `needs_memory`: base writes on prompts of the retention tasks
    before the first update.
    """

    kind: ClassVar[str]
    needs_base: ClassVar[bool]
    needs_memory: ClassVar[bool]


# The kinds with `needs_memory`, which all have `num_prompts`.
Remembering = EWC | GEM | AGEM

LOCALITIES: dict[str, type[Locality]] = {
    "kl_to_base": KLToBase,
    "ewc": EWC,
    "gem": GEM,
    "a_gem": AGEM,
    "ema": EMA,
}

__all__ = ["LOCALITIES", "Locality", "Remembering"]
