"""A side of a comparison, read from records: a folder of `statewise eval`, or an arm of a run.

Light, so that a mistyped folder, arm or seed is answered at once; the arithmetic is in `compare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from statewise.errors import UsageError
from statewise.folder.item_scores import Scores
from statewise.folder.run_folder import RunFolder, is_older, open_run, read_object
from statewise.logs.find import read_log
from statewise.models.evaluation import HEADER, checked_scores
from statewise.models.model_folder import Origin, origin_of_arm
from statewise.plan.dag import BASE

SOLE = -1  # stands for the seed of a model that has none
UNKNOWN = ""  # the protocol of a log that does not say how it was asked


@dataclass(frozen=True)
class Side:
    """One side of a comparison. `scores`: per seed; `protocols` and `digests`: per task, all values over the seeds.

    `devices`: on what and in which precision it was computed, where that was recorded. `is_older`: recorded without
    digests of the files, so that nothing tells whether they changed. `is_log`: of another tool, so that items are
    paired one by one; `notes` and `refused` are what it says of itself, and scores in it that cannot be compared.
    """

    label: str
    scores: dict[int, Scores]
    protocols: dict[str, set[str]]
    digests: dict[str, set[str]]
    origin: Origin
    weights_sha256: str = ""
    target: str = ""
    devices: frozenset[str] = frozenset()
    is_older: bool = False
    is_log: bool = False
    notes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.scores)

    @property
    def tasks(self) -> list[str]:
        """Tasks that every seed was evaluated on."""
        first, *others = [dict.fromkeys(column.task for column in scores) for scores in self.scores.values()]
        return [task for task in first if all(task in other for other in others)]


def read_side(text: str) -> Side:
    """A folder of `statewise eval`, `RUN:ARM` (all its seeds), `RUN:ARM:SEED`, or logs of lm-eval or inspect.

    Raises:
        UsageError: none of them, or nothing was evaluated there.
    """
    folder = Path(text)
    if (folder / HEADER).is_file():
        return _read_evaluation(folder)
    if arm := find_arm(text):
        return _read_arm(*arm, text)
    if log := read_log(folder):
        protocols = {task: {protocol} for task, protocol in log.protocols.items()}
        digests = {task: {"item by item"} for task in log.protocols}
        return Side(
            text, {SOLE: log.scores}, protocols, digests, Origin(), is_log=True, notes=log.notes, refused=log.refused
        )
    if (folder / "plan.json").is_file():
        raise UsageError(
            f"{text}: a run folder; say which arm, {text}:ARM, ARM one of {', '.join(open_run(folder).arms)}"
        )
    what = f"no {HEADER}, samples_*.jsonl or *.eval there" if folder.is_dir() else "no such folder"
    raise UsageError(
        f"{text}: {what}; give a folder of `statewise eval`, RUN:ARM or RUN:ARM:SEED, or logs: what lm-eval wrote with "
        "--log_samples, or inspect's .eval"
    )


def find_arm(text: str) -> tuple[RunFolder, str, list[int]] | None:
    """The run, the arm and its seeds that `RUN:ARM` or `RUN:ARM:SEED` names; None where RUN is no folder.

    Raises:
        UsageError: no run folder, or one without that arm or seed.
    """
    parts = text.split(":")
    for count in (1, 2):
        folder = Path(":".join(parts[:-count]))
        if len(parts) > count and folder.is_dir():
            run, arm, seed = open_run(folder), parts[-count], parts[-1]
            run.check_arm(arm)
            if count == 1:
                return run, arm, list(run.config.study.seeds)
            if not seed.isdigit():
                raise UsageError(f"{text}: seed {seed!r} is not a number; write RUN:ARM or RUN:ARM:SEED")
            run.check_seed(int(seed))
            return run, arm, [int(seed)]
    return None


def _read_evaluation(folder: Path) -> Side:
    stored = read_object(folder / HEADER)
    scores = checked_scores(folder, stored)
    model, tasks = stored.get("model", {}), stored.get("tasks", {})
    if not tasks:
        raise UsageError(f"{folder}: no task was evaluated yet; run the same `statewise eval` again")
    origin = Origin(
        arm=model.get("arm", ""),
        base_name=model.get("base_model", ""),
        base_sha256=model.get("base_weights_sha256", ""),
        retention=tuple(model.get("retention", ())),
    )
    return Side(
        label=str(folder),
        scores={SOLE: scores},
        protocols={task: {record["protocol"]} for task, record in tasks.items()},
        digests={task: {record["items_sha256"]} for task, record in tasks.items()},
        origin=origin,
        weights_sha256=model.get("weights_sha256", ""),
        target=stored.get("settings", {}).get("target", ""),
        devices=frozenset(record["device"] for record in tasks.values() if "device" in record),
        is_older=any("sha256" not in record for record in tasks.values()),
    )


def _read_arm(run: RunFolder, arm: str, seeds: list[int], label: str) -> Side:
    done = {seed: run.record(arm, seed, "evaluate") for seed in seeds}
    evaluated = {seed: record for seed, record in done.items() if record.get("status") == "evaluated"}
    if not evaluated:
        trained = [run.record(arm, seed, "train") for seed in seeds]
        reasons = [str(record["reason"]) for record in (*trained, *done.values()) if record.get("reason")]
        why = reasons[0] if reasons else "continue the run with the command that began it"
        raise UsageError(f"{label}: arm {arm!r} was evaluated in none of seeds {', '.join(map(str, seeds))}: {why}")
    protocols: dict[str, set[str]] = {}
    digests: dict[str, set[str]] = {}
    for record in evaluated.values():
        for into, key in ((protocols, "protocols"), (digests, "items_sha256")):
            for task, value in record.get(key, {}).items():
                into.setdefault(task, set()).add(value)
    scores = {seed: run.scores(arm, seed) for seed in evaluated}
    older = any(is_older(record) for record in evaluated.values())
    origin = origin_of_arm(run, arm)
    weights = origin.base_sha256 if arm == BASE else ""
    devices = frozenset(record["device"] for record in evaluated.values() if "device" in record)
    return Side(label, scores, protocols, digests, origin, weights, run.config.shared.target, devices, older)
