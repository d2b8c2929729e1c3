"""A task file read as data: includes merged as lm-eval merges them, and its Python named, never imported.

A task file may come with a model or a data set that somebody else made, so nothing of it may run unasked. lm-eval's own
files are told by where they lie, links resolved. Whatever else a YAML names by `!function` is listed with its place; it
is imported by `TaskFile.resolved`, after the user has trusted it. What a file unfolds to is bounded before it is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from statewise.errors import UsageError

TRUST_FLAG = "--trust-task-code"
MAX_DEPTH = 50
MAX_VALUES = 100_000  # after all anchors are unfolded; lm-eval's own largest file has under 1,000
UNSAFE = "unsafe_code"
# What a task may be called: its records are files of that name. All of lm-eval's own are called so.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.()-]{0,199}")
DEFAULT_METRIC = "exact_match"  # lm-eval's, of a task that generates and names none
# libyaml's loader where it was built; both know the plain types of YAML only.
SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Function:
    """Python that a task file names: `name` beside the file in `folder`, or of an importable module."""

    name: str
    folder: Path
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.name}" + (f" of {self.beside}" if self.beside.exists() else "")

    @property
    def beside(self) -> Path:
        """The file that it is of, unless its module is an installed one."""
        return self.folder / f"{self.name.rpartition('.')[0].replace('.', '/')}.py"


@dataclass(frozen=True)
class TaskFile:
    """`config`: the task's keys, includes merged, with `Function` where Python is named.

    `own_keys`: those that lm-eval's own files did not set; `code`: the Python that lm-eval's own files did not name;
    `is_unsafe`: whether any file says that the task runs what the model wrote; `parts`: itself and what it includes.
    """

    path: Path
    config: dict[str, Any]
    own_keys: frozenset[str]
    code: tuple[Function, ...]
    is_unsafe: bool
    parts: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What the task is called, by its records as well.

        Raises:
            UsageError: it has no name, or one that no file can have.
        """
        if "task" not in self.config:
            raise UsageError(f"task file {self.path}: no `task` key; it must give the task's name")
        name = self.config["task"]
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(
                f"task file {self.path}: task: {name!r} is no name of a task, whose records are files of that name; "
                "use letters, digits and _ . - ( ), and begin with a letter, a digit or _"
            )
        return name

    @property
    def first_metric(self) -> str:
        """The first metric of a task that generates, by its first filter, as lm-eval reads them: "metric,filter"."""
        metric = _first(self.config.get("metric_list"), "metric") or DEFAULT_METRIC
        called = metric.name.rpartition(".")[2] if isinstance(metric, Function) else metric
        return f"{called},{_first(self.config.get('filter_list'), 'name') or 'none'}"

    @property
    def told_code(self) -> tuple[str, ...]:
        """A line for each piece of Python that the file would run: where it is named, what it is, where it lies."""
        return tuple(dict.fromkeys(str(function) for function in self.code))

    def check_trusted(self, trusted: tuple[str, ...] = ()) -> None:
        """Refuse Python that is not in `trusted`, a list such as `told_code`.

        Raises:
            UsageError: names the file, the line, the function, and the flag.
        """
        unknown = [told for told in self.told_code if told not in trusted]
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise UsageError(
                f"{unknown[0]}{more}: the task runs this Python; read it, and give {TRUST_FLAG} if you trust it"
            )

    def resolved(self) -> dict[str, Any]:
        """`config` with every function imported: this runs the modules that hold them."""
        resolved: dict[str, Any] = _resolve(self.config)
        return resolved


def _first(entries: Any, key: str) -> Any:
    """What the first of a list of tables has at `key`; None where there is no such list, which `load` refuses."""
    first = entries[0] if isinstance(entries, list) and entries else None
    return first.get(key) if isinstance(first, dict) else None


@cache
def built_in_folder() -> Path:
    """The folder of lm-eval's own tasks, links resolved; found without importing lm-eval."""
    spec = find_spec("lm_eval")
    places = (spec.submodule_search_locations or []) if spec else []
    return Path(next(iter(places)), "tasks").resolve()


