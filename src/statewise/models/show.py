"""`statewise show`: single items of an arm beside base, or the states that it was trained on, as text. Records alone.

An item is judged by the score that the report has first. Against base, on the same item and seed, it is gained (the
score rises, of right and wrong answers 0 → 1), lost (it falls) or kept; flipped is gained or lost. An answer that could
not be scored counts as not correct, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from statewise.console.printing import plural
from statewise.errors import UsageError, unknown
from statewise.folder.run_folder import RunFolder
from statewise.models.sides import find_arm, read_side
from statewise.plan.dag import BASE
from statewise.storage import integrity, records

GAINED, LOST, KEPT, FLIPPED = "gained", "lost", "kept", "flipped"
CHOICES = (GAINED, LOST, FLIPPED, KEPT)
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ShownItem:
    """One answer of an arm, and base's to the same item. None: not known, or could not be scored."""

    seed: int
    task: str
    member: str
    item: int
    decoding: str
    metric: str
    prompt: str | None
    base_answer: str | None
    base_score: float | None
    answer: str
    score: float | None
    transition: str | None


@dataclass(frozen=True)
class Piece:
    """Tokens in a row that were trained on, or were not, as text."""

    text: str
    is_trained: bool


@dataclass(frozen=True)
class ShownState:
    """One trajectory of an update as the source yielded it: what was asked, given to the writer, and written."""

    seed: int
    step: int
    row: int
    source: str
    writer: str
    reward: float | None
    is_finished: bool
    prompt: str
    given: tuple[Piece, ...]
    written: tuple[Piece, ...]


@dataclass(frozen=True)
class Shown:
    """The first of `num_found` items or states of an arm, and what else a reader must know."""

    arm: str
    num_found: int
    items: tuple[ShownItem, ...] = ()
    states: tuple[ShownState, ...] = ()
    note: str = ""


def show_items(text: str, wanted: str | None, task: str | None, head: int) -> Shown:
    """Items of `RUN:ARM` or `RUN:ARM:SEED`, seed by seed and task by task.

    Args:
        text: the arm.
        wanted: one of `CHOICES`; None: all.
        task: of this one alone; None: of all.
        head: at most so many.

    Raises:
        UsageError: no such arm, seed, task or choice, nothing was evaluated, or base was asked other items.
    """
    if wanted is not None and wanted not in CHOICES:
        raise unknown("choice of items", wanted, CHOICES, "--items")
    side = read_side(text)
    run, arm, _ = _open(text)
    shared = run.config.shared
    tasks = (shared.target, *shared.retention)
    if task is not None and task not in tasks:
        raise unknown("task", task, tasks, text)
    if wanted is not None and arm == BASE:
        raise UsageError(f"{text}: the base model gains and loses nothing; name an arm, or leave out --items")
    found = [
        item
        for seed in side.seeds
        for name in (tasks if task is None else (task,))
        for item in _items_of(run, arm, seed, name)
        if wanted in (None, item.transition) or (wanted == FLIPPED and item.transition in (GAINED, LOST))
    ]
    is_older = any(item.prompt is None for item in found)
    return Shown(
        text, len(found), items=tuple(found[:head]), note="recorded by an older version, without prompts" * is_older
    )


def show_states(text: str, head: int) -> Shown:
    """The first `head` training states of `RUN:ARM` or `RUN:ARM:SEED`, decoded with the run's tokenizer.

    Raises:
        UsageError: no such arm or seed, it was not trained, or the base model's folder is gone or another one.
    """
    run, arm, seeds = _open(text)
    rows, num_found, has_supervised = list[tuple[int, dict[str, Any]]](), 0, False
    for seed in seeds:
        has_supervised |= bool(run.tables(arm, seed, "train", "supervised/*.parquet"))
        for path in run.tables(arm, seed, "train", "states/*.parquet"):
            part = records.read_table(path)
            rows += [(seed, row) for row in part[: max(0, head - len(rows))]]
            num_found += len(part)
    if not rows:
        why = "the base model is not trained" if arm == BASE else "it was trained in no seed; continue the run"
        raise UsageError(f"{text}: has no training states: {why}")
    note = "what signals made of them, where that has other tokens or mask, is in supervised/" * has_supervised
    return Shown(text, num_found, states=tuple(_decoded(run, rows)), note=note)


