"""A policy evaluated on a task for later comparisons: its scores, and what has to be equal for two to be compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statewise.config.study import DriftSection, SharedSection
from statewise.drift.features import FeatureConfig
from statewise.drift.measure import DriftConfig
from statewise.seeding import derive_key
from statewise.storage import records
from statewise.tasks.items import FIRST, SAMPLE

if TYPE_CHECKING:  # they import lm-eval or torch, which takes seconds
    from statewise.evals.evaluate import EvalProtocol
    from statewise.policy.load import Policy
    from statewise.tasks.task import Task

# What `describe_protocol` ends with where an evaluation is limited; an older version did not say which items.
LIMIT = re.compile(r"; \d+ items only(; (the first items|a seeded sample of the items))?$")
# What it says of the decodings; each score says its own.
DECODINGS = re.compile(r"; (greedy|sampled)( and sampled)?, at most ")
PACKAGES = ("statewise", "torch", "transformers", "lm-eval")


@dataclass(frozen=True)
class AskedItems:
    """What is asked in an evaluation: `sha256` over all of it; by the number of an item its own, and its prompt."""

    sha256: str
    items: dict[int, tuple[str, str]]


def evaluate_into(path: Path, policy: Policy, task: Task, protocol: EvalProtocol) -> dict[str, Any]:
    """Evaluate `policy` on `task` and write its scores to the table `path`; returns what is recorded of them."""
    from statewise.evals.evaluate import evaluate

    asked = ask_items(task, protocol.limit, protocol.items)
    rows = [
        row | dict(zip(("item_sha256", "prompt"), asked.items[row["item"]], strict=True))
        for row in evaluate(policy, task, protocol)
    ]
    sha256 = records.write_table(path, rows, records.ITEM_SCHEMA)
    return {
        "protocol": describe_protocol(task, protocol),
        "num_items": len({row["item"] for row in rows}),
        "items_sha256": asked.sha256,
        "device": describe_device(policy),
        "versions": {name: version(name) for name in PACKAGES},
        "sha256": sha256,
    }


def eval_protocol(shared: SharedSection, arm: str, seed: int) -> EvalProtocol:
    """How a study evaluates an arm; the seed and the arm's name decide the sampled answers."""
    from statewise.evals.evaluate import EvalProtocol

    section = shared.evaluation
    return EvalProtocol(
        limit=section.limit,
        seed=derive_key("statewise", seed, arm, "evaluate"),
        max_new_tokens=section.max_new_tokens,
        is_chat=shared.chat,
        items=section.items,
        samples=section.samples,
    )


def describe_protocol(task: Task, protocol: EvalProtocol) -> str:
    """The task's own protocol, and what an evaluation adds to it."""
    decodings = f"; {' and '.join(protocol.decodings)}, at most {protocol.max_new_tokens} new tokens"
    if protocol.samples:
        decodings += f"; pass@{protocol.samples} of {protocol.samples} samples"
    limit = ""
    if protocol.limit:
        chosen = "the first items" if protocol.items == FIRST else "a seeded sample of the items"
        limit = f"; {protocol.limit} items only; {chosen}"
    chat = "; chat template" if protocol.is_chat else ""
    return task.protocol + (decodings if task.is_generative else "") + chat + limit


def describe_device(policy: Policy) -> str:
    """Where and in which precision a policy computes, e.g. "cpu, bfloat16"."""
    return f"{policy.device.type}, {str(policy.model.dtype).removeprefix('torch.')}"


@lru_cache(maxsize=64)
def ask_items(task: Task, limit: int | None, items: str = SAMPLE) -> AskedItems:
    """The evaluated documents and what is asked of a model about each, whatever the model.

    A chat template is the model's own and left out; that there is one stands in the protocol. Two tasks of one name
    and protocol may have other data (two pocket worlds do); the digests tell them apart. The prompt is that of an
    item's first request; a few tasks put one before each choice.
    """
    whole, by_item = hashlib.sha256(), {}
    for requests in task.requests(limit, items=items):
        text = item_text(requests[0].doc, [one.args for one in requests])
        whole.update(text)
        by_item[task.place_of(requests[0])[0]] = (hashlib.sha256(text).hexdigest(), str(requests[0].args[0]))
    return AskedItems(whole.hexdigest(), by_item)


def item_text(doc: Any, asked: Sequence[Any]) -> bytes:
    """What the digest of an item is of: its document, and what is asked of a model about it, request by request."""
    return json.dumps([doc, asked], sort_keys=True, default=str).encode()


def digest_items(task: Task, limit: int | None, items: str = SAMPLE) -> str:
    """SHA-256 over the evaluated documents and what is asked about each."""
    return ask_items(task, limit, items).sha256


def without_limit(protocol: str) -> str:
    """A protocol without what it says of how many items were taken, and which."""
    return LIMIT.sub("", protocol)


def comparable(protocol: str) -> str:
    """What has to be equal of two protocols: neither how many items were taken, nor which decodings were tried."""
    return DECODINGS.sub("; at most ", without_limit(protocol))


def differing_parts(ours: str, theirs: str) -> tuple[str, str]:
    """The parts of two protocols that the other one does not have, e.g. ("n = 600", "n = 200")."""
    a, b = (re.split("[;,] ", protocol) for protocol in (ours, theirs))
    return ", ".join(part for part in a if part not in b), ", ".join(part for part in b if part not in a)


def drift_config(section: DriftSection) -> DriftConfig:
    """What a study measures of drift."""
    features = FeatureConfig(states_per_rollout=section.states_per_rollout)
    return DriftConfig(features, num_permutations=section.num_permutations)


def permutation_key(arm: str, seed: int) -> int:
    """The key of the permutations and projections by which an arm is compared."""
    return derive_key("statewise", seed, arm, "permutations")
