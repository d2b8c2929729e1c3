"""The states that an arm recorded, found, checked and read for a source that replays them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from statewise import records
from statewise.errors import UsageError
from statewise.parsing import parse_toml
from statewise.state_records import FIRST_HASH, chain_hash, states_of_rows
from statewise.states import RecordedStates, Source, leaves, read_source, replace_leaves
from statewise.states.log import Log
from statewise.types import States


def folder_of(path: str, seed: int) -> Path:
    """The folder of one arm and seed that a log's `path` names; `{seed}` in it stands for the seed."""
    return Path(path.replace("{seed}", str(seed)))


def digest_record(path: str, seed: int, shared: Mapping[str, Any]) -> str:
    """The hash of the states that an arm of another run recorded.

    Args:
        path: the arm's folder.
        seed: what `{seed}` in it stands for.
        shared: `[shared]` of the study that replays it.

    Raises:
        UsageError: no such arm, one that was not trained to its end, or one of another target task or reward metric,
            whose documents and rewards would then not mean the same.
    """
    folder = folder_of(path, seed)
    state_hash = _state_hash(folder, seed)
    _Parts(folder).check()
    study = folder.parent.parent.parent / "study.toml"
    if study.is_file():
        theirs = _read_table(study, "shared")
        for key in ("target", "reward_metric"):
            if theirs.get(key) != shared[key]:
                raise UsageError(
                    f"source 'log': {folder} was trained with {key} {theirs.get(key)!r}, but this study has "
                    f"{shared[key]!r}"
                )
    return state_hash


def _state_hash(folder: Path, seed: int) -> str:
    """The hash in the folder's train.json.

    Raises:
        UsageError: there is none; says which of the ways to it was missed.
    """
    result = folder / "train.json"
    try:
        trained = records.read_json(result) if result.is_file() else {}
    except ValueError:
        trained = None
    if not isinstance(trained, dict):
        raise UsageError(f"source 'log': {result} is damaged (no JSON object); train its arm again")
    if "state_hash" in trained:
        return str(trained["state_hash"])
    if trained:
        why = f"its arm is {trained.get('status')!r}: {trained.get('reason', 'no reason given')}"
    elif (folder / "started.json").is_file():
        why = "its training has not ended; run its study again"
    elif folder.parent.is_dir() and (seeds := sorted(path.name for path in folder.parent.iterdir() if path.is_dir())):
        why = f"{folder.parent} has {', '.join(seeds)}; this study asks for seed {seed}"
    else:
        why = "there is no such folder; give that of an arm and seed, e.g. runs/pocket/arms/rl/{seed}"
    raise UsageError(f"source 'log': {folder} holds no trained arm: {why}")


def _read_table(path: Path, name: str) -> dict[str, Any]:
    """The table `name` of a TOML file."""
    try:
        table = parse_toml(path.read_text(encoding="utf-8")).get(name)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise UsageError(f"source 'log': {path} is damaged (no TOML with a table {name!r}); train its study again")
    return table


def recorded_sources(source: Source, seed: int) -> dict[str, Source]:
    """The sources of the arms of other runs that `source` replays, however indirectly, by their logs' `record`.

    As their config.toml tells; a folder without one is left out.
    """
    found: dict[str, Source] = {}
    waiting = [leaf for leaf in leaves(source) if isinstance(leaf, Log) and leaf.path is not None]
    while waiting:
        log = waiting.pop()
        folder = folder_of(log.record, seed)
        config = folder / "config.toml"
        if log.record in found or not config.is_file():
            continue
        table = _read_table(config, "arm").get("source")
        source = read_source(table if isinstance(table, dict) else {}, str(config))
        found[log.record] = replace_leaves(source, partial(_by_path, folder))
        waiting += [leaf for leaf in leaves(found[log.record]) if isinstance(leaf, Log)]
    return found


def _by_path(folder: Path, leaf: Source) -> Source:
    """A log of an arm beside that in `folder` as a log by path, and of its seed: nothing of this study is meant."""
    if not isinstance(leaf, Log):
        return leaf
    path = folder.parent.parent / leaf.arm / folder.name if leaf.arm else leaf.record.replace("{seed}", folder.name)
    return Log(path=str(path))


@dataclass(frozen=True)
class _Parts:
    """The Parquet parts of a record by the number of updates they end with."""

    folder: Path

    @cached_property
    def ends(self) -> list[int]:
        return sorted(int(path.stem) for path in (self.folder / "states").glob("*.parquet") if path.stem.isdecimal())

    def check(self) -> None:
        """Refuse a record without parts."""
        if not self.ends:
            raise UsageError(f"source 'log': {self.folder / 'states'} holds no states; was the record deleted?")

    @cached_property
    def _held(self) -> dict[int, dict[int, list[dict[str, Any]]]]:
        return {}

    def at(self, update: int) -> States:
        """The states of one update; the part that was read last is kept."""
        end = self.ends[bisect_right(self.ends, update)]
        if end not in self._held:
            self._held.clear()
            self._held[end] = self._read(self.folder / "states" / f"{end:06d}.parquet")
        if update not in self._held[end]:
            raise UsageError(
                f"source 'log': {self.folder / 'states'} has no states of update {update}; was a part of the record "
                "deleted? Train its arm again"
            )
        return states_of_rows(self._held[end][update])

    def _read(self, path: Path) -> dict[int, list[dict[str, Any]]]:
        """The rows of a part, by update."""
        try:
            rows = records.read_table(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these
            raise UsageError(f"source 'log': {path} cannot be read ({error}); train its arm again") from None
        by_step: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            if "group_id" not in row:
                raise UsageError(f"source 'log': {self.folder} was recorded by an older version; train it again")
            by_step.setdefault(row["step"], []).append(row)
        return by_step


def open_record(folder: Path, vocab_size: int) -> RecordedStates:
    """The states that the arm in `folder` recorded, checked against the hash in its train.json.

    Raises:
        UsageError: the record is missing, is not what was trained on, or holds tokens that the learner has not.
    """
    parts = _Parts(folder)
    parts.check()
    expected, found = str(records.read_json(folder / "train.json")["state_hash"]), FIRST_HASH
    for update in range(parts.ends[-1]):
        states = parts.at(update)
        found = chain_hash(found, states)
        if int(states.token_ids.max()) >= vocab_size:
            raise UsageError(f"source 'log': {folder} was recorded with another tokenizer; replay it on its own model")
    if found != expected:
        raise UsageError(
            f"source 'log': the states in {folder / 'states'} have hash {found[:12]}, but {expected[:12]} were trained "
            "on; the record was changed, so train its arm again"
        )
    return RecordedStates(parts.ends[-1], parts.at)