def told(shown: Shown) -> Iterator[str]:
    """The lines that say it: a block an item, whose texts are indented, so that none looks like a heading."""
    for item in shown.items:
        change = f"{_number(item.base_score)} → {_number(item.score)}" if item.transition else _number(item.score)
        asked = f"({item.decoding} {item.metric}, seed {item.seed})"
        yield " ".join(
            [f"{item.task} item {item.item}:", *([item.transition] if item.transition else []), change, asked]
        )
        yield from _block("prompt", item.prompt)
        yield from _block("base", item.base_answer)
        yield from _block(shown.arm.rpartition("/")[2], item.answer)
        yield ""
    for state in shown.states:
        reward = "" if state.reward is None else f", reward {_number(state.reward)}"
        end = "" if state.is_finished else ", unfinished"
        place = f"seed {state.seed}, update {state.step}, row {state.row}"
        yield f"{place}: {state.source} by {state.writer}{reward}{end}"
        yield from _block("prompt", state.prompt)
        for label, pieces in (("given", state.given), ("written", state.written)):
            for piece in pieces:
                yield from _block(f"{label}, {'trained' if piece.is_trained else 'not trained'}", piece.text)
        yield ""
    num_shown = len(shown.items) + len(shown.states)
    more = "; --head N shows more" if num_shown < shown.num_found else ""
    yield f"{num_shown:,} of {plural(shown.num_found, 'state' if shown.states else 'item')}{more}"
    if shown.note:
        yield f"note: {shown.note}"


def _block(label: str, text: str | None) -> list[str]:
    return [] if text is None else [f"  {label}:", *(f"    {line}" for line in text.split("\n"))]


def _number(score: float | None) -> str:
    return "unscored" if score is None else f"{score:.3g}"


def _open(text: str) -> tuple[RunFolder, str, list[int]]:
    found = find_arm(text)
    if found is None:
        read_side(text)  # says what is wrong with anything but an evaluation
        raise UsageError(f"{text}: an evaluation, which has no base; give RUN:ARM or RUN:ARM:SEED")
    return found


def _items_of(run: RunFolder, arm: str, seed: int, task: str) -> list[ShownItem]:
    """The items of one task, by its first score, beside base where it was evaluated."""
    record, of_base = (run.record(one, seed, "evaluate") for one in (arm, BASE))
    digests = {one["items_sha256"][task] for one in (record, of_base) if task in one.get("items_sha256", {})}
    if len(digests) > 1:
        raise UsageError(f"{run.folder}:{arm}:{seed}: {task}: base was asked other items; continue the run")
    has_base = arm != BASE and of_base.get("status") == "evaluated"
    base = {row["item"]: row for row in _rows_of(run, BASE, seed, task)} if has_base else {}
    shown = []
    for row in _rows_of(run, arm, seed, task):
        before = base.get(row["item"], {})
        rise = (row["score"] or 0) - (before.get("score") or 0)
        transition = (GAINED if rise > 0 else LOST if rise < 0 else KEPT) if before else None
        names = ("task", "member", "item", "decoding", "metric", "score")
        shown.append(
            ShownItem(
                seed=seed, prompt=row.get("prompt"), answer=row["response"], base_answer=before.get("response"),
                base_score=before.get("score"), transition=transition, **{name: row[name] for name in names},
            )
        )  # fmt: skip
    return shown


def _rows_of(run: RunFolder, arm: str, seed: int, task: str) -> Rows:
    """The rows of a task's first decoding and metric; of the target's rewarded metric, where one is rewarded."""
    path = run.arm_folder(arm, seed) / "evals" / f"{task}.parquet"
    rows = records.read_table(path) if path.is_file() else []
    columns = [*dict.fromkeys((row["decoding"], row["metric"]) for row in rows)]
    shared = run.config.shared
    rewarded = [column for column in columns if task == shared.target and column[1] == shared.reward_metric]
    first = next(iter([*rewarded, *columns]), None)
    return sorted((row for row in rows if (row["decoding"], row["metric"]) == first), key=lambda row: int(row["item"]))


def _decoded(run: RunFolder, rows: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[ShownState]:
    from statewise.policy.load import load_without_weights

    model = _checked_model(run)
    tokenizer = load_without_weights(model, run.config.shared.model, run.config.shared.end_of_text).tokenizer

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def pieces(ids: Sequence[int], mask: Sequence[bool]) -> tuple[Piece, ...]:
        parts = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
        return tuple(Piece(decode([token for token, _ in part]), is_trained) for is_trained, part in parts)

    for seed, row in rows:
        ids, mask, start = row["token_ids"], row["action_mask"], row["prompt_length"]
        end = start + (row.get("num_given") or 0)
        yield ShownState(
            seed, row["step"], row["row"], row["source"], row["writer"], row["reward"], row["is_finished"],
            decode(ids[:start]), pieces(ids[start:end], mask[start:end]), pieces(ids[end:], mask[end:]),
        )  # fmt: skip


def _checked_model(run: RunFolder) -> Path:
    """The base model's folder, whose small files are those of the run: another tokenizer gives other texts."""
    if not run.model.is_dir():
        raise UsageError(f"{run.folder}: its base model is no folder here ({run.model}), so no token can be decoded")
    for name, sha256 in run.model_files.items():
        path = run.model / name  # in the hub's cache a link
        if not name.endswith(".safetensors") and (not path.is_file() or integrity.digest_known(path) != sha256):
            raise UsageError(f"{path}: is not the run's own any more, so tokens might be decoded to other texts")
    return run.model
