"""One lm-eval task, used for training (prompts, gold, reward) and for evaluation (requests, scores).

Prompts, answer filters and metrics are the task's own, so that a reward during training and a score afterwards are the
same function of an answer. A group such as `mmlu` is one task, whose items are those of its members, one after the
other. Departs from lm-eval in three points: an answer whose grader fails is nan, never 0; a training document never
appears among its own worked examples; and the mean of a group is taken over its items (`weight_by_size`).
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate
from numbers import Real
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.filters.selection import TakeKFilter

from statewise import errors
from statewise.errors import UsageError
from statewise.tasks.generation import cut_at, max_tokens_of, stops_of
from statewise.tasks.items import SAMPLE, OtherDocs, choose, leave, share_out
from statewise.types import Example

FEWSHOT_SEED = 1234  # lm_eval.defaults.DEFAULT_OTHER_SEED: `lm_eval` draws the same worked examples
# What graders raise on an answer they were not written for. Anything else (a missing package, no memory) is no answer's
# fault and stops the run.
GRADER_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError, ValueError)

# What a task file's `metadata` may say of its items and answers: the field by which items are told apart in a report,
# and styles of an answer as name → regular expression, whose shares are reported.
GROUP_BY, STYLES = "group_by", "styles"
REWARD_TOLD = "reward"  # there, how a model rewards an answer
STYLE = "style,"  # begins the metric that is such a share

# How a list of messages becomes a text: a tokenizer's chat template, as `PolicyLM.apply_chat_template`.
Chat = Callable[..., str]


@dataclass(frozen=True)
class TaskOptions:
    """What a study changes in a task's own protocol; None leaves it as it is."""

    num_fewshot: int | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A task by name, built by `tasks.load.load_task`.

    `members` are lm-eval's ConfigurableTasks: one, or those of a group, which have one output type and the same
    metrics. `reward_metric` is the "metric,filter" that `reward` returns; "" for a task that does not generate.
    `needs_chat` says why prompts are none without a chat template; "" where they are.
    `score_all`: where a model rewards, of documents and answers the rewards, and the FLOPs that they took.
    """

    name: str
    members: tuple[Any, ...]
    reward_metric: str = ""
    options: TaskOptions = TaskOptions()
    needs_chat: str = ""
    score_all: Callable[[Sequence[tuple[Any, str]]], tuple[list[float], float]] | None = None

    def __post_init__(self) -> None:
        if self.is_generative and self.reward_metric not in self.metrics:
            raise errors.unknown("reward metric", self.reward_metric, self.metrics, f"task {self.name!r}")
        try:
            self._styles  # noqa: B018  (a regular expression that is none is told before anything is computed)
        except (re.error, TypeError, AttributeError) as error:
            raise UsageError(
                f"task {self.name!r}: metadata.{STYLES} is no table of regular expressions: {error}"
            ) from None
        if not isinstance(self._metadata.get(GROUP_BY, ""), str):
            raise UsageError(f"task {self.name!r}: metadata.{GROUP_BY} must name one field of its items")

    @property
    def lm_eval_task(self) -> Any:
        """The task itself; of a group, its first member, with which the others share what is asked of it."""
        return self.members[0]

    @property
    def is_group(self) -> bool:
        return len(self.members) > 1

    @property
    def is_generative(self) -> bool:
        return bool(self.lm_eval_task.OUTPUT_TYPE == "generate_until")

    @property
    def version(self) -> str:
        return str(self.lm_eval_task.VERSION)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every "metric,filter" of the task, in its own order: filters outside, metrics inside."""
        return tuple(f"{metric},{name}" for name in self._filters for metric in self.lm_eval_task.aggregation())

    @property
    def _filters(self) -> dict[str, Any]:
        return {ensemble.name: ensemble for ensemble in self.lm_eval_task._filters}

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Where an answer ends; what follows is neither graded nor shown. () for a task that does not generate."""
        return stops_of(self.lm_eval_task.config.generation_kwargs or {})

    @property
    def max_new_tokens(self) -> int:
        """Tokens that the task leaves for an answer."""
        return max_tokens_of(self.lm_eval_task.config.generation_kwargs or {})

    @property
    def num_fewshot(self) -> int:
        return int(self.lm_eval_task.config.num_fewshot or 0)

    @property
    def protocol(self) -> str:
        """How the task is evaluated, in one line for a report."""
        config = self.lm_eval_task.config
        filters = "" if list(self._filters) == ["none"] else f"; filters {', '.join(self._filters)}"
        group = f" of {len(self.members)} tasks" if self.is_group else ""
        split = config.test_split or config.validation_split
        num_items = sum(len(one.eval_docs) for one in self.members)
        return (
            f"{self.num_fewshot}-shot; split {split}, n = {num_items}{group}{filters}; "
            f"task version {self.version}, lm-eval {version('lm_eval')}"
        ) + (f"; reward: {told}" if (told := self._metadata.get(REWARD_TOLD)) else "")

    @cached_property
    def _train_docs(self) -> Any:
        return self.lm_eval_task.training_docs()

    @cached_property
    def _test_docs(self) -> Any:
        return self.lm_eval_task.eval_docs

    @cached_property
    def _offsets(self) -> dict[str, int]:
        """By member's name, the index of its first item in the whole task."""
        sizes = [len(member.eval_docs) for member in self.members]
        starts = [0, *accumulate(sizes)]
        return {str(member.config.task): start for member, start in zip(self.members, starts, strict=False)}

    @property
    def _metadata(self) -> dict[str, Any]:
        return self.lm_eval_task.config.metadata or {}

    @cached_property
    def _styles(self) -> dict[str, re.Pattern[str]]:
        return {name: re.compile(regex) for name, regex in self._metadata.get(STYLES, {}).items()}

    def is_higher_better(self, metric: str) -> bool:
        """Whether the task says that more of "metric,filter" is better; it does not of a share of a style."""
        return bool((self.lm_eval_task.higher_is_better() or {}).get(metric.partition(",")[0], False))

    def member_of(self, request: Instance) -> Any:
        return next(one for one in self.members if str(one.config.task) == request.task_name)

    def place_of(self, request: Instance) -> tuple[int, str]:
        """Index of a request's item in the whole task, and what it belongs to.

        That is the member of a group of tasks, or what the item's field `metadata.group_by` says.
        """
        field = self._metadata.get(GROUP_BY)
        if field is not None and field not in request.doc:
            raise UsageError(
                f"task {self.name!r}: metadata.{GROUP_BY} is {field!r}, which item {request.doc_id} has not"
            )
        belongs = request.doc[field] if field is not None else request.task_name
        return self._offsets[request.task_name] + int(request.doc_id), str(belongs)

    def examples(self, split: str, chat: Chat | None = None) -> tuple[Example, ...]:
        """Prompt and gold of every document of a split.

        Args:
            split: "train", the documents that may be trained on, or "test", those that are evaluated.
            chat: the chat template that prompts are put into; None: plain text.

        Returns:
            One example a document, in its order; prompts hold the worked examples that lm-eval would put there.

        Raises:
            UsageError: the task does not generate text, has no training split, or needs a chat template.
        """
        if split not in ("train", "test"):
            raise errors.unknown("split", split, ("train", "test"), f"task {self.name!r}")
        self._check_trainable(needs_training_split=split == "train")
        self.check_chat(is_chat=chat is not None)
        if chat is None and split in self._plain_examples:
            return self._plain_examples[split]
        docs = self._train_docs if split == "train" else self._test_docs
        contexts = self._contexts(self.lm_eval_task, docs, chat, are_training_docs=split == "train")
        examples = tuple(
            # In a chat the answer follows the template's own opening of a turn, without a delimiter.
            Example(index, context, self._gold(doc).lstrip() if chat else self._gold(doc))
            for index, (doc, context) in enumerate(zip(docs, contexts, strict=True))
        )
        if chat is None:
            self._plain_examples[split] = examples
        return examples

    @cached_property
    def _plain_examples(self) -> dict[str, tuple[Example, ...]]:
        """Examples without a chat template, by split: a worker trains many arms on them."""
        return {}

    def _check_trainable(self, *, needs_training_split: bool) -> None:
        if self.is_group:
            raise UsageError(
                f"task {self.name!r} is a group of {len(self.members)} tasks, so it cannot be a target; use one of "
                "them, and the group for retention"
            )
        if not self.is_generative:
            raise UsageError(
                f"task {self.name!r} is {self.lm_eval_task.OUTPUT_TYPE}: it has no prompts to continue, so it cannot "
                "be a target; use a generate_until task, and this one for retention"
            )
        if needs_training_split and not self.lm_eval_task.has_training_docs():
            raise UsageError(
                f"task {self.name!r} has no training split, so there is nothing to train on; add `training_split` "
                "to its YAML, or choose another target"
            )

    def check_chat(self, *, is_chat: bool) -> None:
        """Refuse to train or evaluate without a chat template (`UsageError`) where prompts are none without it."""
        if self.needs_chat and not is_chat:
            raise UsageError(self.needs_chat)

    def check_target(self) -> None:
        """Refuse a task that cannot be trained on, before any model is loaded.

        Raises:
            UsageError: it is a group, does not generate text, has no training split, or its reward metric takes several
                answers to a prompt or all answers at once.
        """
        self._check_trainable(needs_training_split=True)
        steps = [step() for step in self._filters[self._reward_filter].filters]
        if (num_answers := max((step.k for step in steps if isinstance(step, TakeKFilter)), default=1)) > 1:
            raise UsageError(
                f"task {self.name!r}: reward_metric {self.reward_metric!r} is a score of {num_answers} answers to a "
                f"prompt, and a reward is one of each answer; use another of {', '.join(self.metrics)}"
            )
        if not len(self._train_docs):
            raise UsageError(f"task {self.name!r}: its training split is empty")
        if self.score_all is None and self.reward_metric not in self._graded(0, ""):
            raise UsageError(
                f"task {self.name!r}: reward_metric {self.reward_metric!r} is no score of a single answer, which a "
                f"reward is; use another of {', '.join(self.metrics)}, or a task that has one"
            )

    def _contexts(self, member: Any, docs: Any, chat: Chat | None, *, are_training_docs: bool) -> Iterator[str]:
        """The prompt of every document; drawn from the start, so equal for equal calls."""
        task = copy.copy(member)
        task.set_fewshot_seed(FEWSHOT_SEED)
        sampler = task.sampler
        for doc in docs:
            if are_training_docs:
                # lm-eval takes a document out of its worked examples only if it is evaluated.
                task.sampler = OtherDocs(sampler, doc)
            yield task.fewshot_context(
                doc,
                num_fewshot=self.num_fewshot,
                gen_prefix=task.doc_to_prefix(doc),
                # `lm_eval --apply_chat_template` keeps worked examples as turns of their own as well.
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=chat is not None,
                chat_template=chat,
            )

    def _gold(self, doc: Any) -> str:
        """What lm-eval would write after the prompt if the document were a worked example; "" without one text."""
        task = self.lm_eval_task
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice else None
        target = task.doc_to_target(doc)
        if isinstance(target, list):
            target = target[0] if target else ""
        if isinstance(target, int) and not choices:
            target = str(target)
        if not isinstance(target, str | int):
            return ""
        turn = {"q": task.doc_to_text(doc), "c": choices, "gen_prefix": task.doc_to_prefix(doc), "few_delim": ""}
        turn["tgt_delim"] = task.config.target_delimiter
        asked = "".join(message.to_text() for message in task.build_qa_turn(**turn))
        answered = "".join(message.to_text() for message in task.build_qa_turn(**turn, a=target))
        return answered.removeprefix(asked)

    def reward(self, index: int, text: str) -> float:
        """`reward_metric` of an answer as an evaluation scores it, usually 0..1; nan if it cannot be scored.

        `index`: the document's `Example.index` in split "train"; `text`: the continuation of its prompt, up to a stop.
        """
        return self._graded(index, text).get(self.reward_metric, math.nan)

    def _graded(self, index: int, text: str) -> dict[str, float]:
        """The scores of an answer to a training document by the filter of the reward."""
        metadata = (str(self.lm_eval_task.config.task), index, 1)
        answer = [cut_at(text, self.stop_strings)]
        request = Instance("generate_until", self._train_docs[index], ("", {}), 0, metadata, resps=answer)
        return self.grade([request], self._reward_filter)

    def rewards(self, indices: Sequence[int], texts: Sequence[str]) -> tuple[list[float], float]:
        """`reward` of many answers, and the FLOPs of the model that read them: 0 where none does."""
        if self.score_all is None:
            return [self.reward(index, text) for index, text in zip(indices, texts, strict=True)], 0.0
        docs, answers = (self._train_docs[i] for i in indices), (cut_at(text, self.stop_strings) for text in texts)
        return self.score_all([*zip(docs, answers, strict=True)])

    @property
    def _reward_filter(self) -> str:
        return self.reward_metric.partition(",")[2]

    def requests(self, limit: int | None = None, chat: Chat | None = None, items: str = SAMPLE) -> list[list[Instance]]:
        """What lm-eval would ask of a model: the requests of each evaluated document, in order.

        Args:
            limit: number of documents (of a group, from its members in turn); None for all.
            chat: the chat template that prompts are put into; None: plain text.
            items: which documents `limit` takes: "sample", the same ones each time and a larger limit's among them, or
                "first".
        """
        asked = []
        for member, chosen in zip(self.members, self._chosen(limit, items), strict=True):
            docs = [member.eval_docs[index] for index in chosen]
            contexts = self._contexts(member, docs, chat, are_training_docs=False)
            for index, doc, context in zip(chosen, docs, contexts, strict=True):
                metadata = (str(member.config.task), index, member.config.repeats)
                made = member.construct_requests(
                    doc=doc, ctx=context, metadata=metadata, apply_chat_template=chat is not None, chat_template=chat
                )
                asked.append(made if isinstance(made, list) else [made])
        return asked

    def memory_prompts(self, count: int, chat: Chat | None = None) -> tuple[str, ...]:
        """Prompts by which a policy may be held to what it says in this task: never an answer, never a score.

        Args:
            count: how many, of a group its members' in turn; fewer where there are no more.
            chat: the chat template that prompts are put into; None: plain text.

        Returns:
            The first prompts of the training split; of a task without one, those of the documents that a limited
            evaluation takes last.
        """
        prompts: list[str] = []
        for member, share in zip(self.members, self._shares(count), strict=True):
            has_split = member.has_training_docs()
            left = leave(str(member.config.task), len(member.eval_docs), share)
            docs = list(member.training_docs())[:share] if has_split else [member.eval_docs[index] for index in left]
            prompts += self._contexts(member, docs, chat, are_training_docs=has_split)
        return tuple(prompts)

    def num_remembered(self, count: int, limit: int | None, items: str = SAMPLE) -> int:
        """How many of `memory_prompts(count)` belong to documents that are evaluated with `limit` and `items`."""
        shared = 0
        for member, share, chosen in zip(self.members, self._shares(count), self._chosen(limit, items), strict=True):
            if not member.has_training_docs():
                shared += len(set(chosen) & set(leave(str(member.config.task), len(member.eval_docs), share)))
        return shared

    def _chosen(self, limit: int | None, items: str) -> list[list[int]]:
        return choose({str(one.config.task): len(one.eval_docs) for one in self.members}, limit, items)

    def _shares(self, count: int) -> list[int]:
        return share_out([len(member.eval_docs) for member in self.members], count)

    def grade(self, requests: Sequence[Instance], only: str | None = None) -> dict[str, float]:
        """The scores of one document whose requests hold their responses.

        Args:
            requests: those of the document.
            only: the filter that is applied; None: all. Others may ask for more answers than there are.

        Returns:
            "metric,filter" → score, for the metrics that score single documents; nan where the grader failed. Metrics
            that exist for a whole corpus only (F1, perplexity) are left out. "style,<name>" → 1 if the answer is
            written in that style of the task file, else 0.
        """
        scores: dict[str, float] = {}
        member = self.member_of(requests[0])
        for ensemble in (one for one in member._filters if only in (None, one.name)):
            name = ensemble.name
            try:
                ensemble.apply(list(requests))
                answers = [request.filtered_resps[name] for request in requests]
                results = member.process_results(requests[0].doc, answers)
            except GRADER_ERRORS:
                scores |= {metric: math.nan for metric in self.metrics if metric.endswith(f",{name}")}
                continue
            scores |= {f"{metric},{name}": float(v) for metric, v in results.items() if isinstance(v, Real | np.bool_)}
        if only is None:
            answer = str(requests[0].resps[0])
            scores |= {f"{STYLE}{name}": float(bool(regex.search(answer))) for name, regex in self._styles.items()}
        return scores
