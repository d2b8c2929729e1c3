"""`statewise eval`: any stored model on any task, item by item, into a folder that `statewise compare` reads.

Tasks are named, or are those of a study, its own data among them, and are then asked as its runs ask them.

The folder belongs to one model and one setting: `eval.json` carries their fingerprint, is written anew after each
task, and a task that it lists is not evaluated again. Names and settings are checked before lm-eval or torch are
imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from statewise.config.study import SharedSection
from statewise.errors import DamagedError, UsageError
from statewise.folder.item_scores import Scores, lay_out, read_scores
from statewise.folder.protocol import eval_protocol, evaluate_into
from statewise.folder.run_folder import read_object
from statewise.folder.store import Store
from statewise.models.evaluation_request import (
    EvaluationRequest,
    check_request,
    identity_of,
    resolve_request,
    study_of,
)
from statewise.models.model_folder import Origin, check_adapter, find_base, find_tasks, read_origin, stored_weights
from statewise.plan.catalog import place_of_task
from statewise.plan.dag import BASE, Plan
from statewise.plan.digest import digest_data, digest_model_files, join_weights
from statewise.policy.find import resolve_model
from statewise.storage import integrity, records
from statewise.storage.integrity import is_there
from statewise.tasks.find import find_code, find_task_file
from statewise.tasks.own_file import digest_task

if TYPE_CHECKING:
    from statewise.evals.evaluate import EvalProtocol
    from statewise.policy.load import Policy
    from statewise.tasks.task import Task

HEADER = "eval.json"
# Raised when the meaning of a stored score changes: folders of another version are then refused.
EVALUATION_VERSION = 1


@dataclass(frozen=True)
class EvaluationPlan:
    """A checked request: where the model, its tasks and the records lie; `stored` is what `eval.json` holds so far.

    `task_folders` has one entry a task: where it lies, None for lm-eval's own and for paths. `task_code`: Python of
    their files, which the user trusts. `study`: that of the request, whose settings the request has then.
    """

    request: EvaluationRequest
    model: Path
    origin: Origin
    task_folders: dict[str, Path | None]
    out: Path
    stored: dict[str, Any]
    task_code: tuple[str, ...] = ()
    study: Plan | None = None

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
        UsageError: no such model, task or study, tasks and a study at once, or an output folder of another model, other
            settings or tasks that changed since.
    """
    check_request(request)
    study = study_of(request)
    request = resolve_request(request, study)
    model = resolve_model(request.model)
    if stored_weights(model) == "adapter":
        check_adapter(model)
    origin = read_origin(model)
    if study:
        shared = study.config.shared
        origin = replace(origin, retention=tuple(shared.retention), end_of_text=shared.end_of_text)
        task_folders, code = _folders_of(study), [*study.task_code]
    else:
        task_folders = {task: find_tasks(task, model, origin) for task in request.tasks}
        code = [
            line
            for task, folder in task_folders.items()
            for line in find_code(task, folder, is_trusted=request.trusts_task_code)
        ]
    out = request.out or Path("evals") / _name_of(request.model)
    stored = _open_for(request, model, origin, out, study)
    plan = EvaluationPlan(request, model, origin, task_folders, out, stored, tuple(dict.fromkeys(code)), study)
    _check_files(plan)
    return plan


def _folders_of(study: Plan) -> dict[str, Path | None]:
    """Where the tasks of a study lie that are not its own, whose digests are among its settings."""
    own = {*study.config.tasks, study.config.data.name if study.config.data else ""}
    return {task: place_of_task(task, study.config, study.model)[1] for task in study.tasks if task not in own}


def _check_files(plan: EvaluationPlan) -> None:
    """Refuse a task whose files are others now than when it was evaluated; an older record does not say."""
    for task, name in plan.stored["asked"].items():
        before = plan.stored["tasks"].get(name, {}).get("task_sha256")
        if before and task in plan.task_folders and before != _digest_of(plan, task):
            raise UsageError(
                f"{plan.out}: task {task!r} or its data changed since it was evaluated; choose another folder with "
                "--out"
            )


def _digest_of(plan: EvaluationPlan, task: str) -> str | None:
    """Of the files of a task that is none of lm-eval's own."""
    path = find_task_file(task, plan.task_folders[task]) if task in plan.task_folders else None
    return records.digest_json([*digest_task(path).values()]) if path else None


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


def _open_for(request: EvaluationRequest, model: Path, origin: Origin, out: Path, study: Plan | None) -> dict[str, Any]:
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
        **(identity_of(study) if study else {}),
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
    keys = {**before, **fresh["settings"]}
    changed = [f"{key} = {before.get(key)}" for key in keys if before.get(key) != fresh["settings"].get(key)]
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

    stored, protocol = plan.stored, _protocol(plan)
    transformers_logging.disable_progress_bar()
    policy = _load(plan)
    for asked in plan.waiting:
        on_task(asked)
        sha256, task = _digest_of(plan, asked), load_asked(plan, asked)
        _check_is_new(plan, asked, task.name)
        recorded = evaluate_into(plan.out / "evals" / f"{task.name}.parquet", policy, task, protocol)
        recorded |= {"task_sha256": sha256} if sha256 else {}
        stored["asked"][asked] = task.name
        stored["tasks"][task.name] = recorded
        integrity.write_sealed(plan.out / HEADER, stored)
    return stored


def _protocol(plan: EvaluationPlan) -> EvalProtocol:
    """How items are asked. By a study: as in its runs the base model, whose sampled answers are thus drawn again."""
    from statewise.evals.evaluate import EvalProtocol

    request = plan.request  # resolved, so that both are numbers
    seed, max_new_tokens = cast(int, request.seed), cast(int, request.max_new_tokens)
    if plan.study:
        return eval_protocol(plan.study.config.shared, BASE, seed)
    return EvalProtocol(
        request.limit, seed=seed, max_new_tokens=max_new_tokens, is_chat=request.is_chat,
        items=request.items, samples=request.samples,
    )  # fmt: skip


def load_asked(plan: EvaluationPlan, asked: str) -> Task:
    """The task that was asked for by this name or path.

    Raises:
        UsageError: it cannot be used.
    """
    if plan.study:
        from statewise.plan.benchmarks import build_task

        return build_task(plan.study, asked)
    from statewise.tasks.load import load_task
    from statewise.tasks.task import TaskOptions

    folder, data, options = plan.task_folders[asked], plan.request.data, TaskOptions(plan.request.num_fewshot)
    return load_task(asked, task_folder=folder, data=data, options=options, trusted=plan.task_code)


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
    shared = plan.study.config.shared if plan.study else SharedSection()
    device = choose_device(shared.device)
    dtype = choose_dtype(shared.dtype, device, plan.origin.base or folder)
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
