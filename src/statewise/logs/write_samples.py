"""Recorded item scores as the files that lm-eval writes with `--log_samples`: for tools that read those.

What an evaluation does not record (the document, filtered answers) comes from the task, after its digests were compared
with those of the items; the scores are computed once more and must be the recorded ones. Only greedy answers and scored
choices have such a file, since lm-eval knows one decoding a task.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator_utils import _process_results
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list, sanitize_model_name

from statewise.errors import UsageError
from statewise.folder.protocol import item_text
from statewise.storage import records
from statewise.tasks.generation import max_tokens_of
from statewise.tasks.items import FIRST
from statewise.tasks.quiet import quiet_lm_eval
from statewise.tasks.task import FEWSHOT_SEED, GRADER_ERRORS, Task

Rows = Sequence[Mapping[str, Any]]
DECODINGS = ("choices", "greedy")
VERSION, CAP = re.compile(r"lm-eval ([^;,\s]+)"), re.compile(r"at most (\d+) new tokens")


@dataclass(frozen=True)
class EvaluatedTask:
    """A task and the rows that an evaluation recorded of it; `limit` and `items`: which it took (`Task.requests`)."""

    task: Task
    rows: Rows
    limit: int | None
    items: str
    protocol: str


def write_samples(folder: Path, model: str, tasks: Sequence[EvaluatedTask]) -> list[Path]:
    """Write samples and results below `folder`, in a folder of the model's name, as lm-eval does; returns the files.

    Args:
        folder: where to write; files of other runs may be there.
        model: the model's name.
        tasks: what was evaluated.

    Raises:
        UsageError: a task is another one than was evaluated, or its records are of a version that kept too little.
    """
    date = datetime.now().isoformat().replace(":", "-")
    place, accumulated = folder / sanitize_model_name(model), dict[str, Any]()
    with quiet_lm_eval():
        for member, sample in (pair for one in tasks for pair in _samples(one)):
            entry = {"task": member, "raw_metrics": {}, "logged_samples": []}
            entry = accumulated.setdefault(str(member.config.task), entry)
            entry["logged_samples"].append(sample)
            for metric in sample["metrics"]:
                entry["raw_metrics"].setdefault((metric, sample["filter"]), []).append(sample[metric])
        results = _process_results(accumulated, {}, None)._to_eval_results()
    samples = {name: entry["logged_samples"] for name, entry in accumulated.items()}
    results |= _about(model, tasks, samples)
    for config in results["configs"].values():
        config.pop("custom_dataset", None)  # a function
    paths = []
    for name, rows in samples.items():
        paths.append(place / f"samples_{name}_{date}.jsonl")
        records.write_bytes(paths[-1], "".join(_line(row) for row in rows).encode())
    paths.append(place / f"results_{date}.json")
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    records.write_bytes(paths[-1], text.encode())
    return paths


def _samples(one: EvaluatedTask) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each sample with the task or member it belongs to, filter by filter, as lm-eval orders them."""
    recorded: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in one.rows:
        if row["decoding"] in DECODINGS:
            recorded.setdefault(row["item"], {})[row["metric"]] = row
    if not recorded:
        raise UsageError(f"task {one.task.name!r}: was not decoded greedily, and lm-eval's files hold nothing else")
    asked = one.task.requests(one.limit, items=one.items)
    if {one.task.place_of(requests[0])[0] for requests in asked} != recorded.keys():
        raise UsageError(f"task {one.task.name!r}: has other items than were evaluated; evaluate it again")
    for member in one.task.members:
        own = [requests for requests in asked if requests[0].task_name == str(member.config.task)]
        for requests in own:
            _answer(one.task, requests, next(iter(recorded[one.task.place_of(requests[0])[0]].values())))
        for ensemble in member._filters:
            for requests in own:
                rows = recorded[one.task.place_of(requests[0])[0]]
                sample = _sample(one.task, member, requests, ensemble, rows)
                yield member, sample | {"arguments": [_asked(one, request) for request in requests]}


def _asked(one: EvaluatedTask, request: Instance) -> tuple[Any, ...]:
    """The arguments of a request, with the limit of tokens that it had: the evaluation's, where that is lower."""
    if cap := CAP.search(one.protocol):
        prompt, kwargs = request.args
        if int(cap[1]) < max_tokens_of(kwargs):
            return prompt, {**kwargs, "max_gen_toks": int(cap[1])}
    return tuple(request.args)


