"""A user's own data as a task of lm-eval's. Importing this module takes seconds (lm-eval)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from statewise.errors import UsageError
from statewise.tasks.conversations import Turn, left_out_by, plain_text
from statewise.tasks.generation import cut_at
from statewise.tasks.own_data import (
    METRIC,
    MOST_NEW_TOKENS,
    REWARD_METRIC,
    TURNS,
    DataSection,
    OwnRow,
    read_own_data,
)
from statewise.tasks.quiet import quiet_lm_eval
from statewise.tasks.rewards import Asked, ManyRewards, RewardFunction, make_reward
from statewise.tasks.task import REWARD_TOLD, Task, TaskOptions

NUM_TRIED = 20  # completions that are rewarded before a run: what fails on the right answer fails on every other


def own_task(
    data: DataSection,
    options: TaskOptions = TaskOptions(),  # noqa: B008  (frozen)
    model: ManyRewards | None = None,
) -> Task:
    """The task of `data`, whose one metric is its reward; `model`: what rewards where the data name a model.

    Raises:
        UsageError: its files or its reward cannot be used; says which, and where.
    """
    if data.messages and options.num_fewshot:
        raise UsageError(f"protocol.{data.name}.num_fewshot: no worked examples can be put before a conversation")
    splits = read_own_data(data)
    if model is None:
        reward = _reward_of(data)
        _try_reward(data, reward, _tried(splits))
    loaded = datasets.DatasetDict(
        {split: datasets.Dataset.from_list([row.document for row in rows]) for split, rows in splits.items()}
    )

    def score(doc: Mapping[str, str], answers: Sequence[str]) -> dict[str, float]:
        if model is not None:
            return {METRIC: model.score_all([(_asked(doc), answers[0])])[0][0]}
        return {METRIC: reward(doc["prompt"], answers[0], _row_of(doc))}

    def score_all(asked: Sequence[tuple[Mapping[str, str], str]]) -> tuple[list[float], float]:
        assert model is not None
        return model.score_all([(_asked(doc), answer) for doc, answer in asked])

    config: dict[str, Any] = {
        "task": data.name,
        "custom_dataset": lambda **_: loaded,
        "training_split": "train",
        "test_split": "test",
        "output_type": "generate_until",
        # Columns, not templates: what a template prints lm-eval reads as Python where it looks like a list.
        "doc_to_text": "prompt",
        "doc_to_target": "completion",
        "target_delimiter": data.delimiter,
        "process_results": score,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": list(data.stop), "max_gen_toks": MOST_NEW_TOKENS},
        "num_fewshot": options.num_fewshot or 0,
        "metadata": {"version": data.version, **({REWARD_TOLD: model.told} if model else {})},
    }
    with quiet_lm_eval():
        task = _Conversations(config=config) if data.messages else ConfigurableTask(config=config)
        if data.messages:
            task.places = {row.document[TURNS]: row.place for rows in splits.values() for row in rows}
    return Task(data.name, (task,), REWARD_METRIC, options, _needs_chat(splits), score_all if model else None)


class _Conversations(ConfigurableTask):  # type: ignore[misc]  # lm_eval has no types
    """Rows whose prompts are turns, which reach a chat template as they are. `places`: of turns, for errors."""

    def fewshot_context(
        self, doc: Mapping[str, str], *, chat_template: Callable[..., str] | None = None, **settings: Any
    ) -> str:
        """The prompt of a document: as `apply_chat_template(turns, add_generation_prompt=True)`, or its plain form.

        Raises:
            UsageError: the template refuses the turns or leaves one out.
        """
        turns = json.loads(doc[TURNS])
        if chat_template is None:
            return plain_text(turns)
        try:
            rendered = chat_template(turns, drops_system=False)
        except UsageError as error:
            raise UsageError(f"{self.places[doc[TURNS]]}: {error}") from None
        if turn := left_out_by(turns, rendered):
            raise UsageError(
                f"{self.places[doc[TURNS]]}: the chat template leaves out or changes the {turn['role']}'s "
                f"{turn['content'][:60]!r}; take such turns out of the rows, or use another model"
            )
        return rendered


def _needs_chat(splits: Mapping[str, list[OwnRow]]) -> str:
    """Why the rows cannot be used without a chat template; "" where they can."""
    talking = next((row for rows in splits.values() for row in rows if row.needs_chat), None)
    if talking is None:
        return ""
    roles = ", ".join(turn["role"] for turn in talking.turns)
    return (
        f"{talking.place}: a conversation ({roles} before the answer) is rendered by a chat template only; set "
        "shared.chat = true (--chat), with a model that has one"
    )


def reward_note(data: DataSection, splits: Mapping[str, list[OwnRow]]) -> str:
    """What a reader must know of a function that rewards no right answer; "" where it rewards one."""
    if not data.completion or data.code is None:
        return ""
    reward, rows = _reward_of(data), _tried(splits)
    if any(_of_right(data, reward, row) > 0 for row in rows):
        return ""
    return f"Reward {reward.told} gives 0 to each of the {len(rows)} right answers that it was tried on"


def _reward_of(data: DataSection) -> RewardFunction:
    return make_reward(data.reward, data.completion, data.digests.get("reward"))


def _tried(splits: Mapping[str, list[OwnRow]]) -> list[OwnRow]:
    return [row for rows in splits.values() for row in rows[:NUM_TRIED]]


def _asked(document: Mapping[str, str]) -> Asked:
    """What an answer is an answer to, as a model gets it."""
    turns: list[Turn] = json.loads(document.get(TURNS) or "[]")
    return turns or document["prompt"]


def _row_of(document: Mapping[str, str]) -> dict[str, Any]:
    """The row as a reward gets it."""
    row: dict[str, Any] = json.loads(document["row"])
    return row


def right_answer(data: DataSection, row: OwnRow) -> str:
    """The completion as a model would write it."""
    return cut_at(data.delimiter + row.completion, data.stop)


def _of_right(data: DataSection, reward: RewardFunction, row: OwnRow) -> float:
    return reward(row.prompt, right_answer(data, row), _row_of(row.document))


def _try_reward(data: DataSection, reward: RewardFunction, rows: Sequence[OwnRow]) -> None:
    """Refuse a reward that cannot score the right answers (where there are none: any empty one).

    Also one by name that does not reward them.
    """
    if not data.completion:
        problems = [reward.problem(row.prompt, "", _row_of(row.document)) for row in rows]
        if all(problems):
            raise UsageError(f"{rows[0].place}: reward {reward.told} {problems[0]}, for an empty answer to any prompt")
        return
    for row in rows:
        answer = right_answer(data, row)
        told = f"for this row's own completion {row.completion[:60]!r}"
        if problem := reward.problem(row.prompt, answer, _row_of(row.document)):
            raise UsageError(f"{row.place}: reward {reward.told} {problem}, {told}")
        if data.code is None and _of_right(data, reward, row) < 1:
            why = f", which data.stop cuts to {answer!r}" if answer.strip() != row.completion.strip() else ""
            raise UsageError(f"{row.place}: reward {reward.told} is 0 {told}{why}")
