"""A study begun from rows (`statewise init`), and what is in them (`statewise data`)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from statewise.assets import BEGUN
from statewise.config.study import SharedSection
from statewise.errors import UsageError, unknown
from statewise.plan.request import LARGE_PARAMETERS  # from here on an adapter is trained
from statewise.policy.find import EMBEDDED, count_parameters, look_up_model
from statewise.storage.output_folder import check_empty
from statewise.storage.parsing import parse_json
from statewise.storage.records import write_bytes
from statewise.storage.rows import Row
from statewise.tasks.conversations import ASSISTANT, SYSTEM, answers_of, first_asked, is_plain, plain_text, turns_of
from statewise.tasks.hub_rows import HUB
from statewise.tasks.own_data import COMPLETION, PROMPT, odd_type, text_of
from statewise.tasks.row_sources import locate_rows, read_source

# What columns are called in the data sets that people have, the likeliest first.
PROMPTS = ("prompt", "question", "instruction", "input", "problem", "query")
COMPLETIONS = ("completion", "answer", "output", "response", "solution", "target")
MESSAGES = ("messages", "conversation", "conversations", "turns", "dialog", "dialogue")
TEST_SHARE = 0.2
SHOWN = 3  # rows, and problems of a kind
TOKENS = "tokens"
EXAMPLE = BEGUN / "rows.jsonl"  # for those who have no rows yet


@dataclass(frozen=True)
class TurnFacts:
    """Of conversations: turns (5 %, 50 % and 95 % quantile), and how many have a system turn and several answers.

    `needs_chat`: only a chat template can render them.
    """

    num_turns: tuple[int, int, int]
    num_with_system: int
    num_with_more_answers: int
    needs_chat: bool


@dataclass(frozen=True)
class DataFacts:
    """What is in rows, as a study would see it.

    `source`: where they lie, by its whole name; `messages`: the column of conversations, "" for none, which `turns`
    then tells of; prompts are their plain form. `problems`: rows without a text in one of the two columns, told with
    their place; `num_twice`: rows whose prompt came before; `num_in_test`: prompts (of conversations,
    first questions) that `test` has too (None: no such rows). Lengths of the 5 %, 50 % and 95 % quantile, in
    `unit`; `num_too_long`: rows of more tokens than the model's `context` (None where tokens are not counted).
    """

    source: str
    columns: tuple[str, ...]
    prompt: str
    completion: str
    messages: str
    num_rows: int
    problems: tuple[str, ...]
    num_twice: int
    num_in_test: int | None
    first: tuple[tuple[str, str], ...]
    unit: str
    prompt_lengths: tuple[int, int, int]
    completion_lengths: tuple[int, int, int]
    context: int | None
    num_too_long: int
    turns: TurnFacts | None


@dataclass(frozen=True)
class Columns:
    """What is asked for by name; None: the likeliest that there is, of a completion "" for none."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None


def describe_data(name: str, asked: Columns = Columns(), *, test: str = "", model: str = "") -> DataFacts:
    """Read rows, bad ones too.

    Args:
        name: a file, a folder that datasets saved or a data set of the hub, as `data.train` of a study names it.
        asked: columns.
        test: others of the same columns, whose prompts are looked for in these; "": none.
        model: whose tokens lengths are counted in; "": characters.

    Raises:
        UsageError: no rows, or a column that is not there or cannot be guessed.
    """
    source = locate_rows(name, Path(), "train")
    rows = read_source(source)
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    found = _columns(source, rows, columns, asked)
    read, problems = list[tuple[list[dict[str, str]], str, str]](), list[str]()
    for row in rows:
        try:
            read.append(_read_row(row, found))
        except UsageError as error:
            problems.append(str(error))
    typed = () if found.messages or problems else filter(None, (found.prompt, found.completion))
    problems += filter(None, (odd_type(rows, column) for column in typed))
    prompts = [prompt for _, prompt, _ in read]
    begin = {_beginning(turns, prompt) for turns, prompt, _ in read}
    count, unit = _measure(model)
    lengths = [(count(prompt), count(answer)) for _, prompt, answer in read]
    context = _context(model) if unit == TOKENS else None
    return DataFacts(
        source, columns, found.prompt or "", found.completion or "", found.messages or "", len(rows), tuple(problems),
        sum(times - 1 for times in Counter(prompts).values()),
        len(begin & _beginnings(read_source(locate_rows(test, Path(), "test")), found)) if test else None,
        tuple((prompt, answer) for _, prompt, answer in read[:SHOWN]), unit,
        _quantiles([asked for asked, _ in lengths]), _quantiles([answered for _, answered in lengths]),
        context, sum(sum(both) > context for both in lengths) if context else 0,
        _turn_facts([turns for turns, _, _ in read], found),
    )  # fmt: skip


