"""The plan of a study: which jobs run, what each needs, and the fingerprint by which a finished one is recognised.

A job is (action, arm, seed). `train` needs the teacher's `train`; `evaluate` needs its own `train` and the base
model's `evaluate`, whose rollouts are what drift is measured against. The arm `base` is never trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from statewise.config.locations import Location
from statewise.config.study import ArmSection, StudyConfig
from statewise.drift import DISTANCES
from statewise.errors import UsageError, unknown
from statewise.kind import Kind
from statewise.plan.catalog import with_reward_metric
from statewise.plan.cells import check_cell, resolve
from statewise.plan.contract import check_factors, check_measures
from statewise.plan.digest import digest_data, digest_model
from statewise.plan.replay import check_rewarded, digest_record, recorded_sources
from statewise.policy.engine import ENGINES
from statewise.policy.find import count_parameters, has_weights
from statewise.registry import Registry
from statewise.states import Source
from statewise.states.pairs import read_pairs
from statewise.storage import records
from statewise.tasks.own_data import DataSection

BASE = "base"
# Raised when the meaning of a record or the arithmetic of the loop changes: finished jobs are then done again.
RECORD_VERSION = 4


@dataclass(frozen=True)
class Job:
    """One piece of work. `needs` are ids of jobs that must be done first."""

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
    """A checked study, and its jobs in an order in which they can run.

    `is_dry`: to be shown only, since the weights were not read; `download_bytes` of them are not on this machine, and
    `other_bytes` of the models from elsewhere.
    `task_code`: Python of task files that the user trusts (`tasks.task_file`); no part of the fingerprint, since
    without it nothing is computed at all.
    `model_files`: SHA-256 of the base model's files; `others`: folders of the models from elsewhere, by name, and
    `other_digests` of all their files, in a dry plan of their sizes.
    """

    config: StudyConfig
    model: Path
    jobs: tuple[Job, ...]
    fingerprint: str
    is_dry: bool = False
    download_bytes: int = 0
    other_bytes: dict[str, int] = field(default_factory=dict)
    task_code: tuple[str, ...] = ()
    model_files: dict[str, str] = field(default_factory=dict)
    others: dict[str, Path] = field(default_factory=dict)
    other_digests: dict[str, str] = field(default_factory=dict)

    @property
    def num_parameters(self) -> float:
        """Of the base model; of weights that are not here yet, at two bytes each, as most are published; 0: unknown."""
        return _count(self.model, self.download_bytes)

    @property
    def num_reward_parameters(self) -> float:
        """Of the model that rewards, as `num_parameters`; 0 where none does."""
        name = self.config.reward_model
        return self.num_parameters_of(name) if name in self.others else 0.0

    def num_parameters_of(self, name: str) -> float:
        """Of a model from elsewhere, as `num_parameters`."""
        return _count(self.others[name], self.other_bytes.get(name, 0))

    @property
    def arms(self) -> dict[str, ArmSection]:
        return self.config.arms

    @property
    def tasks(self) -> tuple[str, ...]:
        """Target and retention tasks, by name."""
        return (self.config.shared.target, *self.config.shared.retention)

    @property
    def reward(self) -> str:
        """By what an answer to the target is rewarded, in words."""
        shared, data = self.config.shared, self.config.data
        return f"{data.reward if data else shared.reward_metric or 'not known'} of {shared.target}"


def _count(folder: Path, missing_bytes: int) -> float:
    return sum(count_parameters(folder).values()) if has_weights(folder) or not missing_bytes else missing_bytes / 2


def make_plan(
    config: StudyConfig,
    model: Path,
    where: str | Location,
    *,
    is_dry: bool = False,
    others: Mapping[str, Path] = MappingProxyType({}),
) -> Plan:
    """Check every arm and lay out the jobs; needs neither torch nor a GPU.

    Args:
        config: the resolved study.
        model: folder of the base model; its files enter the fingerprints.
        where: the study file or where its keys stand, for errors.
        is_dry: leave the weights unread; such a plan cannot be run.
        others: folders of the models from elsewhere, by their name in the study.

    Raises:
        UsageError: an unknown or misconfigured source or signal, a teacher missing, unused or circular, arms that
            differ outside the declared factors, or a hypothesis about what is not measured.
    """
    location = where if isinstance(where, Location) else Location(Path(where))
    config = with_reward_metric(config, model)
    sources = {name: arm.source for name, arm in config.arms.items()}
    known = dict(sources)
    for name, arm in config.arms.items():
        with location.naming("arms", name, "source"):
            _check_records(name, sources, f"[arms.{name}]")
            for file in arm.source.pair_files:
                read_pairs(Path(file))
            known |= recorded_sources(arm.source, config.study.seeds[0])
            for seed in config.study.seeds:
                _digest_records(arm.source, seed, config)
    for name, arm in config.arms.items():
        told = f"[arms.{name}]"
        with location.naming("arms", name, "signal"):
            check_cell(arm, resolve(arm.source, known), told)
        with location.naming("arms", name, "teacher"):
            _check_teacher(arm, told)
        with location.naming("arms", name, "locality"):
            _check_memory(config, arm, told)
    order = _in_order(config, str(location.path))
    arms = {name: _resolve(config.arms[name]) for name in order}
    check_factors(arms, config.study.factors, location.of(["study", "factors"]))
    check_measures(config, location)
    inputs: dict[str, Any] = {
        "version": RECORD_VERSION,
        "model": digest_model(model, is_dry),
        "data": digest_data(Path(config.shared.data)) if config.shared.data else {},
        "shared": config.shared.model_dump(mode="json", exclude={"model", "data"}),
    }
    models = {name: records.digest_json(digest_model(folder, is_dry)) for name, folder in others.items()}
    if config.data:
        inputs["own_data"] = identity_of_data(config, config.data, models)
    if not is_dry:  # or the bytes are not known
        _check_rewarded(config, models)
    if config.tasks:
        inputs["own_tasks"] = config.own_tasks
    if distances := _digest_code((DISTANCES, name) for name in DISTANCES):
        inputs["distances"] = distances
    jobs: list[Job] = []
    for seed in config.study.seeds:
        jobs.extend(_jobs_of_seed(config, arms, seed, inputs, models))
    fingerprint = records.digest_json({**inputs, "arms": arms, **({"models": models} if models else {})})
    return Plan(
        config, model, tuple(jobs), fingerprint, is_dry, model_files=inputs["model"], others=dict(others),
        other_digests=models,
    )  # fmt: skip


def identity_of_data(config: StudyConfig, data: DataSection, models: dict[str, str]) -> dict[str, Any]:
    """What the study's own data mean; of a model that rewards, its bytes and how its logits become a reward."""
    return {**data.identity, **({"reward": told} if (told := config.rewarded_by(models)) else {})}


