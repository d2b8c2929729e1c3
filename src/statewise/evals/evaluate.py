"""Evaluates a policy on a task: one row an item, decoding and metric (`records.ITEM_SCHEMA`).

Requests, filters and metrics are lm-eval's (`tasks.Task`), and so are the scores, item by item. Departs from
`lm_eval.evaluator`: nothing is aggregated, seeded or cached, and an item whose grader fails has no score instead of
ending the evaluation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.instance import Instance

from statewise import errors
from statewise.errors import UsageError
from statewise.evals.policy_lm import Decoding, PolicyLM
from statewise.evals.preserve import preserve_rng_and_mode
from statewise.policy.load import Policy
from statewise.policy.texts import chat_of
from statewise.tasks.generation import DEFAULT_MAX_NEW_TOKENS
from statewise.tasks.items import CHOICE_METRICS, CHOICES_OF_ITEMS, SAMPLE, chance_of_guess
from statewise.tasks.quiet import quiet_lm_eval
from statewise.tasks.task import Task

TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}
CHOICES = "choices"
NEXT_ANSWER = "\n---\n"  # between several answers to one item in a row


@dataclass(frozen=True)
class EvalProtocol:
    """How tasks are evaluated.

    `limit`: so many items of a task, None for all, and `items` which: "sample" or "first" (`Task.requests`);
    `decodings`: those of tasks that generate, "greedy" (temperature 0) and "sampled" (temperature 1, drawn from `seed`
    and the item); `max_new_tokens`: cap on an answer; `is_chat`: prompts are put into the tokenizer's chat template,
    worked examples as turns; `samples`: so many sampled answers an item, of which the first is the "sampled" one and
    all are graded as "pass@<samples>"; None for one.
    """

    limit: int | None = None
    decodings: tuple[str, ...] = ("greedy", "sampled")
    seed: int = 0
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    is_chat: bool = False
    items: str = SAMPLE
    samples: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("limit", self.limit, 1),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("samples", self.samples, 2),
        ):
            if value is not None and value < least:
                raise UsageError(f"evaluation: {name} is {value}; it must be at least {least}")
        if self.items not in CHOICES_OF_ITEMS:
            raise errors.unknown("choice of items", self.items, CHOICES_OF_ITEMS, "evaluation")
        if self.samples and "sampled" not in self.decodings:
            raise UsageError(f"evaluation: samples is {self.samples}, but nothing is sampled; add it to the decodings")
        if not self.decodings:
            raise UsageError(f"evaluation: no decodings; name at least one of {', '.join(TEMPERATURES)}")
        for decoding in self.decodings:
            if decoding not in TEMPERATURES:
                raise errors.unknown("decoding", decoding, TEMPERATURES, "evaluation")


def evaluate(policy: Policy, task: Task, protocol: EvalProtocol) -> list[dict[str, Any]]:
    """Score `policy` on the items of `task`; nothing but the policy's answers depends on the policy.

    Returns:
        Rows of `records.ITEM_SCHEMA` but what is the same for all models (`folder.protocol`): per decoding ("choices"
        for tasks that score given texts), item and metric. Metrics that exist for a whole corpus only are left out;
        `score` is None where an answer could not be scored.

    Raises:
        UsageError: the task has no metric of single items or needs a chat template, or its texts do not fit the
            model's context.
    """
    if task.lm_eval_task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise _no_item_metric(task)
    task.check_chat(is_chat=protocol.is_chat)
    rows: list[dict[str, Any]] = []
    with preserve_rng_and_mode(policy), quiet_lm_eval():
        for decoding in protocol.decodings if task.is_generative else (CHOICES,):
            temperature = TEMPERATURES.get(decoding, 0.0)
            lm = PolicyLM(policy, Decoding(temperature, protocol.seed, protocol.max_new_tokens))
            items = task.requests(protocol.limit, chat_of(policy) if protocol.is_chat else None, protocol.items)
            num_draws = (protocol.samples or 1) if decoding == "sampled" else 1
            draws = [items, *(_copied(items) for _ in range(num_draws - 1))]
            cut = _answer(lm, [requests for draw in draws for requests in draw])
            rows += _rows(task, decoding, draws[:1], cut)
            if num_draws > 1:
                rows += _rows(task, f"pass@{num_draws}", draws, cut)
    return rows


def _copied(items: Sequence[Sequence[Instance]]) -> list[list[Instance]]:
    """The same requests once more, without responses."""
    return [[replace(request, resps=[], filtered_resps={}) for request in requests] for requests in items]


def pass_at_k(scores: Sequence[float], k: int) -> float:
    """The best of k answers, expected over all choices of k of the n answers that were drawn.

    sum_i s_(i) C(i-1, k-1) / C(n, k), s_(1) <= … <= s_(n); of right and wrong answers, c of them right, it is
    1 - C(n-c, k) / C(n, k). Unbiased for the best of k new answers.

    Args:
        scores: of n >= k answers to one item, 0..1; nan: could not be scored.
        k: >= 1; 1 gives the mean.

    Returns:
        0..1; nan if an answer could not be scored.

    Source:
        Chen et al., arXiv:2107.03374, equation 1, for right and wrong answers.
    """
    if any(math.isnan(score) for score in scores):
        return math.nan
    weighed = (score * math.comb(below, k - 1) for below, score in enumerate(sorted(scores)))
    return sum(weighed) / math.comb(len(scores), k)


def _no_item_metric(task: Task) -> UsageError:
    return UsageError(
        f"task {task.name!r} scores a corpus, not items ({', '.join(task.metrics)}), so policies cannot be compared on "
        "it item by item; choose a task with a metric such as exact_match or acc"
    )


def _answer(lm: PolicyLM, items: Sequence[Sequence[Instance]]) -> set[int]:
    """Put the model's responses into the requests; returns the `id` of those with one cut at the limit of tokens."""
    asked: dict[str, list[Instance]] = defaultdict(list)
    for requests in items:
        for request in requests:
            asked[request.request_type] += [request] * int(request.repeats or 1)
    cut = set[int]()
    for request, written in zip(generated := asked.pop("generate_until", []), lm.write(generated), strict=True):
        request.resps.append(written.text)
        if not written.is_finished:
            cut.add(id(request))
    scored = asked.pop("loglikelihood", [])
    for request, response in zip(scored, lm.loglikelihood(scored, disable_tqdm=True), strict=True):
        request.resps.append(response)
    assert not asked, f"requests of kind {', '.join(asked)}"
    return cut


