"""`statewise eval`: any stored model on any task, item by item, into a folder that `statewise compare` reads.

The folder belongs to one model and one setting: `eval.json` carries their fingerprint, is written anew after each
task, and a task that it lists is not evaluated again. Names and settings are checked before lm-eval or torch are
imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statewise.config.study import EvaluationSection
from statewise.errors import DamagedError, UsageError
from statewise.folder.item_scores import Scores, lay_out, read_scores
from statewise.folder.protocol import evaluate_into
from statewise.folder.run_folder import read_object
from statewise.folder.store import Store
from statewise.models.model_folder import Origin, check_adapter, find_base, find_tasks, read_origin, stored_weights
from statewise.plan.digest import digest_data, digest_model_files, join_weights
from statewise.policy.find import resolve_model
from statewise.storage import integrity, records
from statewise.storage.integrity import is_there
from statewise.tasks.find import find_code

if TYPE_CHECKING:
    from statewise.policy.load import Policy
    from statewise.tasks.task import Task

HEADER = "eval.json"
# Raised when the meaning of a stored score changes: folders of another version are then refused.
EVALUATION_VERSION = 1


@dataclass(frozen=True)
class EvaluationRequest:
    """What `statewise eval` is asked for: a model by name or folder, tasks by name or YAML file, and how.

    `limit`: so many items of a task, None for all, and `items` which, "sample" or "first"; `samples`: sampled answers
    an item, for pass@k; `data`: folder of a task's local data; `seed`: of sampled answers; `max_new_tokens`: cap on an
    answer; `out` None: `evals/<model>`;
    `is_chat`: prompts in the tokenizer's chat template; `num_fewshot`: worked examples, None: as each task says;
    `trusts_task_code`: Python that a task file names may run.
    """

    model: str
    tasks: tuple[str, ...]
    limit: int | None = None
    data: Path | None = None
    seed: int = 0
    max_new_tokens: int = EvaluationSection().max_new_tokens
    out: Path | None = None
    is_chat: bool = False
    num_fewshot: int | None = None
    trusts_task_code: bool = False
    items: str = EvaluationSection().items
    samples: int | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """A checked request: where the model, its tasks and the records lie; `stored` is what `eval.json` holds so far.

    `task_folders` has one entry a task: where it lies, None for lm-eval's own and for paths. `task_code`: Python of
    their files, which the user trusts.
    """

    request: EvaluationRequest
    model: Path
    origin: Origin
    task_folders: dict[str, Path | None]
    out: Path
    stored: dict[str, Any]
    task_code: tuple[str, ...] = ()

    @property
    def waiting(self) -> tuple[str, ...]:
        """The tasks that are not evaluated yet."""
        return tuple(task for task in self.request.tasks if not self.is_done(task))

    def is_done(self, task: str) -> bool:
        """Whether the folder holds the scores of `task`."""
        name = self.stored["asked"].get(task)
        return name in self.stored["tasks"] and not _faults(self.out, name, self.stored["tasks"][name])


def plan_evaluation(request: EvaluationRequest) -> EvaluationPlan:
    """Check names, folders and settings; needs neither torch nor lm-eval.

    Raises:
        UsageError: no such model or task, or an output folder of another model or other settings.
    """
    model = resolve_model(request.model)
    if stored_weights(model) == "adapter":
        check_adapter(model)
    origin = read_origin(model)
    task_folders = {task: find_tasks(task, model, origin) for task in request.tasks}
    code = [
        line
        for task, folder in task_folders.items()
        for line in find_code(task, folder, is_trusted=request.trusts_task_code)
    ]
    out = request.out or Path("evals") / _name_of(request.model)
    stored = _open_for(request, model, origin, out)
    return EvaluationPlan(request, model, origin, task_folders, out, stored, tuple(dict.fromkeys(code)))


def _faults(out: Path, name: str, record: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with the scores of a task, by their path below `out`; an older record has no digest of them."""
    path = f"evals/{name}.parquet"
    if "sha256" not in record:
        return {} if (out / path).is_file() else {path: "is missing"}
    return integrity.faults_of(out, {path: record["sha256"]})