def _check_rewarded(config: StudyConfig, models: dict[str, str]) -> None:
    """Refuse to replay what another model rewarded than the one that rewards here."""
    paths = [path for arm in config.arms.values() for path in arm.source.replayed_paths]
    for path, seed in product(paths if config.reward_model else (), config.study.seeds):
        check_rewarded(path, seed, str(config.reward_model), config.rewarded_by(models))


def _resolve(arm: ArmSection) -> dict[str, Any]:
    """All of an arm that can change a number, with the defaults of its parts written out."""
    table = arm.model_dump(mode="json", exclude={"label", "levels"})
    return {
        **table,
        "signal": {"sum": table["signal"]} if isinstance(table["signal"], list) else table["signal"],
        "locality": {one.kind: one.model_dump(mode="json") for one in arm.locality},
    }


def _check_teacher(arm: ArmSection, location: str) -> None:
    """An arm has a teacher exactly where its cell uses one."""
    if arm.needs_teacher and arm.teacher is None:
        raise UsageError(f'{location}: {arm.cell} needs a teacher; add teacher = "<arm>"')
    if arm.teacher is not None and not arm.needs_teacher:
        raise UsageError(
            f"{location}: teacher {arm.teacher!r} is never asked by {arm.cell}; remove it, or use a signal such as "
            "'continuation' or 'reverse_kl'"
        )


def _check_memory(config: StudyConfig, arm: ArmSection, location: str) -> None:
    for one in arm.locality:
        if one.memory and not config.shared.retention:
            raise UsageError(
                f"{location}: locality {one.kind!r} remembers the retention tasks, and the study has none; name some "
                "in shared.retention, or use 'kl_to_base'"
            )


def _check_records(name: str, sources: dict[str, Source], location: str) -> None:
    """The arms that `name` replays are trained, and are others."""
    for arm in sources[name].replayed_arms:
        others = [other for other in sources if other != name]
        if arm in (name, BASE):
            reason = "an arm cannot replay itself" if arm == name else "the base model is not trained and has no record"
            raise UsageError(
                f"{location}: source 'log' of arm {arm!r}: {reason}; name another arm of the study "
                f"({', '.join(others) or 'there is none'}), or give the path of an arm of another run",
                ("arm",),
            )
        if arm not in sources:
            raise unknown("arm to replay", arm, others, location, ("arm",))