def _rows(
    task: Task, decoding: str, draws: Sequence[Sequence[Sequence[Instance]]], cut: set[int]
) -> list[dict[str, Any]]:
    """The rows of one decoding; of several draws of an answer, the best is scored, and all stand in `response`.

    `cut` holds the `id` of every request with an answer that did not end by itself.
    """
    graded = [_graded(task, draw) for draw in draws]
    grades = [grade for draw in graded for grade in draw]
    metrics = [
        metric
        for metric in dict.fromkeys(metric for grade in grades for metric in grade)
        # A metric that a graded item lacks is a corpus metric; nan alone only says that a grader failed.
        if all(metric in grade for grade in grades) or any(math.isfinite(g.get(metric, math.nan)) for g in grades)
    ]
    if not metrics:
        raise _no_item_metric(task)
    if len(draws) > 1:
        metrics = [metric for metric in metrics if task.is_higher_better(metric)]
        if not metrics:
            raise UsageError(
                f"task {task.name!r}: {decoding} is the best of several answers, and of none of its metrics does the "
                "task say that more is better (higher_is_better); leave out samples"
            )
    rows = []
    for index, requests in enumerate(draws[0]):
        response = NEXT_ANSWER.join(_response(task, draw[index]) for draw in draws)
        is_one_answer = task.is_generative and len(draws) == 1
        item, member = task.place_of(requests[0])
        chance = _chance(task, requests[0])
        texts = {"logprobs": None, "are_greedy": None} if task.is_generative else _likelihoods(requests)
        for metric in metrics:
            # Of one answer it is the answer's score.
            score = pass_at_k([draw[index].get(metric, math.nan) for draw in graded], len(draws))
            rows.append(
                {
                    "task": task.name,
                    "member": member,
                    "item": item,
                    "decoding": decoding,
                    "metric": metric,
                    "score": score if math.isfinite(score) else None,
                    "response": response,
                    "is_finished": all(id(r) not in cut for r in requests) if is_one_answer else None,
                    "chance": chance if metric.partition(",")[0] in CHOICE_METRICS else None,
                    **texts,
                }
            )
    return rows


def _chance(task: Task, request: Instance) -> float | None:
    """That a guess among the choices of the request's item is right; None for tasks without choices."""
    member = task.member_of(request)
    if member.OUTPUT_TYPE != "multiple_choice":
        return None
    doc = request.doc
    gold = member.doc_to_text(doc) if member.multiple_input else member.doc_to_target(doc)
    return chance_of_guess(len(member.doc_to_choice(doc)), gold)


def _likelihoods(requests: Sequence[Instance]) -> dict[str, list[Any]]:
    logprobs, are_greedy = zip(*(request.resps[0] for request in requests), strict=True)
    return {"logprobs": list(logprobs), "are_greedy": list(are_greedy)}


def _graded(task: Task, items: Sequence[Sequence[Instance]]) -> list[dict[str, float]]:
    """`Task.grade` of each item; a model that rewards reads their answers in batches."""
    if task.score_all is None:
        return [task.grade(requests) for requests in items]
    scores, _ = task.score_all([(requests[0].doc, str(requests[0].resps[0])) for requests in items])
    return [{task.reward_metric: score} for score in scores]


def _response(task: Task, requests: Sequence[Instance]) -> str:
    """What was generated, or the most likely choice; "" for tasks that score one given text."""
    output_type = task.lm_eval_task.OUTPUT_TYPE
    if output_type == "generate_until":
        return str(requests[0].resps[0])
    if output_type != "multiple_choice":
        return ""
    choices = task.member_of(requests[0]).doc_to_choice(requests[0].doc)
    # Requests beyond the choices are those of mutual information, without context.
    logprobs = [request.resps[0][0] for request in requests[: len(choices)]]
    return str(choices[max(range(len(choices)), key=logprobs.__getitem__)])
