"""The states that an arm recorded, found, checked and read for a source that replays them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from statewise.batch import States, states_of_rows
from statewise.config.refusals import read_kind
from statewise.config.study import StudyConfig
from statewise.errors import DamagedError, UsageError
from statewise.states import RecordedStates, Source
from statewise.storage import integrity, records
from statewise.storage.integrity import is_there
from statewise.storage.parsing import parse_toml
from statewise.storage.state_records import FIRST_HASH, chain_hash, chain_rewards
from statewise.tasks.own_data import DataSection
from statewise.tasks.own_file import TaskSection

REWARDED_BY = "rewarded_by"  # in train.json: the digest of the reward model and of how it is read


def folder_of(path: str, seed: int) -> Path:
    """The folder of one arm and seed that a log's `path` names; `{seed}` in it stands for the seed."""
    return Path(path.replace("{seed}", str(seed)))


def digest_record(path: str, seed: int, config: StudyConfig) -> str:
    """The hash of the states that an arm of another run recorded, with their rewards.

    Args:
        path: the arm's folder.
        seed: what `{seed}` in it stands for.
        config: the study that replays it.

    Raises:
        UsageError: no such arm, one that was not trained to its end, or one of another target task or reward metric,
            whose documents and rewards would then not mean the same.
    """
    folder = folder_of(path, seed)
    trained = _read_trained(folder, seed)
    _Parts(folder, trained["files"]).check()
    told = {name: digest for name, digest in trained["files"].items() if name == "config.toml"}
    integrity.refuse(folder, integrity.faults_of(folder, told), "the record cannot be trusted; train its arm again")
    study = folder.parent.parent.parent / "study.toml"
    if study.is_file():
        _check_target(folder, study, config)
    return records.digest_json([trained["state_hash"], trained["reward_hash"]])


def _check_target(folder: Path, study: Path, config: StudyConfig) -> None:
    """The documents and rewards of the record are those of `config`."""
    theirs = _read_table(study, "shared")
    for key in ("target", "reward_metric"):
        if theirs.get(key) != (ours := getattr(config.shared, key)):
            raise UsageError(
                f"source 'log': {folder} was trained with {key} {theirs.get(key)!r}, but this study has {ours!r}"
            )
    own = _read_table(study, "tasks", {}).get(config.shared.target)
    try:
        task = TaskSection.model_validate(own).identity if own else None
        data = DataSection.model_validate(_read_table(study, "data")) if config.data else None
    except ValidationError:
        told = "its [data] or [tasks] is none"
        raise UsageError(f"source 'log': {study} is damaged ({told}); train its study again") from None
    if task != config.own_tasks.get(config.shared.target):
        told = f"another task {config.shared.target!r} than that of this study"
        raise UsageError(f"source 'log': {folder} was trained on {told}, see {study}")
    if data and config.data and data.identity != config.data.identity:
        raise UsageError(f"source 'log': {folder} was trained on another [data] than that of this study, see {study}")


def check_rewarded(path: str, seed: int, name: str, identity: str) -> None:
    """Refuse the record of an arm (`path`, `seed`: as in `digest_record`) that another reward model rewarded.

    `name`: of the model below `[models]`; `identity`: `rewarded_by` of this study.
    """
    folder = folder_of(path, seed)
    if _read_trained(folder, seed).get(REWARDED_BY) != identity:
        raise UsageError(
            f"source 'log': {folder} was rewarded by another model than [models.{name}] is now, or its label or range "
            "is another; train its arm again"
        )


def _read_trained(folder: Path, seed: int) -> dict[str, Any]:
    """The folder's train.json.

    Raises:
        UsageError: there is none of a trained arm; says which of the ways to it was missed.
    """
    result, trained, is_sealed = folder / "train.json", dict[str, Any](), False
    if is_there(result):
        try:
            trained, is_sealed = integrity.read_either(result)
        except DamagedError as error:
            raise UsageError(f"source 'log': {error}; train its arm again") from None
    if "state_hash" in trained and not (is_sealed and "reward_hash" in trained):
        raise UsageError(
            f"source 'log': {folder} was recorded by an older version, without digests of its files; train it again"
        )
    if "state_hash" in trained:
        return trained
    if trained:
        why = f"its arm is {trained.get('status')!r}: {trained.get('reason', 'no reason given')}"
    elif (folder / "started.json").is_file():
        why = "its training has not ended; run its study again"
    elif folder.parent.is_dir() and (seeds := sorted(path.name for path in folder.parent.iterdir() if path.is_dir())):
        why = f"{folder.parent} has {', '.join(seeds)}; this study asks for seed {seed}"
    else:
        why = "there is no such folder; give that of an arm and seed, e.g. runs/pocket/arms/rl/{seed}"
    raise UsageError(f"source 'log': {folder} holds no trained arm: {why}")


