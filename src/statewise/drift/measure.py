"""How far a policy's states have moved from the base model's, each distance with its noise floor and p-value.

Three samples of rollouts on the same prompts: the base model, the base model again under another seed, and the policy
in question. The distance between the two base samples is the floor: a value near it is no drift. Features, bandwidth
and projections are the same for value and floor. The paper (arXiv:2605.22731) gives neither floor nor test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from statewise.drift.centroid import centroid
from statewise.drift.comparison import Comparison, Distance, draw_signs, permutation_p_value
from statewise.drift.features import FeatureConfig, extract_features
from statewise.drift.jaccard import jaccard
from statewise.drift.mmd import median_bandwidth, mmd
from statewise.drift.sliced_wasserstein import draw_projections, sliced_wasserstein
from statewise.drift.within_prompts import within_prompt_mmd
from statewise.errors import UsageError, unknown
from statewise.registry import Registry
from statewise.types import Rollout

DISTANCES: Registry[Distance] = Registry("distance", "statewise.distances")
DISTANCES.put("mmd", mmd)
DISTANCES.put("within_prompt_mmd", within_prompt_mmd)
DISTANCES.put("centroid", centroid)
DISTANCES.put("sliced_wasserstein", sliced_wasserstein)
DISTANCES.put("jaccard", jaccard)


@dataclass(frozen=True)
class DriftConfig:
    """What to measure.

    `distances`: names from `DISTANCES`. `num_permutations` >= 1: the smallest p-value is 1 / (1 + num_permutations).
    `num_projections` >= 1: random directions of the sliced Wasserstein distance (50 is POT's default).
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    distances: tuple[str, ...] = field(default_factory=lambda: tuple(DISTANCES))
    num_permutations: int = 500
    num_projections: int = 50

    def __post_init__(self) -> None:
        for name in self.distances:
            if name not in DISTANCES:
                raise unknown("distance", name, DISTANCES, where="drift")
        for name in ("num_permutations", "num_projections"):
            if getattr(self, name) < 1:
                raise UsageError(f"drift: {name} is {getattr(self, name)}: set it to 1 or more")


@dataclass(frozen=True)
class DriftValue:
    """One distance between a policy's states and the base model's.

    `value` and `floor` are in the distance's own unit, larger = more different; `floor` is base against base again.
    `p_value` (0..1) tests "the policy is the base model" by swapping rollouts within prompts; None where a distance
    has no such test (all present ones have). `num_rollouts` and `num_states` count one sample.
    """

    value: float
    floor: float
    p_value: float | None
    num_rollouts: int
    num_states: int


def measure_drift(
    base: Sequence[Rollout],
    base_again: Sequence[Rollout],
    other: Sequence[Rollout],
    config: DriftConfig,
    key: int,
    twin: Sequence[Rollout] | None = None,
) -> dict[str, DriftValue]:
    """Distances of `other` from `base`, with the distance of `base_again` from `base` as the floor.

    The bandwidth is the median heuristic on all samples together, so that value and floor are on one scale; since
    swaps between `base` and `other` leave that pool as it is, the p-value stays exact.

    Args:
        base: rollouts of the base model, n >= 2; a prompt may have several, in any order.
        base_again: the same prompts in the same order, another seed.
        other: the same prompts in the same order, drawn by the policy in question.
        config: distances and their settings.
        key: seed of permutations and projections; the same key gives the same numbers.
        twin: where `base` is a policy without a second sample, another one's first, of which `base_again` is the
            second: the floor is then between these two.

    Returns:
        One value a name of `config.distances`, in that order; without those that ask for more rollouts a prompt.

    Raises:
        UsageError: fewer than 2 rollouts, unequal numbers of rollouts, or prompts that differ.
    """
    given = {"base": base, "base_again": base_again, "other": other} | ({} if twin is None else {"twin": twin})
    for name, sample in given.items():
        _check_pairing(base, sample, name)
    samples = [extract_features(sample, config.features) for sample in given.values()]
    bandwidth = median_bandwidth([sample.vectors for sample in samples])
    projections = draw_projections(config.features.num_buckets, config.num_projections, key)
    numbers: dict[tuple[int, ...], int] = {}
    prompts = np.array([numbers.setdefault(rollout.prompt_ids, len(numbers)) for rollout in base])
    of_base, of_again, of_other, of_twin = (*samples, samples[0])[:4]
    against_self, against_other = (
        Comparison(*pair, bandwidth, projections, prompts) for pair in ((of_twin, of_again), (of_base, of_other))
    )
    signs = draw_signs(config.num_permutations, len(base), key)
    values = {}
    for name in config.distances:
        floors, distances = DISTANCES[name](against_self, signs[:1]), DISTANCES[name](against_other, signs)
        if floors is None or distances is None:
            continue
        values[name] = DriftValue(
            value=float(distances[0]),
            floor=float(floors[0]),
            p_value=permutation_p_value(distances),
            num_rollouts=len(base),
            num_states=len(base) * config.features.states_per_rollout,
        )
    return values


def _check_pairing(base: Sequence[Rollout], sample: Sequence[Rollout], name: str) -> None:
    if len(base) < 2:
        raise UsageError(f"drift: the sample 'base' has {len(base)} rollouts: sample at least 2 prompts")
    if len(base) != len(sample):
        raise UsageError(
            f"drift: the sample {name!r} has {len(sample)} rollouts, 'base' has {len(base)}: "
            "distances compare rollout i with rollout i, so sample both from the same list of prompts"
        )
    for i, (expected, got) in enumerate(zip(base, sample, strict=True)):
        if expected.prompt_ids != got.prompt_ids:
            raise UsageError(
                f"drift: rollout {i} of the sample {name!r} continues another prompt than rollout {i} of 'base': "
                "sample both from the same prompts in the same order, with the same tokenizer"
            )
