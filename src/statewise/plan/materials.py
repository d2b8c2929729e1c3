"""Whether what a plan is made of can be used: told before workers and models are loaded and a folder is made."""

from __future__ import annotations

from statewise.assets import POCKET_MODEL
from statewise.config.study import EvaluationSection, SharedSection
from statewise.plan.catalog import POCKET_REWARD, pocket_tasks
from statewise.plan.dag import Plan


def check_materials(plan: Plan) -> tuple[str, ...]:
    """Check all that config, tasks, tokenizer and context tell of a run.

    Takes seconds (lm-eval is imported and every text encoded), unless all of it comes with the package.

    Returns:
        What a reader of the plan must know: what is left out, and, of a dry plan, what could not be checked here.

    Raises:
        UsageError: as `benchmarks.check_texts`.
    """
    if is_known_to_be_sound(plan):
        return ()
    from statewise.plan.benchmarks import check_texts

    return check_texts(plan)


def is_known_to_be_sound(plan: Plan) -> bool:
    """Whether model and tasks are the embedded ones in their usual roles, which a test has checked."""
    usual, shared = SharedSection(), plan.config.shared
    keys = ("target", "chat", "end_of_text", "protocol")
    return (
        plan.model == POCKET_MODEL
        and not plan.others
        and not plan.config.tasks
        and shared.reward_metric == POCKET_REWARD
        and set(plan.tasks) <= set(pocket_tasks())
        and all(getattr(shared, key) == getattr(usual, key) for key in keys)
        and shared.evaluation.max_new_tokens <= EvaluationSection().max_new_tokens
        and not any(arm.source.pair_files for arm in plan.arms.values())
    )