def _answer(task: Task, requests: Sequence[Instance], row: Mapping[str, Any]) -> None:
    """Put the recorded responses into an item's requests."""
    place = f"task {task.name!r}, item {row['item']}"
    sha256 = hashlib.sha256(item_text(requests[0].doc, [one.args for one in requests])).hexdigest()
    if row.get("item_sha256") != sha256:
        why = "is another document or prompt than was evaluated" if row.get("item_sha256") else "has no digest"
        raise UsageError(f"{place}: {why}; evaluate it again")
    if task.is_generative:
        requests[0].resps.append(row["response"])
        return
    if row.get("logprobs") is None:
        raise UsageError(f"{place}: was recorded by an older version, without log-likelihoods; evaluate it again")
    for request, logprob, is_greedy in zip(requests, row["logprobs"], row["are_greedy"], strict=True):
        request.resps.append((logprob, is_greedy))


def _sample(
    task: Task, member: Any, requests: Sequence[Instance], ensemble: Any, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """One row as `lm_eval.evaluator.evaluate` makes it."""
    doc, name = requests[0].doc, ensemble.name
    scored = {
        metric.removesuffix(f",{name}"): row["score"] for metric, row in rows.items() if metric.endswith(f",{name}")
    }
    try:
        ensemble.apply(list(requests))
        metrics = member.process_results(doc, [request.filtered_resps[name] for request in requests])
    except GRADER_ERRORS:  # on which lm-eval itself would end
        metrics = {metric: math.nan for metric in scored if f"{metric},{name}" in task.metrics}
    for metric, score in scored.items():
        if (
            metric in metrics
            and float(metrics[metric]) != score
            and not (score is None and metrics[metric] != metrics[metric])
        ):
            raise UsageError(
                f"task {task.name!r}, item {requests[0].doc_id}: {metric} is {metrics[metric]} now and was recorded as "
                f"{score}; another version graded it, or its grader is not a function of the answer"
            )
    target = member.doc_to_target(doc)
    document = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return {
        "doc_id": requests[0].doc_id,
        "doc": doc,
        "target": target,
        "arguments": [],
        "resps": [request.resps for request in requests],
        "filtered_resps": [request.filtered_resps.get(name) for request in requests],
        "filter": name,
        "metrics": list(metrics),
        "doc_hash": hash_string(document),
        "prompt_hash": hash_string(requests[0].args[0]),
        "target_hash": hash_string(str(target)),
        **metrics,
    }


def _line(sample: Mapping[str, Any]) -> str:
    """A sample as `EvaluationTracker.save_results_samples` writes it."""
    arguments = {
        f"gen_args_{place}": {f"arg_{index}": value for index, value in enumerate(asked)}
        for place, asked in enumerate(sample["arguments"])
    }
    lists = {key: sanitize_list(sample[key]) for key in ("resps", "filtered_resps")}
    row = {**sample, **lists, "arguments": arguments, "target": str(sample["target"])}
    return json.dumps(row, default=handle_non_serializable, ensure_ascii=False) + "\n"


def _about(model: str, tasks: Sequence[EvaluatedTask], samples: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What lm-eval adds to the results about model and settings; what is not known is left out."""
    versions = {found[1] for one in tasks if (found := VERSION.search(one.protocol))}
    limits = {one.limit for one in tasks if one.items == FIRST}
    hashes = {
        name: hash_string("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
        for name, rows in samples.items()
    }
    return {
        "config": {
            "model": "statewise", "model_args": {"pretrained": model}, "gen_kwargs": {}, "fewshot_seed": FEWSHOT_SEED,
            "limit": limits.pop() if len(limits) == 1 else None,
        },
        "date": time.time(), "lm_eval_version": versions.pop() if len(versions) == 1 else None,
        "system_instruction": None, "system_instruction_sha": None, "fewshot_as_multiturn": None,
        "chat_template": None, "chat_template_sha": None, "task_hashes": hashes,
        "model_source": "statewise", "model_name": model, "model_name_sanitized": sanitize_model_name(model),
    }  # fmt: skip
