"""Where the numbers of a run can be shown beside its folder: one file a tracker, told by what the folder says.

The files of the run folder are the truth. A tracker reads them from a process of its own, changes no byte of them, and
stops no run: one that fails is told, and the same command sends what it does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from statewise.errors import UsageError, unknown
from statewise.registry import Registry
from statewise.trackers.tracker import TrackedRun, Tracker

__all__ = ["TRACKERS", "TrackedRun", "Tracker", "trackers_named"]

BUILT_IN = {"mlflow": "MLflow", "tensorboard": "TensorBoard", "trackio": "Trackio", "wandb": "Wandb"}


class _Trackers(Registry[type[Tracker]]):
    def _check(self, name: str, thing: Any) -> type[Tracker]:
        if not (isinstance(thing, type) and issubclass(thing, Tracker)):
            raise UsageError(f"tracker {name!r}: is no class of a tracker; derive it from the base class of that name")
        if missing := sorted(thing.__abstractmethods__):
            raise UsageError(f"tracker {name!r}: does not say {', '.join(missing)}; the base class tells what each is")
        return thing

    def put(self, name: str, thing: type[Tracker]) -> None:
        super().put(name, self._check(name, thing))


TRACKERS = _Trackers("tracker", "statewise.trackers")
for _name, _class in BUILT_IN.items():
    TRACKERS.put_later(_name, f"statewise.trackers.{_name}:{_class}")


def trackers_named(given: str | Iterable[str]) -> dict[str, type[Tracker]]:
    """The trackers that somebody asks for, by name.

    Args:
        given: names, one or several a text, with commas between.

    Raises:
        UsageError: there is none of that name, or what it needs is not installed.
    """
    texts = [given] if isinstance(given, str) else [*given]
    names = dict.fromkeys(name.strip() for text in texts for name in text.split(","))
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS, "--report-to")
    for name in names:
        for package in TRACKERS[name].requires:
            found = find_spec(package)
            if found is None or found.origin is None:  # a folder of that name, such as W&B leaves behind, is no package
                extra = f"pip install 'statewise[{name}]'" if name in BUILT_IN else f"pip install {package}"
                raise UsageError(f"--report-to {name}: the package {package!r} is not installed; {extra}")
        TRACKERS.code_digest(name)  # refuses a class of a script, which the tracker's process cannot import
    return {name: TRACKERS[name] for name in names}
