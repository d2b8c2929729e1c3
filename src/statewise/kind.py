"""Tables of a study file as frozen, typed models: any table (`Strict`), and one whose `kind` picks its class (`Kind`).

The kinds of a room stand in its `Kinds`. Other packages add theirs by an entry point, so that a study file can name
them like the built-in ones. Whoever reads `Source` reads any registered source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from statewise.errors import UsageError, unknown
from statewise.registry import Registry

KindType = TypeVar("KindType", bound="Kind")


class Strict(BaseModel):
    """A table of a study file: unknown keys and values of another type are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def changed(self, **settings: Any) -> Self:
        """The same with other settings, checked as a table of a study file is."""
        return type(self).model_validate({**dict(self), **settings})


class Kinds(Registry[type[KindType]], Generic[KindType]):
    """The kinds of a room, each under the default of its field `kind`."""

    def add(self, *kinds: type[KindType]) -> None:
        """Take in classes.

        Raises:
            UsageError: one is of another room, has no such default or that of another class, or leaves out what it
                must say.
        """
        for one in kinds:
            is_kind = isinstance(one, type) and issubclass(one, Kind)
            name = one.model_fields["kind"].default if is_kind else None
            self.put(str(name), self._check(name if isinstance(name, str) else "its_name", one))

    def _check(self, name: str, thing: Any) -> type[KindType]:
        told = f"{self.what} {getattr(thing, '__qualname__', thing)!r}"
        if not (isinstance(thing, type) and issubclass(thing, Kind) and getattr(thing, "registry", None) is self):
            raise UsageError(f"{told}: is no class of a {self.what}; derive it from the base class of that name")
        if thing.model_fields["kind"].default != name:
            raise UsageError(f"{told}: needs a field kind: Literal[{name!r}] = {name!r}")
        if missing := sorted(getattr(thing, "__abstractmethods__", ())):
            raise UsageError(f"{told}: does not say {', '.join(missing)}; the base class tells what each is")
        return cast(type[KindType], thing)

    def build(self, value: Any) -> KindType:
        """The kind that a table of a study file describes; an instance of one is kept.

        Raises:
            ValidationError, PydanticCustomError: no table, no or unknown kind, or a setting that its class refuses.
        """
        if isinstance(value, Kind):
            if type(value) is not self.get(value.kind):
                told = f"{type(value).__qualname__} is no registered {self.what}; register the class first"
                raise PydanticCustomError("kind", "{told}", {"told": told})
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("table", "must be a table")
        name = value.get("kind")
        if name is None:
            raise PydanticCustomError("kind", "has no 'kind'. Known: {known}.", {"known": ", ".join(sorted(self))})
        if not isinstance(name, str) or name not in self:
            raise PydanticCustomError("kind", "{told}", {"told": str(unknown(self.what, str(name), self))})
        return self[name].model_validate(value)


class Kind(Strict):
    """One of several kinds of a thing. A class that has the `registry` itself stands for all that are in it."""

    kind: str
    registry: ClassVar[Kinds[Any]]

    @classmethod
    def example(cls) -> Self | None:
        """One with its defaults, for the table of methods; None here where a setting has none."""
        return None if any(one.is_required() for one in cls.model_fields.values()) else cls.model_validate({})

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "registry" not in vars(cls):
            return handler(source)
        written = core_schema.plain_serializer_function_ser_schema(
            lambda one, info: one.model_dump(mode=info.mode, exclude_none=info.exclude_none), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(cls.registry.build, serialization=written)


class Weighted(Strict):
    """A kind with a `weight`, in one table of a study file.

    `holds`: the field of the kind. `unused`: settings of it that have no meaning here and are not written.
    """

    holds: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _part(cls, value: Any) -> Any:
        if isinstance(value, Kind):
            return {cls.holds: value}
        if not isinstance(value, dict) or cls.holds in value:
            return value
        rest = {key: inner for key, inner in value.items() if key != "weight"}
        return {cls.holds: rest, **({"weight": value["weight"]} if "weight" in value else {})}

    @model_serializer(mode="wrap")
    def _join(self, written: Any) -> dict[str, Any]:
        table = written(self)
        held = {key: value for key, value in table.pop(self.holds).items() if key not in self.unused}
        return {**held, **table}


@dataclass(frozen=True)
class Law:
    """How tokens were drawn, and so how a loss on them is taken: sampling temperature and top-p. Data count as 1."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Refusal:
    """Why a cell of source × signal cannot train, and the nearest one that can."""

    reason: str
    nearest: str
