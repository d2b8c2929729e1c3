"""What a user asks for, checked and planned; light enough that a mistyped name is answered in well under a second."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from statewise.assets import SHAPES
from statewise.config.locations import Location
from statewise.config.read import read_study_and_place, resolve_tables
from statewise.config.study import MAX_SEEDS, StudyConfig
from statewise.errors import UsageError, unknown
from statewise.plan.catalog import find_study, place_of_task
from statewise.plan.dag import Plan, make_plan
from statewise.plan.digest import digest_model
from statewise.plan.model_size import ModelSize
from statewise.policy.find import DECODER, REWARDER, ModelReference, Use, look_up_model, resolve_model
from statewise.storage import records
from statewise.tasks.find import check_task_name, find_code

LARGE_PARAMETERS = 50e6
GPU_FILE = Path("/dev/nvidia0")  # there is a GPU; asking torch would take seconds


@dataclass(frozen=True)
class StudyRequest:
    """What a user asks for: a study by name, path or tables, overrides, seeds, and the base model by name or folder.

    `is_quick`: the study's own small size; `limit`: items a task and prompts of drift, at most; `data`: folder of local
    copies of hub data sets; `is_chat`: prompts in the tokenizer's chat template; `is_dry`: the plan is to be shown, not
    run, so no weights are downloaded or read for it. `trusts_task_code`: Python that a task file names may run.
    """

    study: str | Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    num_seeds: int | None = None
    model: str | None = None
    data: str | None = None
    limit: int | None = None
    is_quick: bool = False
    is_chat: bool = False
    is_dry: bool = False
    trusts_task_code: bool = False


def plan_study(request: StudyRequest) -> Plan:
    """Read and check a study; needs neither torch nor the tasks.

    Raises:
        UsageError: anything in the study or the overrides that cannot run, or that this machine lacks.
    """
    config, location = _read(request)
    if request.num_seeds is not None:
        if request.num_seeds < 1:
            raise UsageError(f"--seeds {request.num_seeds}: expected a number >= 1")
        if request.num_seeds > MAX_SEEDS:
            raise UsageError(f"--seeds {request.num_seeds}: expected at most {MAX_SEEDS}")
        config = _with_seeds(config, request.num_seeds)
    if request.limit is not None:
        config = _with_prompts(config, request.limit)
    if config.shared.data is not None and not Path(config.shared.data).is_dir():
        raise UsageError(f"--data {config.shared.data}: no such folder; give one with local copies of the data sets")
    if request.is_dry:
        reference = _look_up(config.shared.model)
        code = _check_tasks(config, reference.folder, location, request.trusts_task_code)
        found = {name: _look_up(one.model, _use_of(config, name)) for name, one in config.models.items()}
        others = {name: one.folder for name, one in found.items()}
        plan = make_plan(config, reference.folder, location, is_dry=True, others=others)
        other_bytes = {name: one.missing_bytes for name, one in found.items()}
        return replace(plan, download_bytes=reference.missing_bytes, other_bytes=other_bytes, task_code=code)
    model, others = _find_all(config)
    code = _check_tasks(config, model, location, request.trusts_task_code)
    return replace(make_plan(config, model, location, others=others), task_code=code)


def with_reward_model(plan: Plan) -> Plan:
    """A dry plan whose reward model, if it has one, can answer: its weights are here, and their bytes are known.

    Raises:
        UsageError: as `resolve_model`.
    """
    if (name := plan.config.reward_model) is None:
        return plan
    folder = resolve_model(plan.config.models[name].model, REWARDER)
    digests = {**plan.other_digests, name: records.digest_json(digest_model(folder))}
    return replace(plan, others={**plan.others, name: folder}, other_digests=digests)


def _read(request: StudyRequest) -> tuple[StudyConfig, Location]:
    overrides = (*request.overrides, *_overrides_of(request))
    if isinstance(request.study, str):
        return read_study_and_place(find_study(request.study), overrides, is_quick=request.is_quick)
    return resolve_tables(request.study, "sw.Study", overrides, is_quick=request.is_quick)


def run_folder_of(request: StudyRequest, config: StudyConfig) -> Path:
    """Where a run goes that names no folder."""
    return Path("runs") / (config.study.name + ("-quick" if request.is_quick else ""))


def _overrides_of(request: StudyRequest) -> list[str]:
    """The options that stand for overrides; a path is written as a TOML string."""
    shared = {"model": request.model, "data": request.data}
    overrides = [
        f"shared.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in shared.items() if value is not None
    ]
    if request.is_chat:
        overrides.append("shared.chat=true")
    if request.limit is not None:
        if request.limit < 2:
            raise UsageError(f"--limit {request.limit}: expected a number >= 2; one item has no interval")
        overrides.append(f"shared.evaluation.limit={request.limit}")
    return overrides


def _find_all(config: StudyConfig) -> tuple[Path, dict[str, Path]]:
    """The folder of the base model and those of the models from elsewhere, by name.

    Raises:
        UsageError: names all of them that are missing, and what else of what the study requires.
    """
    missing = []
    if "gpu" in config.study.requires and not _has_gpu():
        missing.append(
            "it needs a GPU, and torch sees none (run it on one, try its small size with --quick, or insist with "
            "--set study.requires=[])"
        )
    folders, names = {}, {"base": config.shared.model} | {name: one.model for name, one in config.models.items()}
    for name, wanted in names.items():
        try:
            folders[name] = resolve_model(wanted, _use_of(config, name))
        except UsageError as error:
            missing.append(str(error))
    if missing:
        location = f"study {config.study.name!r} cannot run here: " if config.study.requires else ""
        raise UsageError(location + "; ".join(missing))
    return folders.pop("base"), folders


def _use_of(config: StudyConfig, name: str) -> Use:
    return REWARDER if name == config.reward_model else DECODER


def _look_up(model: str, use: Use = DECODER) -> ModelReference:
    """The model for a plan: its small files, or the shape that the package carries where the hub is out of reach."""
    try:
        return look_up_model(model, use)
    except UsageError:
        shape = SHAPES / model.replace("/", "__")
        if not shape.is_dir() or use is not DECODER:
            raise
        return ModelReference(model, shape, None, ("model.safetensors",), 2 * ModelSize.of(shape).num_parameters)


def _has_gpu() -> bool:
    import torch  # seconds, so only for a study that asks

    return bool(torch.cuda.is_available())


def _check_tasks(config: StudyConfig, model: Path, location: Location, trusts_code: bool) -> tuple[str, ...]:
    """Refuse a task that is not there, or whose Python is not trusted; returns the Python that is."""
    shared, code = config.shared, list[str]()
    if config.data and config.data.code:
        code.append(f"reward {config.data.code}")
    target = [] if config.data else [("target", shared.target)]
    for key, task in [*target, *(("retention", task) for task in shared.retention)]:
        with location.naming("shared", key):
            place = place_of_task(task, config, model)
            check_task_name(*place)
            code += find_code(*place, is_trusted=trusts_code)
    for task in shared.protocol:
        if task not in (shared.target, *shared.retention):
            where = f"{location.of(['shared', 'protocol', task])}: [shared.protocol.<task>]"
            raise unknown("task", task, (shared.target, *shared.retention), where)
    return tuple(dict.fromkeys(code))


def _with_prompts(config: StudyConfig, most: int) -> StudyConfig:
    """At most `most` prompts of drift."""
    drift = config.shared.drift
    fewer = drift.model_copy(update={"num_prompts": min(drift.num_prompts, most)})
    return config.model_copy(update={"shared": config.shared.model_copy(update={"drift": fewer})})


def _with_seeds(config: StudyConfig, count: int) -> StudyConfig:
    """The first `count` seeds of the study, and further ones counted up from its largest."""
    seeds = list(config.study.seeds[:count])
    while len(seeds) < count:
        seeds.append(max(seeds) + 1)
    return config.model_copy(update={"study": config.study.model_copy(update={"seeds": seeds})})


@dataclass(frozen=True)
class Workers:
    """Local processes side by side, and the CPU threads of each."""

    count: int
    threads: int = 1


def choose_workers(plan: Plan, count: int | None = None) -> Workers:
    """How many processes work side by side, unless `count` says so.

    A small model leaves nothing to share out within an operation, so it gets a process of one thread for each core. A
    large one gets one process of all cores: several copies would need as many times the memory. So does a GPU.
    """
    cores = max(1, len(os.sched_getaffinity(0)))
    is_large = max(plan.num_parameters, plan.num_reward_parameters) > LARGE_PARAMETERS
    device = plan.config.shared.device
    uses_gpu = device == "cuda" or (device == "auto" and GPU_FILE.exists()) or "gpu" in plan.config.study.requires
    if count is None:
        count = 1 if is_large or uses_gpu else cores
    return Workers(count, max(1, cores // count) if is_large else 1)
