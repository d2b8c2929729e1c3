"""A stored model and where it comes from: full weights or an adapter, its base model, the benchmarks it brings along.

Reads small files only; nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from statewise.assets import POCKET_MODEL
from statewise.errors import DamagedError, UsageError
from statewise.folder.run_folder import RunFolder, open_run, read_object
from statewise.plan.dag import BASE
from statewise.plan.digest import FACTS, digest_weights
from statewise.policy.find import HUB_NAME, resolve_model
from statewise.storage.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from statewise.tasks.find import check_task_name, find_task_file, list_tasks

# An adapter's configuration is understood if nothing in it is set but these. They say which linear layers get which
# rank and scale, or nothing about what the adapter computes: where it comes from, how it was trained or stored.
ADAPTER_SETTINGS = {
    "r", "lora_alpha", "target_modules", "peft_type", "task_type", "base_model_name_or_path", "revision",
    "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core",
    "qalora_group_size",
}  # fmt: skip
NOT_SET: tuple[Any, ...] = (None, False, "none", [], {})
# Beginnings that leave the base model's weights alone. Others (PiSSA, OLoRA, ...) take their first values out of them.
PLAIN_BEGINNINGS = (True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class Origin:
    """What is known of a model folder's past; empty where nothing is.

    `base` is the folder of its base model, None if it is not on this machine; `base_name` how a study called it.
    `base_tasks`: benchmarks that came with it. `retention` and `end_of_text`: as the study that trained the model says.
    """

    arm: str = ""
    base_name: str = ""
    base: Path | None = None
    base_sha256: str = ""
    base_tasks: tuple[str, ...] = ()
    retention: tuple[str, ...] = ()
    end_of_text: str | None = None


def stored_weights(folder: Path) -> Literal["full", "adapter"]:
    """What a model folder holds: all weights, or an adapter in peft's format.

    Raises:
        UsageError: neither.
    """
    if (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_WEIGHTS).is_file():
        return "adapter"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "full"
    raise UsageError(
        f"model folder {folder}: neither a model (config.json, *.safetensors) nor an adapter ({ADAPTER_CONFIG}, "
        f"{ADAPTER_WEIGHTS}); give the folder that holds one of them"
    )


def read_origin(folder: Path) -> Origin:
    """Where a model folder comes from: an export, the arm of a run, or an adapter that names its base model.

    Raises:
        DamagedError: its files are not those that the run or the export recorded.
    """
    facts = folder / FACTS
    if facts.is_file():
        known = read_object(facts)
        _check_weights(folder, known.get("provenance", {}).get("weights_sha256", ""))
        name = _join_revision(known.get("base_model"), known.get("base_revision"))
        return Origin(
            arm=known.get("arm", ""),
            base_name=name,
            base=_local(name),
            base_sha256=known.get("provenance", {}).get("base_weights_sha256", ""),
            base_tasks=tuple(known.get("base_tasks", ())),
            retention=tuple(known.get("retention", ())),
            end_of_text=known.get("end_of_text"),
        )
    place = folder.resolve()
    if len(place.parents) > 3 and (place.parents[3] / "plan.json").is_file() and place.parents[2].name == "arms":
        run = open_run(place.parents[3])
        if place.parents[0].name.isdecimal():
            run.record(place.parents[1].name, int(place.parents[0].name), "train")
        return origin_of_arm(run, place.parents[1].name)
    if (folder / ADAPTER_CONFIG).is_file():
        config = read_object(folder / ADAPTER_CONFIG)
        name = _join_revision(config.get("base_model_name_or_path"), config.get("revision"))
        return Origin(base_name=name, base=_local(name))
    return Origin()


def _check_weights(folder: Path, recorded: str) -> None:
    if recorded and digest_weights(folder) != recorded:
        raise DamagedError(
            f"{folder}: its weights are not those that {FACTS} records; export them again, or remove {FACTS} if they "
            "were changed on purpose"
        )


def origin_of_arm(run: RunFolder, arm: str) -> Origin:
    """The origin of a model that an arm of a run trained; the base model's folder may be gone by now."""
    shared = run.config.shared
    base = run.model if run.model.is_dir() else _local(shared.model)
    return Origin(
        arm=arm,
        base_name=shared.model,
        base=base,
        base_sha256=digest_weights(base) if base else "",
        base_tasks=tasks_of(base),
        retention=tuple(shared.retention),
        end_of_text=shared.end_of_text,
    )


