"""One distance of one run over its training seeds: mean, interval, and one p-value for all seeds together.

Every seed trains a policy of its own and draws rollouts of its own, from the base model too; only the prompts are the
same. Under "no seed's policy differs from the base model" the seeds' p-values are therefore independent, which is what
combining them asks for. A verdict that wanted every seed below the level would resolve less with every seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from statewise.drift.measure import DriftValue
from statewise.storage.records import LEVEL, DriftEstimate

SEVERAL_SEEDS = "t interval over seeds, on the same prompts in every seed; p: Fisher's combination of the seeds'"
ONE_SEED = "one training seed: no interval over seeds; p: of that seed"
NO_SPREAD = "every seed has the same value: no interval over seeds; p: Fisher's combination of the seeds'"


def over_seeds(values: Sequence[DriftValue]) -> DriftEstimate:
    """Mean over seeds with its t interval, and Fisher's combination of the p-values.

    p = P(chi2_{2k} >= -2 sum_s ln p_s), k seeds.

    The p-values are those of permutations: discrete, and P(p_s <= a) <= a. That makes the combination err on the safe
    side. B permutations bound it from below: p_s >= 1 / (B + 1), so that with B = 500 p cannot be smaller than .0020
    with one seed and 1.5e-6 with three.

    Args:
        values: one a seed, at least one; all of the same distance.

    Returns:
        The estimate. `low`, `high`: None with one seed, and where all seeds have the same value. With two seeds the
        interval has one degree of freedom and reaches 12.7 standard errors to each side; from three on it says
        something. `p_value`: None where no seed has one.
    Source:
        Fisher, Statistical Methods for Research Workers (1932), section 21.1; Student's t (1908).
    """
    measured = np.array([one.value for one in values])
    p_values = tuple(one.p_value for one in values if one.p_value is not None)
    mean, low, high = float(measured.mean()), None, None
    if len(measured) == 1:
        method = ONE_SEED
    elif np.ptp(measured) == 0:
        method = NO_SPREAD
    else:
        method = SEVERAL_SEEDS
        interval = stats.t.interval(LEVEL, len(measured) - 1, mean, stats.sem(measured))
        low, high = float(interval[0]), float(interval[1])
    return DriftEstimate(
        value=mean,
        low=low,
        high=high,
        floor=float(np.mean([one.floor for one in values])),
        p_values=p_values,
        p_value=float(stats.combine_pvalues(p_values, "fisher").pvalue) if p_values else None,
        num_seeds=len(values),
        method=method,
    )
