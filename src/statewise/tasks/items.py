"""Which documents a limited evaluation takes: a fair sample, or the first ones, as `lm_eval --limit` does.

The sample is a function of the task's name and size, so that it is the same for all arms, studies and machines, and a
larger limit's holds a smaller one's. Departs from lm-eval, whose first n are the best known ones of a sorted file.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SAMPLE, FIRST = "sample", "first"
CHOICES_OF_ITEMS = (SAMPLE, FIRST)
# Metrics of lm-eval that say whether the likeliest of an item's choices is a right one.
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


def share_out(sizes: Sequence[int], limit: int | None) -> list[int]:
    """How many documents of each member of a group `limit` takes: one of each in turn; all for None."""
    if limit is None:
        return list(sizes)
    in_turns = sorted((index, place) for place, size in enumerate(sizes) for index in range(min(size, limit)))
    counts = Counter(place for _, place in in_turns[:limit])
    return [counts[place] for place in range(len(sizes))]


def choose(sizes: Mapping[str, int], limit: int | None, items: str) -> list[list[int]]:
    """The documents of each member that are evaluated, in their order; `sizes` by the member's name."""
    chosen = []
    for (name, size), count in zip(sizes.items(), share_out(list(sizes.values()), limit), strict=True):
        order = _shuffled(name, size) if items == SAMPLE else list(range(size))
        chosen.append(sorted(order[:count]))
    return chosen


def chance_of_guess(num_choices: int, gold: Any = None) -> float | None:
    """That a choice, drawn evenly, is right: one of `gold`, if that is a list, else a single one; None: no choice."""
    num_right = len({*map(str, gold)}) if isinstance(gold, list) else 1
    return num_right / num_choices if 0 < num_right < num_choices else None


def leave(name: str, size: int, count: int) -> list[int]:
    """`count` documents in their order that are the last to enter a sample: for what should not be evaluated."""
    return sorted(_shuffled(name, size)[size - count :])


def _shuffled(name: str, size: int) -> list[int]:
    order = list(range(size))
    random.Random(f"statewise/items/{name}").shuffle(order)
    return order


@dataclass(frozen=True)
class OtherDocs:
    """A few-shot sampler that leaves out one document."""

    sampler: Any
    doc: Any

    def sample(self, n: int, eval_doc: Any = None) -> Any:
        return self.sampler.sample(n=n, eval_doc=self.doc)
