"""The shape of the code that design.md and style.md fix: who imports whom, how long things are, what is documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import statewise
from statewise.locality import ADAPTERS, LOCALITIES
from statewise.signals import SIGNALS
from statewise.states import SOURCES

PACKAGE = Path(statewise.__file__).parent
ROOT = PACKAGE.parents[1]
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
LEVELS = {
    "__init__": 12,
    "__main__": 11, "api": 11,
    "cli": 10, "progress": 10, "frames": 10,
    "run": 9, "models": 9,
    "results": 8, "report": 8, "logs": 8, "trackers": 8,
    "folder": 7,
    "plan": 6, "pocket": 6,
    "loop": 5, "evals": 5,
    "config": 4,
    "states": 3, "signals": 3, "locality": 3, "drift": 3,
    "policy": 2,
    "tasks": 1, "assets": 1, "console": 1,
    "storage": 0, "types": 0, "batch": 0, "kind": 0, "registry": 0, "errors": 0, "seeding": 0,
}  # fmt: skip
TESTS = sorted(Path(__file__).parent.glob("*.py"))
# Calls that a test may leave all its asserting to; those that are functions of the tests assert something themselves.
CHECKERS = {
    "pytest.raises", "pytest.fail",
    "torch.testing.assert_close", "np.testing.assert_allclose", "np.testing.assert_array_equal",
    "assert_equal_updates", "assert_restored", "assert_resumes", "assert_trains_as_on_the_cpu", "check_digests",
}  # fmt: skip
# The files that are one room: commands, and what is shown while a run goes on.
SAME_ROOM = {("cli", "progress")}
# Lines of each room as they are meant to be; one that outgrows its figure by half is two rooms, or holds something that
# a library does already. Change a figure on purpose only.
ROOM_LINES = {
    "config": 900, "states": 1100, "signals": 1000, "locality": 700, "policy": 2100, "loop": 1600, "tasks": 1800,
    "evals": 450, "drift": 700, "plan": 1350, "folder": 700, "run": 800, "results": 950, "models": 1200, "report": 1650,
    "pocket": 1050, "storage": 850, "console": 250, "cli": 700, "logs": 500, "trackers": 550,
}  # fmt: skip
ROOMS_OF_KINDS = ("states", "signals", "locality")
# Level 0 is the vocabulary: its files may use each other (`types` raises an error of `errors`).
VOCABULARY = 0

FILE_LINES, FUNCTION_LINES, PARAMETERS, NESTING = 400, 80, 6, 3
# One source, signal or distance has at most 190 lines: what it does, and what it answers of itself. A file that holds a
# family of them, 40 for each other one, since they share their docstring and helpers.
ONE_METHOD_LINES, FURTHER_METHOD_LINES = 190, 40
METHOD_ROOMS = ("states", "signals", "drift")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PACKAGE)) for path in paths]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of everything imported, wherever in the file; `from statewise import x` counts as `statewise.x`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "statewise":
                yield from (f"statewise.{alias.name}" for alias in node.names)


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A typer command: its parameters are the options of the command line."""
    return any("app.command" in ast.unparse(decorator) for decorator in function.decorator_list)


def depth_of(node: ast.AST) -> int:
    """The deepest nesting of blocks below `node`; functions inside count as a block, `elif` does not."""
    blocks = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef, ast.Match)
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        own = int(isinstance(child, blocks) and not is_elif)
        deepest = max(deepest, own + depth_of(child))
    return deepest


def test_every_room_has_a_level():
    assert {room_of(path) for path in FILES} == set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_imports_go_down_only(path):
    room = room_of(path)
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "statewise" or len(parts) == 1:
            continue
        other = parts[1]
        is_vocabulary = LEVELS[room] == LEVELS[other] == VOCABULARY
        is_allowed = other == room or LEVELS[other] < LEVELS[room] or is_vocabulary or (room, other) in SAME_ROOM
        assert is_allowed, f"{room} (level {LEVELS[room]}) imports {module} (level {LEVELS[other]})"


@pytest.mark.parametrize("room", ROOM_LINES)
def test_a_room_does_not_outgrow_its_figure(room):
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES if room_of(path) == room)
    assert 0 < lines <= 1.5 * ROOM_LINES[room]


def test_every_folder_has_a_figure():
    assert {room_of(path) for path in FILES if path.parent != PACKAGE} - {"assets"} == set(ROOM_LINES)


def names_of_kinds(path: Path) -> Iterator[str]:
    """Where a file asks whether something is a kind, by its class or by its name."""
    kinds = [*SOURCES.values(), *SIGNALS.values(), *LOCALITIES.values(), *ADAPTERS.values()]
    classes = {kind.__name__ for kind in kinds}
    named = {str(kind.model_fields["kind"].default) for kind in kinds}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name) and node.id in classes:
            yield f"{node.lineno}: {node.id}"
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            is_kind = any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides)
            compared = [side.value for side in sides if isinstance(side, ast.Constant)]
            if is_kind and any(value in named for value in compared):
                yield f"{node.lineno}: {ast.unparse(node)}"


