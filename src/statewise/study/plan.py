"""The plan of a study: which nodes run, what each needs, and the fingerprint by which a finished one is recognised.

A node is (action, arm, seed). `train` needs the teacher's `train`; `evaluate` needs its own `train` and the base
model's `evaluate`, whose rollouts are what drift is measured against. The arm `base` is never trained.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from statewise import records
from statewise.config import ArmSection, StudyConfig, component
from statewise.errors import UsageError
from statewise.policy.find import count_parameters
from statewise.signals import SIGNALS
from statewise.signals.signal import Signal
from statewise.states import SOURCES
from statewise.states.source import Source
from statewise.study.contract import check_factors, check_measures
from statewise.study.digest import digest_data, digest_model

BASE = "base"
# Raised when the meaning of a record or the arithmetic of the loop changes: finished nodes are then done again.
RECORD_VERSION = 1


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
    """A checked study: its arms' sources and signals, and its nodes in an order in which they can run.

    `is_dry`: to be shown only, since the weights were not read; `download_bytes` of them are not on this machine.
    """

    config: StudyConfig
    model: Path
    sources: dict[str, Source]
    signals: dict[str, Signal]
    nodes: tuple[Node, ...]
    fingerprint: str
    is_dry: bool = False
    download_bytes: int = 0

    @property
    def num_parameters(self) -> float:
        """Of the base model; of weights that are not here yet, at two bytes each, as most are published; 0: unknown."""
        return sum(count_parameters(self.model).values()) or self.download_bytes / 2

    @property
    def tasks(self) -> tuple[str, ...]:
        """Target and retention tasks, by name."""
        return (self.config.shared.target, *self.config.shared.retention)


def make_plan(config: StudyConfig, model: Path, where: str, *, is_dry: bool = False) -> Plan:
    """Check every arm and lay out the nodes; needs neither torch nor a GPU.

    Args:
        config: the resolved study.
        model: folder of the base model; its files enter the fingerprints.
        where: the study file, for errors.
        is_dry: leave the weights unread; such a plan cannot be run.

    Raises:
        UsageError: an unknown or misconfigured source or signal, a teacher missing, unused or circular, arms that
            differ outside the declared factors, or a claim about what is not measured.
    """
    sources, signals = {}, {}
    for name, arm in config.arms.items():
        place = f"{where}: [arms.{name}]"
        source: Source = component(SOURCES, arm.source, "source", place)
        signal: Signal = component(SIGNALS, arm.signal, "signal", place)
        sources[name], signals[name] = source, signal
        _check_arm(arm, source, signal, place)
    arms = {name: _resolve(config.arms[name], sources[name], signals[name]) for name in _teachers_first(config, where)}
    check_factors(arms, config.study.factors, where)
    check_measures(config, where)
    inputs: dict[str, Any] = {
        "version": RECORD_VERSION,
        "model": digest_model(model, is_dry),
        "data": digest_data(Path(config.shared.data)) if config.shared.data else {},
        "shared": config.shared.model_dump(mode="json", exclude={"model", "data"}),
    }
    nodes: list[Node] = []
    for seed in config.study.seeds:
        nodes.extend(_nodes_of_seed(arms, seed, inputs))
    fingerprint = records.digest_json({**inputs, "arms": arms})
    return Plan(config, model, sources, signals, tuple(nodes), fingerprint, is_dry)


def _resolve(arm: ArmSection, source: Source, signal: Signal) -> dict[str, Any]:
    """All of an arm that can change a number, with the defaults of source and signal written out."""
    return {
        **arm.model_dump(mode="json", exclude={"label", "levels"}),
        "source": {"kind": source.kind, **asdict(source)},  # type: ignore[call-overload]
        "signal": {"kind": signal.kind, **asdict(signal)},  # type: ignore[call-overload]
    }


def _check_arm(arm: ArmSection, source: Source, signal: Signal, place: str) -> None:
    """An arm has a teacher exactly where its cell uses one."""
    uses_teacher = source.needs_teacher or signal.needs_teacher
    if uses_teacher and arm.teacher is None:
        raise UsageError(
            f'{place}: source {source.kind!r} with signal {signal.kind!r} needs a teacher; add teacher = "<arm>"'
        )
    if arm.teacher is not None and not uses_teacher:
        raise UsageError(
            f"{place}: teacher {arm.teacher!r} is never asked by source {source.kind!r} with signal {signal.kind!r}; "
            "remove it, or use a signal such as 'continuation' or 'reverse_kl'"
        )
    if signal.kind == "reward" and arm.source.get("top_p", 1.0) < 1:
        raise UsageError(
            f"{place}: signal 'reward' weighs actions by the policy's whole law, but top_p < 1 samples from a cut one; "
            "remove top_p from the source"
        )
    if signal.kind == "reward" and source.samples_per_prompt < 2:
        raise UsageError(
            f"{place}: signal 'reward' compares the answers to one prompt, so it needs samples_per_prompt >= 2; "
            "set it in the rollout source"
        )


def _teachers_first(config: StudyConfig, where: str) -> list[str]:
    order: list[str] = []
    waiting = dict(config.arms)
    while waiting:
        ready = [name for name, arm in waiting.items() if arm.teacher in (None, BASE) or arm.teacher in order]
        if not ready:
            raise UsageError(f"{where}: arms {', '.join(waiting)} are each other's teachers; break the circle")
        order.extend(ready)
        for name in ready:
            del waiting[name]
    return order


def _nodes_of_seed(arms: dict[str, dict[str, Any]], seed: int, inputs: dict[str, Any]) -> list[Node]:
    """The nodes of one seed; `arms` are resolved, teachers first."""
    base_fingerprint = records.digest_json({**inputs, "node": "evaluate", "arm": BASE, "seed": seed})
    base = Node("evaluate", BASE, seed, (), base_fingerprint)
    nodes, trained = [base], dict[str, str]()
    shared = inputs["shared"]
    target = {
        key: shared[key] for key in ("target", "reward_metric", "chat", "end_of_text", "device", "dtype", "sampler")
    }
    target["protocol"] = shared["protocol"].get(shared["target"])
    for name, arm in arms.items():
        teacher = arm["teacher"]
        is_taught = teacher not in (None, BASE)
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
            }
        )
        needs = (f"train:{teacher}:{seed}",) if is_taught else ()
        nodes.append(Node("train", name, seed, needs, trained[name]))
        evaluated = records.digest_json({"train": trained[name], "base": base_fingerprint})
        nodes.append(Node("evaluate", name, seed, (f"train:{name}:{seed}", base.id), evaluated))
    return nodes