def checked_scores(out: Path, stored: Mapping[str, Any]) -> Scores:
    """The scores that `eval.json` records.

    Raises:
        DamagedError: they are others; names the file.
    """
    tasks: Mapping[str, Any] = stored.get("tasks", {})
    for name, record in tasks.items():
        integrity.refuse(out, _faults(out, name, record), "run the same `statewise eval` again")
    return read_scores(out, [f"evals/{name}.parquet" for name in tasks])


def _name_of(model: str) -> str:
    """A folder's name for a model: that of its folder; run-arm-seed for one that lies in a run."""
    parts = Path(model).expanduser().resolve().parts if Path(model).is_dir() else Path(model).parts
    if len(parts) > 4 and parts[-4] == "arms" and parts[-1] in ("model", "adapter"):
        parts = ("-".join((parts[-5], parts[-3], parts[-2])),)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1]) if parts else "model"


def _open_for(request: EvaluationRequest, model: Path, origin: Origin, out: Path) -> dict[str, Any]:
    """The contents of `eval.json` for this request: what is stored, or a new one; nothing is written."""
    settings = {
        "limit": request.limit,
        "data": digest_data(request.data) if request.data else None,
        "seed": request.seed,
        "max_new_tokens": request.max_new_tokens,
        "chat": request.is_chat,
        "num_fewshot": request.num_fewshot,
        "items": request.items,
        "samples": request.samples,
    }
    files = digest_model_files(model)
    weights_sha256 = join_weights(files)
    if stored_weights(model) == "adapter":
        files |= {f"base/{name}": digest for name, digest in digest_model_files(find_base(model, origin)).items()}
    sha256 = records.digest_json(files)
    fresh = {
        "fingerprint": records.digest_json({"version": EVALUATION_VERSION, "model": sha256, "settings": settings}),
        "model": {
            "name": request.model,
            "sha256": sha256,
            "weights_sha256": weights_sha256,
            "arm": origin.arm,
            "base_model": origin.base_name,
            "base_weights_sha256": origin.base_sha256,
            "retention": list(origin.retention),
        },
        "settings": settings,
        "asked": {},
        "tasks": {},
    }
    if not is_there(out / HEADER):
        if out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
            raise UsageError(f"{out}: exists and is not a folder of `statewise eval`; choose another with --out")
        return fresh
    try:
        stored = read_object(out / HEADER)
    except DamagedError:  # which `set_damage_aside` tells of
        return fresh
    if stored.get("fingerprint") == fresh["fingerprint"] and isinstance(stored.get("tasks"), dict):
        return stored
    raise UsageError(f"{out}: {_difference(stored, fresh)}; choose another folder with --out")


def _difference(stored: dict[str, Any], fresh: dict[str, Any]) -> str:
    """In what the stored evaluation is another one."""
    before = stored.get("settings", {})
    changed = [f"{key} = {before.get(key)}" for key, value in fresh["settings"].items() if before.get(key) != value]
    if stored.get("model", {}).get("sha256") != fresh["model"]["sha256"]:
        changed.insert(0, f"other weights ({stored.get('model', {}).get('name')})")
    return f"holds an evaluation with {', '.join(changed) or 'another version of statewise'}"


def set_damage_aside(plan: EvaluationPlan) -> list[str]:
    """Move scores that are not what was recorded to `damaged/`, before their tasks are done again; returns what was."""
    store, told, is_read = Store(plan.out), list[str](), True
    if is_there(plan.out / HEADER):
        try:
            integrity.read_either(plan.out / HEADER)
        except DamagedError as error:
            told.append(f"{error}; {store.set_aside(plan.out / HEADER)}")
            is_read = False
    unknown = [] if is_read else integrity.files_below(plan.out, ["evals"])
    faults = dict.fromkeys(unknown, "is not known of any more")
    for name, record in plan.stored["tasks"].items():
        faults |= _faults(plan.out, name, record)
    return told + [f"{plan.out / name} {what}; {store.set_aside(plan.out / name)}" for name, what in faults.items()]


