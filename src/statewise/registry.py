"""Things by name: the built-in ones, and those that other packages add by an entry point.

A thing is loaded when it is asked for, so that names are known without an import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from statewise.errors import UsageError

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """`what` one of them is called; `group`: the entry points that add to them."""

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._held: dict[str, Thing | EntryPoint] = {}
        self._has_others = False

    def put(self, name: str, thing: Thing) -> None:
        """Add one under a name that is free.

        Raises:
            UsageError: the name is taken.
        """
        if self._held.setdefault(name, thing) is not thing:
            raise UsageError(f"{self.what} {name!r} is there already; choose another name")

    def put_later(self, name: str, value: str) -> None:
        """Add one that is imported when it is asked for; `value` is written `module:name`."""
        self._held[name] = EntryPoint(name, value, self.group)

    def _check(self, name: str, thing: Any) -> Thing:
        """`thing` if it is one that may stand under `name`.

        Raises:
            UsageError: it may not.
        """
        return cast(Thing, thing)

    def _all(self) -> dict[str, Thing | EntryPoint]:
        if not self._has_others:
            self._has_others = True
            for entry in entry_points(group=self.group):
                if entry.name in self._held:
                    raise UsageError(f"{self.what} {entry.name!r} of {entry.value} is there already")
                self._held[entry.name] = entry
        return self._held

    def __getitem__(self, name: str) -> Thing:
        held = self._all()[name]
        if not isinstance(held, EntryPoint):
            return held
        try:
            loaded = held.load()
        except Exception as error:
            raise UsageError(f"{self.what} {name!r}: {held.value} cannot be loaded: {error}") from error
        thing = self._held[name] = self._check(name, loaded)
        return thing

    def __contains__(self, name: object) -> bool:
        return name in self._all()  # without loading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
