"""What is said of single models: of an exported one in its folder, and of two sides that were compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statewise.storage.records import Estimate


@dataclass(frozen=True)
class ModelScore:
    """One score of an exported model, of its own seed alone; `difference` is model minus base on the same items."""

    column: str
    heading: str
    score: Estimate
    base: Estimate | None = None
    difference: Estimate | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What an exported model folder says of itself, in `statewise.json` and in its model card.

    `base_model` is "pocket", a folder or a hub name, of which `base_revision` is the branch, tag or commit.
    `weights`: "full", "adapter" or "merged" (an adapter added to the base model's weights, float32). `scores` and
    `forgetting` are this model's; `arm_differences` and `arm_forgetting` those of its arm over `arm_seeds` seeds.
    `base_tasks`: benchmarks that the base model's folder brings along. `provenance` holds digests and fingerprints.
    """

    name: str
    study: str
    description: str
    arm: str
    label: str
    seed: int
    base_model: str
    base_revision: str | None
    license: str | None
    weights: str
    recipe: str
    config: dict[str, Any]
    target: str
    retention: tuple[str, ...]
    end_of_text: str | None
    budget: dict[str, float]
    scores: tuple[ModelScore, ...]
    forgetting: Estimate | None
    arm_seeds: int
    arm_differences: dict[str, Estimate]
    arm_forgetting: Estimate | None
    protocols: dict[str, str]
    base_tasks: tuple[str, ...]
    provenance: dict[str, str]
    environment: dict[str, str]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class ScoreComparison:
    """Two sides on the same items of one task, decoding and metric; `difference` is B minus A, paired by item.

    `num_only_a`, `num_only_b`: answers that only one side got right, over all pairs of `num_pairs` (items × seeds);
    None where scores are not 0 or 1. `mcnemar_p`: exact, two-sided; only where each side is one model. `forgetting` is
    A minus B, only where A is the base model and the task is not the target. `gained` (0 → 1 from A to B) and `lost`
    (1 → 0) are shares of the pairs, 0..1, where scores are 0 or 1; `gained_adjusted` and `lost_adjusted` those that
    are no guesses (`results.transitions`), with `chance`, the mean over items that a guess is right; `unadjusted` says
    why there are none. `num_items_a`, `num_items_b`: items that
    each side was evaluated on; more than are compared, where limits differ.
    """

    task: str
    decoding: str
    metric: str
    a: Estimate
    b: Estimate
    difference: Estimate
    num_pairs: int
    num_only_a: int | None = None
    num_only_b: int | None = None
    mcnemar_p: float | None = None
    forgetting: Estimate | None = None
    gained: Estimate | None = None
    lost: Estimate | None = None
    gained_adjusted: Estimate | None = None
    lost_adjusted: Estimate | None = None
    chance: float | None = None
    unadjusted: str = ""
    num_items_a: int = 0
    num_items_b: int = 0


@dataclass(frozen=True)
class Comparison:
    """Side A against side B, task by task; `refused` says of each task that cannot be compared why.

    `forgetting` is the mean F over `forgetting_tasks`, where A is the base model.
    """

    a: str
    b: str
    scores: tuple[ScoreComparison, ...]
    protocols: dict[str, str]
    refused: dict[str, str]
    notes: tuple[str, ...]
    forgetting: Estimate | None = None
    forgetting_tasks: tuple[str, ...] = ()
