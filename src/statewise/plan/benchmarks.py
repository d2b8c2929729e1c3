"""The tasks of a plan, built as its study says, and all that they and the tokenizer tell of a run before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from statewise.assets import SHAPES
from statewise.config.study import StudyConfig
from statewise.errors import NotHereError, UsageError
from statewise.loop.documents import (
    DocumentRule,
    fitting_prompts,
    read_documents,
    remembered_prompts,
    rule_of,
)
from statewise.plan.catalog import place_of_task
from statewise.plan.dag import Plan
from statewise.policy.load import Policy, check_same_tokenizer, load_without_weights
from statewise.policy.reward_model import Reading, RewardModel
from statewise.tasks.load import load_task
from statewise.tasks.own_data import DataSection, OwnRow, overlap_note, read_own_data
from statewise.tasks.own_task import own_task, reward_note, right_answer
from statewise.tasks.task import Task, TaskOptions


def build_task(plan: Plan, name: str) -> Task:
    """Task `name` of `plan`, with the study's data, shots and reward.

    Raises:
        UsageError: its data or its YAML cannot be used or changed since it was read, or it has no such metric.
    """
    return build_task_of(plan.config, plan.model, name, plan.task_code, _reward_model(plan))


def build_task_of(
    config: StudyConfig, model: Path, name: str, task_code: tuple[str, ...], rewarding: RewardModel | None = None
) -> Task:
    """As `build_task`, of a study and its base model's folder; `rewarding`: the model that rewards, where one does."""
    shared, own = config.shared, config.data
    options = TaskOptions(shared.protocol[name].num_fewshot if name in shared.protocol else None)
    if own and name == own.name:
        return own_task(own, options, rewarding)
    if name in config.tasks:
        config.tasks[name].check_unchanged()
    name_or_path, folder = place_of_task(name, config, model)
    return load_task(
        name_or_path,
        task_folder=folder,
        data=Path(shared.data) if shared.data else None,
        reward_metric=shared.reward_metric if name == shared.target else "",
        options=options,
        trusted=task_code,
    )


def _reward_model(plan: Plan) -> RewardModel | None:
    """The model that rewards, which loads its weights when it is first asked."""
    name, shared, own = plan.config.reward_model, plan.config.shared, plan.config.data
    if name is None or own is None:
        return None
    section = plan.config.models[name]
    how = Reading(section.label, section.range, shared.chat, own.delimiter)
    return RewardModel(name, plan.others[name], how, shared.device, shared.dtype, plan.other_digests[name])


def _check_reward_model(plan: Plan, own: DataSection, splits: Mapping[str, list[OwnRow]]) -> list[str]:
    """The model that rewards can be used, and reads the right answers whole; returns what a reader must know of it."""
    if (model := _reward_model(plan)) is None:
        return []
    notes, rows = [model.check()], [row for rows in splits.values() for row in rows]
    answers = [right_answer(own, row) for row in rows]
    lengths = model.lengths([(row.turns or row.prompt, answer) for row, answer in zip(rows, answers, strict=True)])
    long = [row for row, length in zip(rows, lengths, strict=True) if length > model.context]
    if long:
        told = (
            f"{len(long)} of {len(rows)} rows, such as {long[0].place}, are with their right answers longer than the "
            f"{model.context} tokens that reward model {model.name} can read"
        )
        if plan.config.shared.too_long == "refuse":
            raise UsageError(f'{told}; shorten them, or set shared.too_long = "skip": such answers are then unscored')
        notes.append(f"{told}: such answers are unscored")
    return notes


def document_rule(plan: Plan) -> DocumentRule:
    """Which documents every arm of `plan` trains on."""
    shared = plan.config.shared
    return rule_of([arm.source for arm in plan.arms.values()], shared.too_long, is_chat=shared.chat)


def drift_prompts(plan: Plan, policy: Policy, target: Task) -> list[tuple[int, ...]]:
    """The first prompts of the target's test split, in tokens, on which drift is measured.

    Raises:
        UsageError: one does not fit the context.
    """
    rule, count = document_rule(plan), plan.config.shared.drift.num_prompts
    texts = [example.prompt for example in target.examples("test", rule.chat(policy))[:count]]
    return fitting_prompts(policy, texts, rule, f"task {target.name!r}, on whose test prompts drift is measured")


def check_texts(plan: Plan) -> tuple[str, ...]:
    """Check all that tasks, tokenizer and context tell of a run, before workers and models are loaded.

    Returns:
        What a reader of the plan must know: what is left out, and, of a dry plan, what could not be checked here.

    Raises:
        UsageError: a task cannot be built, has no such metric or cannot be trained on; no chat template; documents,
            pairs or prompts that do not fit the context (all are named); answers that leave no room for a prompt.
    """
    shared, notes, tasks = plan.config.shared, list[str](), dict[str, Task]()
    for name in plan.tasks:
        try:
            tasks[name] = build_task(plan, name)
        except NotHereError as error:
            if not plan.is_dry:
                raise
            notes.append(f"Not checked: {error}")
    if target := tasks.get(shared.target):
        target.check_target()
    if own := plan.config.data:
        splits = read_own_data(own)
        notes += [note for note in (overlap_note(own, splits), reward_note(own, splits)) if note]
        notes += _check_reward_model(plan, own, splits)
    if plan.model.parent == SHAPES:
        return (*notes, f"Not checked: whether texts fit {shared.model}, whose tokenizer is not on this machine")
    policy = load_without_weights(plan.model, shared.model, shared.end_of_text)
    notes += _check_others(plan, policy)
    _check_evaluation(plan, policy, tasks)
    _check_memories(plan, policy, tasks)
    if target:
        notes += read_documents(policy, target, [arm.source for arm in plan.arms.values()], document_rule(plan)).notes
        drift_prompts(plan, policy, target)
    return tuple(notes)


def _check_memories(plan: Plan, policy: Policy, tasks: Mapping[str, Task]) -> None:
    """The prompts that localities remember fit."""
    rule = document_rule(plan)
    memories = {(one.kind, one.memory) for arm in plan.arms.values() for one in arm.locality}
    for name in plan.config.shared.retention:
        for kind, memory in memories if name in tasks else ():
            if memory:
                remembered_prompts(policy, tasks[name], kind, memory, rule)


def _check_evaluation(plan: Plan, policy: Policy, tasks: Mapping[str, Task]) -> None:
    """Answers leave room for a prompt."""
    for task in tasks.values():
        longest = min(task.max_new_tokens, plan.config.shared.evaluation.max_new_tokens)
        if task.is_generative and longest >= policy.context_length:
            raise UsageError(
                f"task {task.name!r}: answers of {longest} tokens leave no room for a prompt in the context of "
                f"{policy.context_length} of {policy.name}; lower shared.evaluation.max_new_tokens"
            )


def _check_others(plan: Plan, policy: Policy) -> list[str]:
    """Models from elsewhere have the learner's tokens; returns what a reader must know of them."""
    notes, shared = list[str](), plan.config.shared
    for name, folder in plan.others.items():
        if name == plan.config.reward_model:
            continue  # it reads text, in tokens of its own
        if folder.parent == SHAPES:
            notes.append(f"Not checked: the tokenizer of {name}, which is not on this machine")
        else:
            other = load_without_weights(folder, name, shared.end_of_text)
            check_same_tokenizer(policy, other)
            if other.context_length < policy.context_length:
                notes.append(
                    f"{name} has a context of {other.context_length} tokens, {policy.name} of {policy.context_length}: "
                    "a longer text stops the arm that it teaches"
                )
    return notes