def split_revision(name: str) -> tuple[str, str | None]:
    """A model's name and revision, as transformers and peft want them: "org/name@v2" is ("org/name", "v2")."""
    found = None if Path(name).is_dir() else HUB_NAME.fullmatch(name)
    return (found["repo"], found["revision"]) if found else (name, None)


def _join_revision(name: str | None, revision: str | None) -> str:
    return f"{name}@{revision}" if name and revision else name or ""


def _local(name: str) -> Path | None:
    """The folder of a base model if it is the embedded one or a folder of this machine."""
    if name == "pocket":
        return POCKET_MODEL
    return Path(name) if name and Path(name).is_dir() else None


def tasks_of(model: Path | None) -> tuple[str, ...]:
    """Names of the benchmarks that a model folder itself brings along."""
    folder = _own_tasks(model)
    return list_tasks(folder) if folder else ()


def _own_tasks(model: Path | None) -> Path | None:
    """Not `catalog.task_folder`, which falls back on the embedded ones: here it matters whose they are."""
    return model / "tasks" if model and (model / "tasks").is_dir() else None


def find_base(folder: Path, origin: Origin) -> Path:
    """The base model of the adapter in `folder`.

    Raises:
        UsageError: it is not known, or neither here nor to be fetched.
    """
    if origin.base is not None:
        return origin.base
    if not origin.base_name:
        raise UsageError(f"{folder / ADAPTER_CONFIG}: no base_model_name_or_path; write the base model's folder there")
    return resolve_model(origin.base_name)


def find_tasks(name: str, folder: Path, origin: Origin) -> Path | None:
    """The folder that holds the benchmark `name` for a model: its own, its base model's, or the embedded ones.

    Returns:
        None for a task of lm-eval or the path of a YAML file.

    Raises:
        UsageError: no such task; or one that came with a base model which is not on this machine, since the embedded
            benchmark of that name has other items.
    """
    if name.endswith(".yaml"):
        if not Path(name).is_file():
            raise UsageError(f"--tasks {name}: no such task file")
        return None
    own, base = _own_tasks(folder), _own_tasks(origin.base)
    for tasks in (own, base):
        if tasks is not None and find_task_file(name, tasks) is not None:
            return tasks
    if name in origin.base_tasks:
        raise UsageError(
            f"task {name!r} came with the base model {origin.base_name!r} of {folder}, which is not a folder here; "
            f"give the path of the task's YAML file, or run from where {origin.base_name!r} is a folder"
        )
    embedded = POCKET_MODEL / "tasks"
    if find_task_file(name, embedded) is not None:
        return embedded
    check_task_name(name, own or base or embedded, "--tasks")
    return None


def check_adapter(folder: Path) -> None:
    """Refuse an adapter that `policy.lora` would load as something else than peft does.

    Raises:
        UsageError: not LoRA, or a feature of peft that changes what it computes; says what to do.
    """
    config = read_object(folder / ADAPTER_CONFIG)
    kind = str(config.get("peft_type", "LORA"))
    if kind != "LORA":
        raise UsageError(
            f"adapter folder {folder}: {kind} is not LoRA, the only kind that is read; "
            "give a model that holds its effect"
        )
    known = ADAPTER_SETTINGS | {"init_lora_weights"}
    foreign = [f"{key} = {value!r}" for key, value in config.items() if key not in known and value not in NOT_SET]
    if config.get("init_lora_weights", True) not in PLAIN_BEGINNINGS:
        foreign.append(f"init_lora_weights = {config['init_lora_weights']!r}")
    if foreign:
        raise UsageError(
            f"adapter folder {folder}: {', '.join(foreign)} is not plain LoRA ({ADAPTER_CONFIG}); merge it into its "
            "base model with peft (PeftModel.from_pretrained, merge_and_unload) and give the merged folder"
        )


def is_base_of(weights_sha256: str, arm: str, other: Origin) -> bool:
    """Whether a model is the one that another was trained from: by its weights, or by its arm if unknown."""
    if weights_sha256 and other.base_sha256:
        return weights_sha256 == other.base_sha256
    return arm == BASE
