"""What `statewise eval` is asked for, checked and resolved: tasks with settings of their own, or those of a study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from statewise.config.study import EvaluationSection
from statewise.errors import UsageError
from statewise.plan.dag import Plan, identity_of_data
from statewise.plan.request import StudyRequest, plan_study, with_reward_model
from statewise.storage import records

# What a study says by itself, by the option that says it otherwise.
OF_STUDY = {
    "tasks": "--tasks", "items": "--first", "samples": "--samples", "max_new_tokens": "--max-new-tokens",
    "num_fewshot": "--num-fewshot",
}  # fmt: skip


@dataclass(frozen=True)
class EvaluationRequest:
    """What `statewise eval` is asked for: a model by name or folder, tasks by name or YAML file, and how.

    `study`: the study, by name or path, whose tasks and protocol are taken, in the place of `tasks` and of all that
    goes with them alone (`items`, `samples`, `max_new_tokens`, `num_fewshot`).
    `limit`: so many items of a task, None for all, and `items` which, "sample" or "first"; `samples`: sampled answers
    an item, for pass@k; `data`: folder of local copies of data sets; `seed`: of sampled answers, None: 0, or the
    study's first; `max_new_tokens`: cap on an answer, None: that of a study; `out` None: `evals/<model>`;
    `is_chat`: prompts in the tokenizer's chat template; `num_fewshot`: worked examples, None: as each task says;
    `trusts_task_code`: Python that a task file names may run.
    """

    model: str
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    data: Path | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    out: Path | None = None
    is_chat: bool = False
    num_fewshot: int | None = None
    trusts_task_code: bool = False
    items: str = EvaluationSection().items
    samples: int | None = None
    study: str | None = None


def check_request(request: EvaluationRequest) -> None:
    """Refuse a request of tasks and of a study at once, or of neither."""
    usual = EvaluationRequest(request.model)
    if not request.study:
        if not request.tasks:
            raise UsageError("names no task; give --tasks, or --study for those of a study")
        if wrong := next((task for task in request.tasks if task.endswith(".toml")), None):
            raise UsageError(f"--tasks {wrong}: a study file; give it as --study {wrong}")
    else:
        kept = [key for key in OF_STUDY if getattr(request, key) != getattr(usual, key)]
        if kept:
            raise UsageError(
                f"--study and {OF_STUDY[kept[0]]} are given, but the study says that; give one of them, or "
                "change the study"
            )
    if request.data and not request.data.is_dir():
        raise UsageError(
            f"--data {request.data}: no such folder; give one with local copies of the data sets. Rows of your own are "
            "the [data] of a study: --study"
        )


def study_of(request: EvaluationRequest) -> Plan | None:
    """The study of a request, checked as for its own run; no weights are read, but those of a model that rewards."""
    if request.study is None:
        return None
    plan = plan_study(
        StudyRequest(
            request.study, data=str(request.data) if request.data else None, limit=request.limit,
            is_chat=request.is_chat, is_dry=True, trusts_task_code=request.trusts_task_code,
        )
    )  # fmt: skip
    return with_reward_model(plan)


def resolve_request(request: EvaluationRequest, study: Plan | None) -> EvaluationRequest:
    """The request with every setting: its own, or those of the study."""
    if study is None:
        most = EvaluationSection().max_new_tokens
        return replace(request, seed=request.seed or 0, max_new_tokens=request.max_new_tokens or most)
    shared, section = study.config.shared, study.config.shared.evaluation
    return replace(
        request, tasks=study.tasks, limit=section.limit, items=section.items, samples=section.samples,
        max_new_tokens=section.max_new_tokens, is_chat=shared.chat, data=Path(shared.data) if shared.data else None,
        seed=study.config.study.seeds[0] if request.seed is None else request.seed,
    )  # fmt: skip


def identity_of(study: Plan) -> dict[str, Any]:
    """What a study changes in scores beside the settings that every evaluation has."""
    config, shared = study.config, study.config.shared
    own = identity_of_data(config, config.data, study.other_digests) if config.data else None
    return {
        "target": shared.target,
        "retention": shared.retention,
        "own_data": records.digest_json(own) if own else None,
        "own_tasks": config.own_tasks,
        "protocol": {name: one.num_fewshot for name, one in shared.protocol.items()},
        "end_of_text": shared.end_of_text,
        "device": shared.device,
        "dtype": shared.dtype,
    }