def _in_order(config: StudyConfig, where: str) -> list[str]:
    """Arms with their teachers, and the arms whose states they replay, before them."""
    needs = {name: {*arm.source.replayed_arms} for name, arm in config.arms.items()}
    for name, arm in config.arms.items():
        if arm.teacher in config.arms:
            needs[name].add(arm.teacher)
    order: list[str] = []
    while len(order) < len(needs):
        ready = [name for name in needs if name not in order and needs[name] <= set(order)]
        if not ready:
            waiting = ", ".join(name for name in needs if name not in order)
            raise UsageError(f"{where}: arms {waiting} wait for each other (teachers, replays); break the circle")
        order.extend(ready)
    return order


def _jobs_of_seed(
    config: StudyConfig, arms: dict[str, dict[str, Any]], seed: int, inputs: dict[str, Any], models: dict[str, str]
) -> list[Job]:
    """The jobs of one seed; `arms` are the resolved ones of `config`, those that others need first.

    `models`: digests of the models from elsewhere, by name.
    """
    base_fingerprint = records.digest_json({**inputs, "node": "evaluate", "arm": BASE, "seed": seed})
    base = Job("evaluate", BASE, seed, (), base_fingerprint)
    jobs, trained = [base], dict[str, str]()
    shared = inputs["shared"]
    target = {
        key: shared[key] for key in ("target", "reward_metric", "chat", "end_of_text", "device", "dtype", "sampler")
    }
    target["protocol"] = shared["protocol"].get(shared["target"])
    if config.data:
        target["own_data"] = inputs["own_data"]
    if shared["target"] in config.tasks:
        target["own_task"] = config.own_tasks[shared["target"]]
    if shared["too_long"] == "skip":  # then all are trained on the documents that fit every arm
        target["needs_gold"] = any(one.source.needs_gold for one in config.arms.values())
    for name, arm in arms.items():
        teacher = arm["teacher"]
        is_taught = teacher in config.arms
        replayed = config.arms[name].source.replayed_arms
        trained[name] = records.digest_json(
            {
                "version": inputs["version"],
                "model": inputs["model"],
                "data": inputs["data"],
                "target": target,
                "arm": {key: value for key, value in arm.items() if key != "teacher"},
                # An arm's randomness derives from its name, so that arms of equal configuration are replicates.
                "name": name,
                "teacher": trained[teacher] if is_taught else models.get(teacher, teacher),
                "seed": seed,
                **_outside(config, name, {other: trained[other] for other in replayed}, seed),
            }
        )
        needs = tuple(
            f"train:{other}:{seed}" for other in dict.fromkeys([*([teacher] if is_taught else []), *replayed])
        )
        jobs.append(Job("train", name, seed, needs, trained[name]))
        evaluated = records.digest_json({"train": trained[name], "base": base_fingerprint})
        jobs.append(Job("evaluate", name, seed, (f"train:{name}:{seed}", base.id), evaluated))
    return jobs


def _digest_code(things: Iterable[tuple[Registry[Any], str]]) -> dict[str, str]:
    """The digests of the code of those that come from other packages."""
    digests = {f"{registry.what} {name}": registry.code_digest(name) for registry, name in things}
    return {name: digest for name, digest in digests.items() if digest}


def _digest_records(source: Source, seed: int, config: StudyConfig) -> dict[str, str]:
    """The hashes of the records of other runs that `source` replays, by path."""
    return {path: digest_record(path, seed, config) for path in source.replayed_paths}


def _outside(config: StudyConfig, name: str, replayed: dict[str, str], seed: int) -> dict[str, Any]:
    """What an arm's training depends on beside its own table: only where it does, so that others keep their print."""
    arm, shared = config.arms[name], config.shared.model_dump(mode="json")
    remembers = any(one.memory for one in arm.locality)
    kinds: list[Kind] = [
        arm.source, *arm.source.leaves, *(one.signal for one in arm.signal), *arm.locality, arm.adapter,
    ]  # fmt: skip
    outside: dict[str, Any] = {
        "code": _digest_code([*((one.registry, one.kind) for one in kinds), (ENGINES, shared["sampler"])]),
        "replayed": replayed,
        "records": _digest_records(arm.source, seed, config),
        "pairs": {path: records.digest_file(Path(path)) for path in arm.source.pair_files},
        "retention": {task: shared["protocol"].get(task) for task in shared["retention"]} if remembers else {},
        "own_tasks": {t: config.own_tasks[t] for t in shared["retention"] if t in config.tasks} if remembers else {},
    }
    return {key: value for key, value in outside.items() if value}
