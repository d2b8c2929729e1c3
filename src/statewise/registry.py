"""Things by name: the built-in ones, and those that other packages add by an entry point.

A thing is loaded when it is asked for, so that names are known without an import.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from statewise.errors import UsageError

Thing = TypeVar("Thing")
NAME = re.compile("[A-Za-z][A-Za-z0-9_-]*")  # names of files are made of it


class Registry(Mapping[str, Thing], Generic[Thing]):
    """`what` one of them is called; `group`: the entry points that add to them."""

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._held: dict[str, Thing | EntryPoint] = {}
        self._has_others = False

    def put(self, name: str, thing: Thing) -> None:
        """Add one under a name that is free.

        Raises:
            UsageError: the name is taken, or is none that files can be named after.
        """
        self._held = self._with(self._held, name, thing)

    def put_later(self, name: str, value: str) -> None:
        """Add one that is imported when it is asked for; `value` is written `module:name`. Raises as `put`."""
        self._held = self._with(self._held, name, EntryPoint(name, value, self.group))

    def code_digest(self, name: str) -> str | None:
        """SHA-256 of the Python files of the package that one of another package comes from; None of a built-in one.

        Raises:
            UsageError: it comes from no module that a worker could import.
        """
        package = _place(self._all()[name]).split(".")[0].split(":")[0]
        return None if package == __name__.split(".")[0] else _digest_package(package, f"{self.what} {name!r}")

    def _with(self, held: Mapping[str, Thing | EntryPoint], name: str, thing: Thing | EntryPoint) -> dict[str, Any]:
        """`held` and one more; one that is there may come again, as by an entry point after Python code."""
        if not NAME.fullmatch(name):
            raise UsageError(f"{self.what} {name!r}: a name has letters, digits, '_' and '-', and begins with a letter")
        if name in held and not _are_one(held[name], thing):
            raise UsageError(
                f"{self.what} {name!r} of {_place(thing)} is there already, of {_place(held[name])}; choose another "
                "name, or remove one of the packages"
            )
        return {**held, name: held.get(name, thing)}

    def _check(self, name: str, thing: Any) -> Thing:
        """`thing` if it is one that may stand under `name`.

        Raises:
            UsageError: it may not.
        """
        return cast(Thing, thing)

    def _all(self) -> dict[str, Thing | EntryPoint]:
        if not self._has_others:
            held: dict[str, Thing | EntryPoint] = self._held
            for entry in entry_points(group=self.group):
                held = self._with(held, entry.name, entry)
            self._held, self._has_others = held, True
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


def _place(thing: Any) -> str:
    """Where a thing is defined, as an entry point is written: `module:name`."""
    if isinstance(thing, EntryPoint):
        return thing.value
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def _are_one(held: Any, other: Any) -> bool:
    """Whether both are one thing, of which an entry point may give another module than the one that defines it."""
    entries = sum(isinstance(one, EntryPoint) for one in (held, other))
    if entries == 0:
        return held is other  # a class that was written anew has the old one's name
    if entries == 2 or _place(held) == _place(other):
        return _place(held) == _place(other)
    try:
        loaded = [one.load() if isinstance(one, EntryPoint) else one for one in (held, other)]
    except Exception:  # noqa: BLE001  (it is told where it is asked for)
        return False
    return loaded[0] is loaded[1]


def _digest_package(package: str, what: str) -> str:
    """SHA-256 of all Python files of an importable package, or of its one file, by their paths."""
    try:
        spec = find_spec(package)
    except ValueError:  # of a script, which has none
        spec = None
    is_here = spec is not None and (spec.submodule_search_locations or Path(str(spec.origin)).is_file())
    if spec is None or not is_here or package == "__main__":
        raise UsageError(
            f"{what} is defined in {package!r}, which workers cannot import; put it into a module of its own"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [(path.relative_to(folder), path) for folder in folders for path in folder.rglob("*.py")]
    digest = hashlib.sha256()
    for name, path in sorted(files) or [(Path(package), Path(str(spec.origin)))]:
        digest.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
