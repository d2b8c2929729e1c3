"""Post-training of language models in which the states you train on are a knob of their own.

What `import statewise as sw` offers is in `api`; it is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False  # of typing, whose import would take longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from statewise.api import (
        Study,
        compare,
        drift,
        evaluate,
        register_locality,
        register_signal,
        register_source,
        register_tracker,
    )
    from statewise.errors import DamagedError, FailedRunError, StatewiseError, UsageError
    from statewise.frames import Arm, Comparison, Evaluation, Run

    __version__: str

__all__ = [
    "Arm",
    "Comparison",
    "DamagedError",
    "Evaluation",
    "FailedRunError",
    "Run",
    "StatewiseError",
    "Study",
    "UsageError",
    "__version__",
    "compare",
    "drift",
    "evaluate",
    "register_locality",
    "register_signal",
    "register_source",
    "register_tracker",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("statewise")
    if name not in __all__:
        raise AttributeError(f"module 'statewise' has no attribute {name!r}")
    if name == "drift":
        return import_module("statewise.drift")
    return getattr(import_module("statewise.errors" if name.endswith("Error") else "statewise.api"), name)


def __dir__() -> list[str]:
    return __all__


class _Drift(ModuleType):
    """The room `statewise.drift`, which called is `api.drift`: a package has one attribute of a name."""

    def __call__(self, a: Any, b: Any) -> Any:
        return import_module("statewise.api").drift(a, b)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "drift":  # the room was imported, by whomever
            value.__class__ = _Drift
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