def _read_table(path: Path, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The table `name` of a TOML file; `default` where it has none."""
    try:
        table = parse_toml(path.read_text(encoding="utf-8")).get(name, default)
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
    waiting = [*source.replayed_paths]
    while waiting:
        path = waiting.pop()
        folder = folder_of(path, seed)
        config = folder / "config.toml"
        if path in found or not config.is_file():
            continue
        recorded = read_kind(Source, _read_table(config, "arm").get("source"), str(config))
        found[path] = recorded.with_leaves(lambda leaf, folder=folder: leaf.from_outside(folder))
        waiting += found[path].replayed_paths
    return found


@dataclass(frozen=True)
class _Parts:
    """The Parquet parts of a record by the number of updates they end with; `files`: their SHA-256, of train.json."""

    folder: Path
    files: Mapping[str, str]

    @cached_property
    def names(self) -> dict[int, str]:
        """By end, ascending."""
        names = [name for name in self.files if name.startswith("states/")]
        return {int(Path(name).stem): name for name in sorted(names)}

    @cached_property
    def ends(self) -> list[int]:
        return [*self.names]

    def check(self) -> None:
        """Refuse a record without parts."""
        if not self.ends or not (self.folder / "states").is_dir():
            raise UsageError(f"source 'log': {self.folder / 'states'} holds no states; was the record deleted?")

    @cached_property
    def _held(self) -> dict[int, dict[int, list[dict[str, Any]]]]:
        return {}

    def at(self, update: int) -> States:
        """The states of one update; the part that was read last is kept."""
        end = self.ends[bisect_right(self.ends, update)]
        if end not in self._held:
            self._held.clear()
            self._held[end] = self._read(self.names[end])
        if update not in self._held[end]:
            raise UsageError(
                f"source 'log': {self.folder / 'states'} has no states of update {update}; was a part of the record "
                "deleted? Train its arm again"
            )
        return states_of_rows(self._held[end][update])

    def _read(self, name: str) -> dict[int, list[dict[str, Any]]]:
        """The rows of a part, by update."""
        faults = integrity.faults_of(self.folder, {name: self.files[name]})
        integrity.refuse(self.folder, faults, "it is a record that is replayed, so train its arm again")
        by_step: dict[int, list[dict[str, Any]]] = {}
        for row in records.read_table(self.folder / name):
            by_step.setdefault(row["step"], []).append(row)
        return by_step


def open_record(folder: Path, vocab_size: int) -> RecordedStates:
    """The states that the arm in `folder` recorded, checked against the digests and hashes in its train.json.

    Raises:
        UsageError: the record is missing, is not what was trained on, or holds tokens that the learner has not.
    """
    trained = _read_trained(folder, int(folder.name) if folder.name.isdecimal() else 0)
    parts = _Parts(folder, trained["files"])
    parts.check()

    def check_vocabulary(states: States) -> None:
        if int(states.token_ids.max()) >= vocab_size:
            raise UsageError(f"source 'log': {folder} was recorded with another tokenizer; replay it on its own model")

    state_hash, reward_hash = _hashes(parts, check_vocabulary)
    if (state_hash, reward_hash) != (trained["state_hash"], trained["reward_hash"]):
        raise UsageError(
            f"source 'log': the states in {folder / 'states'} have hash {state_hash[:12]}, rewards {reward_hash[:12]}, "
            f"but {trained['state_hash'][:12]}, rewards {trained['reward_hash'][:12]} were trained on; the record was "
            "changed, so train its arm again"
        )
    return RecordedStates(parts.ends[-1], parts.at)


def hashes_of_record(folder: Path, files: Mapping[str, str]) -> tuple[str, str]:
    """The running hashes of states and rewards, from the parts in `folder` that `files` of train.json names."""
    return _hashes(_Parts(folder, files), lambda states: None)


def _hashes(parts: _Parts, check: Callable[[States], None]) -> tuple[str, str]:
    state_hash = reward_hash = FIRST_HASH
    for update in range(parts.ends[-1] if parts.ends else 0):
        states = parts.at(update)
        check(states)
        state_hash, reward_hash = chain_hash(state_hash, states), chain_rewards(reward_hash, states)
    return state_hash, reward_hash