def read_task_file(path: Path) -> TaskFile:
    """Read a task file and what it includes; nothing of it is run.

    Raises:
        UsageError: not YAML, no table, a tag other than `!function`, an include that is not there, circular or outside
            of the file's folder and lm-eval's, or more values than a task file can need.
    """
    file = path.expanduser().resolve()
    parts = dict[Path, None]()
    config, own_keys, code, is_unsafe = _read(file, path, file.parent, parts)
    return TaskFile(path, config, frozenset(own_keys), tuple(code), is_unsafe, tuple(parts))


def _read(
    file: Path, told: Path, root: Path, seen: dict[Path, None]
) -> tuple[dict[str, Any], set[str], list[Function], bool]:
    if file in seen:
        raise UsageError(f"task file {told}: includes itself, or a file twice")
    seen[file] = None
    code: list[Function] = []
    config = _parse(file, told, code)
    is_own = not file.is_relative_to(built_in_folder())
    merged: dict[str, Any] = {}
    own_keys: set[str] = set()
    is_unsafe = bool(config.get(UNSAFE))
    code = code if is_own else []
    includes = config.pop("include", None) or []
    for include in includes if isinstance(includes, list) else [includes]:
        inner = _locate(include, file, told, root)
        keys, keys_own, functions, unsafe = _read(inner, inner, root, seen)
        keys.pop("task_list", None)  # of the included file only
        merged.update(keys)
        own_keys = (own_keys - set(keys)) | keys_own
        code += functions
        is_unsafe = is_unsafe or unsafe
    merged.update(config)
    own_keys = (own_keys - set(config)) | (set(config) if is_own else set())
    return merged, own_keys, code, is_unsafe


def _locate(include: Any, file: Path, told: Path, root: Path) -> Path:
    """The file that `include` names."""
    if not isinstance(include, str):
        raise UsageError(f"task file {told}: include must name a file (got {include!r})")
    inner = (file.parent / include).resolve()
    if not inner.is_file():
        raise UsageError(f"task file {told}: includes {include!r}, but there is no file {inner}")
    if not inner.is_relative_to(root) and not inner.is_relative_to(built_in_folder()):
        raise UsageError(
            f"task file {told}: includes {inner}, which lies outside of its folder and of lm-eval's; copy that file "
            "beside it"
        )
    return inner


def _parse(file: Path, told: Path, code: list[Function]) -> dict[str, Any]:
    """The table in one YAML file; its functions are added to `code`."""

    class Loader(SAFE_LOADER):  # type: ignore[misc]
        """Plain YAML and `!function`."""

    def name(loader: Any, node: yaml.Node) -> Function:
        function = Function(loader.construct_scalar(node), file.parent, f"{told}:{node.start_mark.line + 1}")
        code.append(function)
        return function

    Loader.add_constructor("!function", name)
    try:
        text = file.read_bytes()
        _check_size(text, told)
        config = yaml.load(text, Loader=Loader)  # a safe one
    except (yaml.YAMLError, ValueError, TypeError, OSError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        detail = str(getattr(error, "problem", None) or first)
        raise UsageError(f"task file {told}: cannot be read: {type(error).__name__}: {detail}") from error
    if not isinstance(config, dict):
        raise UsageError(f"task file {told}: cannot be read: expected a table of keys, got {type(config).__name__}")
    return config


def _check_size(text: bytes, told: Path) -> None:
    """Refuse what unfolds to too many values, or too deep: read event by event, nothing is built."""
    sizes: dict[str, int] = {}  # values below an anchor
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=SAFE_LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_nodes]:
                raise UsageError(f"task file {told}: the alias *{event.anchor} holds itself")
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: count - before} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        if count > MAX_VALUES or len(open_nodes) > MAX_DEPTH:
            what = f"nested more than {MAX_DEPTH} deep" if count <= MAX_VALUES else f"more than {MAX_VALUES:,} values"
            raise UsageError(f"task file {told}: holds {what}, which no task needs; put data into a data file")


def _resolve(value: Any) -> Any:
    if isinstance(value, Function):
        from lm_eval.tasks._yaml_loader import _import_func_in_yml  # seconds

        return _import_func_in_yml(value.name, value.folder)
    if isinstance(value, Mapping):
        return {key: _resolve(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(inner) for inner in value]
    return value
