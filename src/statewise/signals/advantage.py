"""How rewards become advantages: REINFORCE, RLOO, GRPO, Dr. GRPO."""

from __future__ import annotations

from typing import Literal

import numpy as np

from statewise.batch import FloatArray, IntArray

Advantage = Literal["grpo", "dr_grpo", "rloo", "reinforce"]
Baseline = Literal["none", "batch"]
OF_GROUPS = ("grpo", "dr_grpo", "rloo")  # those that compare the answers to one prompt
# TRL's and DeepSeekMath's guard against a group without spread.
STD_FLOOR = 1e-4


def advantages_of(rewards: FloatArray, groups: IntArray, advantage: Advantage, baseline: Baseline) -> FloatArray:
    """A_i of every trajectory; n = answers to the same prompt that could be scored.

    grpo: (r_i - mean) / (std + 1e-4) · dr_grpo: r_i - mean · rloo: n / (n-1) (r_i - mean), which is r_i less the mean
    of the others · reinforce: r_i, less the mean of the batch for `baseline = "batch"`.

    Args:
        rewards: float32 [batch], nan where a response could not be scored.
        groups: int64 [batch]; equal values form a group.
        advantage: which of them.
        baseline: of `reinforce`.

    Returns:
        Advantages float32 [batch]; 0 for a nan reward and, but for reinforce, for a group of one.

    Source:
        Shao et al., arXiv:2402.03300 (GRPO; sample standard deviation, as TRL); Liu et al., arXiv:2503.20783 (Dr.
        GRPO); Ahmadian et al., arXiv:2402.14740 (RLOO); Williams (1992).
    """
    advantages = np.zeros_like(rewards)
    is_graded = ~np.isnan(rewards)
    if advantage == "reinforce":
        mean = rewards[is_graded].mean() if baseline == "batch" and is_graded.any() else 0.0
        advantages[is_graded] = rewards[is_graded] - mean
        return advantages
    for group in np.unique(groups):
        members = np.flatnonzero((groups == group) & is_graded)
        count = len(members)
        if count < 2:
            continue
        spread = {"grpo": rewards[members].std(ddof=1) + STD_FLOOR, "dr_grpo": 1.0, "rloo": (count - 1) / count}
        advantages[members] = (rewards[members] - rewards[members].mean()) / spread[advantage]
    return advantages
