"""The plan of a study: which nodes run, what each needs, and the fingerprint by which a finished one is recognised.

A node is (action, arm, seed). `train` needs the teacher's `train`; `evaluate` needs its own `train` and the base
model's `evaluate`, whose rollouts are what drift is measured against. The arm `base` is never trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from statewise import records
from statewise.component import component, describe
from statewise.config import ArmSection, StudyConfig
from statewise.errors import UsageError, unknown
from statewise.locality import LOCALITIES, Locality
from statewise.place import Place
from statewise.policy.find import count_parameters
from statewise.signals import WeightedSignal, read_signals
from statewise.states import Source, leaves, read_source
from statewise.states.dataset import Dataset
from statewise.states.log import Log
from statewise.states.pairs import read_pairs
from statewise.study.cells import check_cell, resolve
from statewise.study.contract import check_factors, check_measures
from statewise.study.digest import digest_data, digest_model
from statewise.study.recorded import digest_record, recorded_sources

BASE = "base"
# Raised when the meaning of a record or the arithmetic of the loop changes: finished nodes are then done again.
RECORD_VERSION = 4


@dataclass(frozen=True)
class Node:
    """One piece of work. `needs` are ids of nodes that must be done first."""

    action: Literal["train", "evaluate"]
    arm: str
    seed: int
    needs: tuple[str, ...]
    fingerprint: str

    @property
    def id(self) -> str:
        return f"{self.action}:{self.arm}:{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A checked study: its arms' sources, signals and localities, and its nodes in an order in which they can run.

    `is_dry`: to be shown only, since the weights were not read; `download_bytes` of them are not on this machine.
    `task_code`: Python of task files that the user trusts (`tasks.task_file`); no part of the fingerprint, since
    without it nothing is computed at all.
    `model_files`: SHA-256 of the base model's files.
    """

    config: StudyConfig
    model: Path
    sources: dict[str, Source]
    signals: dict[str, tuple[WeightedSignal, ...]]
    localities: dict[str, tuple[Locality, ...]]
    nodes: tuple[Node, ...]
    fingerprint: str
    is_dry: bool = False
    download_bytes: int = 0
    task_code: tuple[str, ...] = ()
    model_files: dict[str, str] = field(default_factory=dict)

    @property
    def num_parameters(self) -> float:
        """Of the base model; of weights that are not here yet, at two bytes each, as most are published; 0: unknown."""
        return sum(count_parameters(self.model).values()) or self.download_bytes / 2

    def needs_base(self, arm: str) -> bool:
        """Whether the base model writes for an arm, or its law is compared with."""
        wants = {need for one in self.signals[arm] for need in one.signal.needs}
        return (
            self.sources[arm].needs_base
            or any(one.needs_base for one in self.localities[arm])
            or any(need.startswith("base_") for need in wants)
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Target and retention tasks, by name."""
        return (self.config.shared.target, *self.config.shared.retention)


def make_plan(config: StudyConfig, model: Path, where: str | Place, *, is_dry: bool = False) -> Plan:
    """Check every arm and lay out the nodes; needs neither torch nor a GPU.

    Args:
        config: the resolved study.
        model: folder of the base model; its files enter the fingerprints.
        where: the study file or where its keys stand, for errors.
        is_dry: leave the weights unread; such a plan cannot be run.

    Raises:
        UsageError: an unknown or misconfigured source or signal, a teacher missing, unused or circular, arms that
            differ outside the declared factors, or a claim about what is not measured.
    """
    place = where if isinstance(where, Place) else Place(Path(where))
    sources, signals, localities = {}, {}, {}
    for name, arm in config.arms.items():
        told = f"[arms.{name}]"
        with place.naming("arms", name, "source"):
            sources[name] = read_source(arm.source, told)
        with place.naming("arms", name, "signal"):
            signals[name] = read_signals(arm.signal, told)
        with place.naming("arms", name, "locality"):
            localities[name] = _read_localities(arm, told)
    known = dict(sources)
    for name, source in sources.items():
        with place.naming("arms", name, "source"):
            _check_records(name, sources, f"[arms.{name}]")
            _check_pairs(source)
            known |= recorded_sources(source, config.study.seeds[0])
            for seed in config.study.seeds:
                _digest_records(source, seed, config.shared.model_dump(mode="json"))
    for name, arm in config.arms.items():
        told = f"[arms.{name}]"
        with place.naming("arms", name, "signal"):
            check_cell(resolve(sources[name], known), signals[name], told)
        with place.naming("arms", name, "teacher"):
            _check_teacher(arm, sources[name], signals[name], told)
        with place.naming("arms", name, "locality"):
            _check_memory(config, localities[name], told)
    order = _in_order(config, sources, str(place.path))
    arms = {name: _resolve(config.arms[name], sources[name], signals[name], localities[name]) for name in order}
    check_factors(arms, config.study.factors, place.of(["study", "factors"]))
    check_measures(config, place)
    inputs: dict[str, Any] = {
        "version": RECORD_VERSION,
        "model": digest_model(model, is_dry),
        "data": digest_data(Path(config.shared.data)) if config.shared.data else {},
        "shared": config.shared.model_dump(mode="json", exclude={"model", "data"}),
    }
    nodes: list[Node] = []
    for seed in config.study.seeds:
        nodes.extend(_nodes_of_seed(arms, sources, seed, inputs))
    fingerprint = records.digest_json({**inputs, "arms": arms})
    return Plan(
        config, model, sources, signals, localities, tuple(nodes), fingerprint, is_dry, model_files=inputs["model"]
    )  # fmt: skip


def _read_localities(arm: ArmSection, place: str) -> tuple[Locality, ...]:
    """The localities of an arm, at most one of a kind.

    Raises:
        UsageError: an unknown or misconfigured one, or the same kind twice.
    """
    tables = arm.locality if isinstance(arm.locality, list) else [arm.locality]
    read = tuple(component(LOCALITIES, table, "locality", place) for table in tables)
    kinds = [one.kind for one in read]
    if twice := [kind for index, kind in enumerate(kinds) if kind in kinds[:index]]:
        raise UsageError(f"{place}: locality {twice[0]!r} is given twice; give it once")
    return read


def _resolve(
    arm: ArmSection, source: Source, signals: tuple[WeightedSignal, ...], localities: tuple[Locality, ...]
) -> dict[str, Any]:
    """All of an arm that can change a number, with the defaults of its parts written out."""
    weighted = [{**describe(one.signal), "weight": one.weight} for one in signals]
    return {
        **arm.model_dump(mode="json", exclude={"label", "levels"}),
        "source": describe(source),
        "signal": describe(signals[0].signal) if _is_plain(signals) else {"sum": weighted},
        "locality": {one.kind: describe(one) for one in localities},
    }


def _is_plain(signals: tuple[WeightedSignal, ...]) -> bool:
    return len(signals) == 1 and signals[0].weight == 1


def _check_teacher(arm: ArmSection, source: Source, signals: tuple[WeightedSignal, ...], place: str) -> None:
    """An arm has a teacher exactly where its cell uses one."""
    kinds = " + ".join(one.signal.kind for one in signals)
    uses_teacher = source.needs_teacher or any(one.signal.needs_teacher for one in signals)
    if uses_teacher and arm.teacher is None:
        raise UsageError(
            f'{place}: source {source.kind!r} with signal {kinds!r} needs a teacher; add teacher = "<arm>"'
        )
    if arm.teacher is not None and not uses_teacher:
        raise UsageError(
            f"{place}: teacher {arm.teacher!r} is never asked by source {source.kind!r} with signal {kinds!r}; "
            "remove it, or use a signal such as 'continuation' or 'reverse_kl'"
        )


def _check_memory(config: StudyConfig, localities: tuple[Locality, ...], place: str) -> None:
    for one in localities:
        if one.needs_memory and not config.shared.retention:
            raise UsageError(
                f"{place}: locality {one.kind!r} remembers the retention tasks, and the study has none; name some in "
                "shared.retention, or use 'kl_to_base'"
            )


def recorded_arms(source: Source) -> list[str]:
    """Arms of the same study whose states `source` replays."""
    return [leaf.arm for leaf in leaves(source) if isinstance(leaf, Log) and leaf.arm is not None]


def _check_records(name: str, sources: dict[str, Source], place: str) -> None:
    """The arms that `name` replays are trained, and are others."""
    for arm in recorded_arms(sources[name]):
        others = [other for other in sources if other != name]
        if arm in (name, BASE):
            reason = "an arm cannot replay itself" if arm == name else "the base model is not trained and has no record"
            raise UsageError(
                f"{place}: source 'log' of arm {arm!r}: {reason}; name another arm of the study "
                f"({', '.join(others) or 'there is none'}), or give the path of an arm of another run",
                ("arm",),
            )
        if arm not in sources:
            raise unknown("arm to replay", arm, others, place, ("arm",))


def _check_pairs(source: Source) -> None:
    for leaf in leaves(source):
        if isinstance(leaf, Dataset) and leaf.pairs is not None:
            read_pairs(Path(leaf.pairs))


def _in_order(config: StudyConfig, sources: dict[str, Source], where: str) -> list[str]:
    """Arms with their teachers, and the arms whose states they replay, before them."""
    needs = {name: {*recorded_arms(sources[name])} for name in config.arms}
    for name, arm in config.arms.items():
        if arm.teacher is not None and arm.teacher != BASE:
            needs[name].add(arm.teacher)
    order: list[str] = []
    while len(order) < len(needs):
        ready = [name for name in needs if name not in order and needs[name] <= set(order)]
        if not ready:
            waiting = ", ".join(name for name in needs if name not in order)
            raise UsageError(f"{where}: arms {waiting} wait for each other (teachers, replays); break the circle")
        order.extend(ready)
    return order


def _nodes_of_seed(
    arms: dict[str, dict[str, Any]], sources: dict[str, Source], seed: int, inputs: dict[str, Any]
) -> list[Node]:
    """The nodes of one seed; `arms` are resolved, those that others need first."""
    base_fingerprint = records.digest_json({**inputs, "node": "evaluate", "arm": BASE, "seed": seed})
    base = Node("evaluate", BASE, seed, (), base_fingerprint)
    nodes, trained = [base], dict[str, str]()
    shared = inputs["shared"]
    target = {
        key: shared[key] for key in ("target", "reward_metric", "chat", "end_of_text", "device", "dtype", "sampler")
    }
    target["protocol"] = shared["protocol"].get(shared["target"])
    if shared["too_long"] == "skip":  # then all are trained on the documents that fit every arm
        target["needs_gold"] = any(source.needs_gold for source in sources.values())
    for name, arm in arms.items():
        teacher = arm["teacher"]
        is_taught = teacher not in (None, BASE)
        replayed = recorded_arms(sources[name])
        trained[name] = records.digest_json(
            {
                "version": inputs["version"],
                "model": inputs["model"],
                "data": inputs["data"],
                "target": target,
                "arm": {key: value for key, value in arm.items() if key != "teacher"},
                # An arm's randomness derives from its name, so that arms of equal configuration are replicates.
                "name": name,
                "teacher": trained[teacher] if is_taught else teacher,
                "seed": seed,
                **_outside(arm, sources[name], {other: trained[other] for other in replayed}, seed, shared),
            }
        )
        needs = tuple(
            f"train:{other}:{seed}" for other in dict.fromkeys([*([teacher] if is_taught else []), *replayed])
        )
        nodes.append(Node("train", name, seed, needs, trained[name]))
        evaluated = records.digest_json({"train": trained[name], "base": base_fingerprint})
        nodes.append(Node("evaluate", name, seed, (f"train:{name}:{seed}", base.id), evaluated))
    return nodes


def _digest_records(source: Source, seed: int, shared: dict[str, Any]) -> dict[str, str]:
    """The hashes of the records of other runs that `source` replays, by path."""
    paths = [leaf.path for leaf in leaves(source) if isinstance(leaf, Log) and leaf.path is not None]
    return {path: digest_record(path, seed, shared) for path in paths}


def _outside(
    arm: dict[str, Any], source: Source, replayed: dict[str, str], seed: int, shared: dict[str, Any]
) -> dict[str, Any]:
    """What an arm's training depends on beside its own table: only where it does, so that others keep their print."""
    pairs = [leaf.pairs for leaf in leaves(source) if isinstance(leaf, Dataset) and leaf.pairs is not None]
    remembers = {kind for kind in arm["locality"] if LOCALITIES[kind].needs_memory}
    outside: dict[str, Any] = {
        "replayed": replayed,
        "records": _digest_records(source, seed, shared),
        "pairs": {path: records.digest_file(Path(path)) for path in pairs},
        "retention": {task: shared["protocol"].get(task) for task in shared["retention"]} if remembers else {},
    }
    return {key: value for key, value in outside.items() if value}