def test_no_room_but_its_own_knows_a_kind_by_name():
    found = {
        str(path.relative_to(PACKAGE)): names for path in FILES
        if room_of(path) not in ROOMS_OF_KINDS and (names := [*names_of_kinds(path)])
    }  # fmt: skip
    # The adapter of an arm whose study names none.
    assert {path: [name.partition(": ")[2] for name in names] for path, names in found.items()} == {
        "config/study.py": ["Full"]
    }
    own = [name for path in FILES if room_of(path) in ROOMS_OF_KINDS for name in names_of_kinds(path)]
    assert len(own) > 20  # it does see them where they are


@pytest.mark.parametrize("room", ["report", "drift"])
def test_rooms_that_read_records_never_import_torch(room):
    for path in (path for path in FILES if room_of(path) == room):
        roots = {module.partition(".")[0] for module in imported_modules(path)}
        assert not roots & {"torch", "transformers", "lm_eval", "peft", "ot"}, path


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_nothing_is_pickled_and_no_remote_code_is_trusted(path):
    roots = {module.partition(".")[0] for module in imported_modules(path)}
    assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"trust_remote_code\s*=\s*True", text)
    assert not re.search(r"\btorch\.(save|load)\(|allow_pickle\s*=\s*True", text)


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_files_and_functions_keep_their_size(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    for function in functions_of(path):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno + 1 <= FUNCTION_LINES, function.name
        arguments = function.args
        count = len(
            [a for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs if a.arg not in ("self", "cls")]
        )
        assert count <= PARAMETERS or is_command(function), f"{function.name} has {count} parameters"
        assert depth_of(function) <= NESTING, f"{function.name} nests {depth_of(function)} deep"


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if room_of(path) in METHOD_ROOMS],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_source_signal_or_distance_is_short(path):
    registered = [kind.__name__ for kind in (*SOURCES.values(), *SIGNALS.values())]
    held = [node.name for node in tree_of(path).body if isinstance(node, ast.ClassDef) and node.name in registered]
    allowed = ONE_METHOD_LINES + FURTHER_METHOD_LINES * max(0, len(held) - 1)
    limit = FILE_LINES if path.stem in ("measure", "features", "source", "signal") else allowed
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def read_doc(name: str) -> str:
    path = ROOT / "docs" / name
    assert path.is_file(), f"docs/{name} is missing"
    return path.read_text(encoding="utf-8")


def test_every_source_and_signal_has_a_row_in_the_methods():
    rows = [line for line in read_doc("methods.md").splitlines() if line.lstrip().startswith("|")]
    for kind in (*SOURCES, *SIGNALS):
        assert any(f"`{kind}`" in row or f"`{kind} " in row for row in rows), f"docs/methods.md has no row for {kind!r}"


def logged_keys() -> set[str]:
    """Every `room/name` string that the loop writes into metrics.jsonl or timing.jsonl, by reading its source."""
    keys = set()
    for path in FILES:
        if room_of(path) not in ("loop", "locality"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                keys.update(re.findall(r"^(?:states|signals|locality|loop|policy)/[a-z_]+$", node.value))
            elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                keys.update(re.findall(r"^[a-z]+/[a-z_]+_$", str(node.values[0].value)))
    return keys - {"statewise/states"}


def test_every_logged_metric_is_explained_and_nothing_else():
    text = read_doc("metrics.md")
    keys = logged_keys()
    assert {"loop/loss_nats", "states/num_generated_", "signals/reward_mean"} <= keys
    for key in keys:
        assert f"`{key}" in text, f"docs/metrics.md does not explain {key}"
    explained = set(re.findall(r"`((?:states|signals|locality|loop|policy)/[a-z_]+)", text))
    stale = {
        name
        for name in explained
        if not any(name == key or (key.endswith("_") and name.startswith(key)) for key in keys)
    }
    assert not stale, f"docs/metrics.md explains keys that nothing logs: {sorted(stale)}"


def test_every_module_and_public_function_says_what_it_is():
    for path in FILES:
        tree = tree_of(path)
        if path.name != "__init__.py" or len(tree.body) > 0:
            assert ast.get_docstring(tree), f"{path} has no docstring"


def test_what_tests_share_stands_in_modules_that_hold_no_tests():
    for path in TESTS:
        shared = [module for module in imported_modules(path) if module.rpartition(".")[2].startswith("test_")]
        assert not shared, f"{path.name} imports {shared}"


def called(node: ast.AST) -> str:
    """The name of what is called; empty where `node` is no call."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_the_message_of_every_expected_error_is_looked_at():
    """By `match`, or by the name that `as` gives it."""
    for path in TESTS:
        tree = tree_of(path)
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        kept = [node for node in ast.walk(tree) if isinstance(node, ast.withitem)]
        kept = [node.context_expr for node in kept if node.optional_vars and ast.unparse(node.optional_vars) in read]
        for node in ast.walk(tree):
            if called(node) in ("pytest.raises", "pytest.warns") and node not in kept:
                assert any(word.arg == "match" for word in node.keywords), f"{path.name}:{node.lineno}"


def test_every_test_and_every_checker_asserts_something():
    for path in TESTS:
        for function in functions_of(path):
            if function.name.startswith("test_") or function.name in CHECKERS:
                nodes = list(ast.walk(function))
                is_checked = any(isinstance(node, ast.Assert) or called(node) in CHECKERS for node in nodes)
                assert is_checked, f"{path.name}: {function.name}"