def run_evaluation(plan: EvaluationPlan, on_task: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate the tasks that are not done, one after the other; each is kept as soon as it is done.

    Args:
        plan: what to evaluate.
        on_task: told of each task before it starts.

    Returns:
        The contents of `eval.json`.

    Raises:
        UsageError: the model or a task cannot be used.
    """
    if not plan.waiting:
        return plan.stored
    from transformers.utils import logging as transformers_logging

    from statewise.evals.evaluate import EvalProtocol

    request, stored = plan.request, plan.stored
    transformers_logging.disable_progress_bar()
    protocol = EvalProtocol(
        request.limit, seed=request.seed, max_new_tokens=request.max_new_tokens, is_chat=request.is_chat,
        items=request.items, samples=request.samples,
    )  # fmt: skip
    policy = _load(plan)
    for asked in plan.waiting:
        on_task(asked)
        task = load_asked(plan, asked)
        _check_is_new(plan, asked, task.name)
        recorded = evaluate_into(plan.out / "evals" / f"{task.name}.parquet", policy, task, protocol)
        stored["asked"][asked] = task.name
        stored["tasks"][task.name] = recorded
        integrity.write_sealed(plan.out / HEADER, stored)
    return stored


def load_asked(plan: EvaluationPlan, asked: str) -> Task:
    """The task that was asked for by this name or path.

    Raises:
        UsageError: it cannot be used.
    """
    from statewise.tasks.load import load_task
    from statewise.tasks.task import TaskOptions

    request = plan.request
    return load_task(
        asked, task_folder=plan.task_folders[asked], data=request.data, options=TaskOptions(request.num_fewshot),
        trusted=plan.task_code,
    )  # fmt: skip


def _check_is_new(plan: EvaluationPlan, asked: str, name: str) -> None:
    """Refuse a second task of the same name, whose scores would replace the first one's."""
    for other, stored in plan.stored["asked"].items():
        if stored == name and other != asked:
            raise UsageError(
                f"tasks {other!r} and {asked!r} are both called {name!r}; evaluate one of them into another --out"
            )


def _load(plan: EvaluationPlan) -> Policy:
    """The model, in its base model's precision, as in a run; an adapter lies on the base weights, unmerged."""
    from statewise.policy.device import choose_device, choose_dtype
    from statewise.policy.load import load_policy
    from statewise.policy.lora import load_adapter

    name, is_adapter = plan.request.model, stored_weights(plan.model) == "adapter"
    folder = find_base(plan.model, plan.origin) if is_adapter else plan.model
    device = choose_device("auto")
    dtype = choose_dtype("auto", device, plan.origin.base or folder)
    policy = load_policy(folder, name, dtype=dtype, device=device, end_of_text=plan.origin.end_of_text)
    if not is_adapter:
        return policy
    load_adapter(policy.model, plan.model, "evaluated")
    return replace(policy, adapter="evaluated")


def evaluate_tasks(plan: EvaluationPlan, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Evaluate what is not done in the plan's folder, set what is damaged aside first; returns `scores_of` all tasks.

    `tell` hears in one line of each task and of what was damaged.
    """
    for task in (task for task in plan.request.tasks if task not in plan.waiting):
        tell(f"{task}: kept from before")
    with Store(plan.out).lock():
        for text in set_damage_aside(plan):
            tell(f"warning: {text}")
        if plan.waiting:
            tell(f"{plan.request.model}: loading model")
        stored = run_evaluation(plan, lambda task: tell(f"{task}: evaluating"))
    return scores_of(plan.out, plan.request.tasks, stored)


def scores_of(out: Path, tasks: tuple[str, ...], stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluated scores as rows: task, decoding, metric, an estimate with its interval, unscored answers, protocol.

    An answer that could not be scored counts as not correct.
    """
    from statewise.results.intervals import estimate_score

    scores = checked_scores(out, stored)
    names = dict.fromkeys(stored["asked"][task] for task in tasks)
    return [
        {
            "task": name,
            "decoding": column.decoding,
            "metric": column.metric,
            "estimate": asdict(estimate_score(lay_out([one]))),
            "num_unscored": one.num_unscored,
            "protocol": stored["tasks"][name]["protocol"],
        }
        for name in names
        for column, one in scores.items()
        if column.task == name
    ]