def write_study(folder: Path, facts: DataFacts, model: str = SharedSection().model) -> Path:
    """Write `study.toml`, `rewards.py` and `README.md` of a new study on the described rows; returns the first.

    Raises:
        UsageError: the folder has something in it, the file has bad rows or no completions, or there is no such model.
    """
    if facts.problems:
        raise UsageError(f"{facts.problems[0]} (one of {len(facts.problems)} such rows); mend the file first")
    if not facts.completion:
        raise UsageError(f"{facts.source}: a study that imitates needs a column of completions")
    reference, usual = look_up_model(model), SharedSection()
    is_chat = facts.turns is not None and _has_chat_template(reference.folder)
    if facts.turns and facts.turns.needs_chat and not is_chat:
        raise UsageError(
            f"{facts.source}: conversations are rendered by a chat template only, and model {model!r} has none; give "
            "--model with one that has, such as an instruct model"
        )
    # Weights that are not here yet have two bytes each, as most are published.
    size = sum(count_parameters(reference.folder).values()) or reference.missing_bytes / 2
    check_empty(folder)
    name = "".join(one if one.isascii() and one.isalnum() else "-" for one in _stem(facts.source)).strip("-") or "own"
    path, is_example = Path(model).expanduser().resolve(), facts.source == str(EXAMPLE)
    is_folder = model != EMBEDDED and path.is_dir()
    train = EXAMPLE.name if is_example else _from(folder, facts.source)
    study = folder / "study.toml"
    written = {
        "file": str(study), "name": _toml(name.lower()), "share": TEST_SHARE,
        "train": _toml(train), "title": name, "source": train, "rows": f"{facts.num_rows:,}",
        "run": f"runs/{name.lower()}", "columns": _columns_of_study(facts),
        "model": _toml(_from(folder, str(path)) if is_folder else model),
        "chat": "chat = true   # turns as the model's chat template has them\n" * is_chat,
        "retention": _toml(usual.retention if model == usual.model else []),
        "lr": "1e-4" if size > LARGE_PARAMETERS else "3e-4",
        "adapter": 'adapter = { kind = "lora", rank = 16 }\n' if size > LARGE_PARAMETERS else "",
        "column": repr(facts.completion), "new_tokens": max(16, -(-3 * facts.completion_lengths[2] // 2 // 8) * 8),
    }  # fmt: skip
    for text in sorted(BEGUN.glob("*.txt")):
        write_bytes(folder / text.stem, text.read_text(encoding="utf-8").format(**written).encode())
    if is_example:
        write_bytes(folder / EXAMPLE.name, EXAMPLE.read_bytes())
    return study


def _read_row(row: Row, columns: Columns) -> tuple[list[dict[str, str]], str, str]:
    """The turns before the answer (none of a row without conversations), the prompt and the answer."""
    if columns.messages:
        turns = turns_of(row, columns.messages)
        before, answer = answers_of(turns, row.place, has_answer=bool(columns.completion))[-1]
        return before, plain_text(before), answer
    return [], text_of(row, columns.prompt or ""), text_of(row, columns.completion) if columns.completion else ""


def _beginning(turns: list[dict[str, str]], prompt: str) -> str:
    return first_asked(turns) if turns else prompt


def _beginnings(rows: list[Row], columns: Columns) -> set[str]:
    """How the rows begin; bad ones do not count."""
    found = set[str]()
    for row in rows:
        with suppress(UsageError):
            turns, prompt, _ = _read_row(row, columns)
            found.add(_beginning(turns, prompt))
    return found


def _turn_facts(conversations: list[list[dict[str, str]]], columns: Columns) -> TurnFacts | None:
    if not columns.messages:
        return None
    roles = [[turn["role"] for turn in turns] for turns in conversations]
    return TurnFacts(
        _quantiles([len(one) + bool(columns.completion) for one in roles]),
        sum(SYSTEM in one for one in roles),
        sum(ASSISTANT in one for one in roles),
        not all(is_plain(turns) for turns in conversations),
    )


def _columns(source: str, rows: list[Row], columns: Sequence[str], asked: Columns) -> Columns:
    """The columns that are read: those asked for, or the likeliest."""
    messages = asked.messages
    if messages is None and asked.prompt is None and asked.completion in (None, ""):
        lists = [name for name in MESSAGES if any(isinstance(row.values.get(name), list) for row in rows)]
        messages = lists[0] if lists else None
    if messages is None:
        prompt = _column(source, columns, asked.prompt, PROMPTS, "prompt")
        none = asked.completion == ""
        return Columns(prompt, "" if none else _column(source, columns, asked.completion, COMPLETIONS, "completion"))
    if asked.prompt is not None or asked.completion not in (None, ""):
        raise UsageError("give one of --messages and --prompt with --completion")
    messages = _column(source, columns, messages, (), "messages")
    return Columns(PROMPT, COMPLETION if asked.completion is None else "", messages)


def _column(source: str, columns: Sequence[str], given: str | None, usual: Sequence[str], key: str) -> str:
    if given is not None:
        if given not in columns:
            raise unknown("column", given, columns, source)
        return given
    found = [name for name in usual if name in columns]
    if not found:
        raise UsageError(f"{source}: which column is the {key}? give --{key}; the columns are {', '.join(columns)}")
    return found[0]


def _columns_of_study(facts: DataFacts) -> str:
    if facts.messages:
        return f'messages = {_toml(facts.messages)}           # the last answer of each; turns = "all": every answer'
    return f"prompt = {_toml(facts.prompt)}\ncompletion = {_toml(facts.completion)}"


def _toml(value: str | list[str]) -> str:
    """JSON's escapes beyond U+FFFF are none in TOML."""
    return json.dumps(value, ensure_ascii=False)


def _stem(source: str) -> str:
    """What a study on these rows is called."""
    if source.startswith(HUB):
        return source.partition("@")[0].split("/")[1]
    return Path(source if Path(source).exists() else source.rpartition(":")[0]).stem


def _from(folder: Path, source: str) -> str:
    """The rows as a study in `folder` names them."""
    return source if source.startswith(HUB) else os.path.relpath(source, folder.resolve())


def _has_chat_template(model: Path) -> bool:
    settings = model / "tokenizer_config.json"
    if (model / "chat_template.jinja").is_file():
        return True
    return settings.is_file() and bool(parse_json(settings.read_text(encoding="utf-8")).get("chat_template"))


def _measure(model: str) -> tuple[Callable[[str], int], str]:
    """What counts the length of a text, and in what: characters without a model, or without its tokenizer.json."""
    path = look_up_model(model).folder / "tokenizer.json" if model else None
    if path is None or not path.is_file():
        return len, "characters"
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what tokenizers raises has no class of its own
        raise UsageError(f"{path}: tokenizers cannot read it ({error}); copy the model again") from error
    tokenizer.no_truncation()  # a stored one would make every length the longest allowed
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), TOKENS


def _context(model: str) -> int | None:
    """Tokens of the longest text, as config.json says."""
    config = parse_json((look_up_model(model).folder / "config.json").read_text(encoding="utf-8"))
    length = {**config, **(config.get("text_config") or {})}.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _quantiles(lengths: Sequence[int]) -> tuple[int, int, int]:
    ordered = sorted(lengths) or [0]
    low, middle, high = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.05, 0.5, 0.95))
    return low, middle, high
