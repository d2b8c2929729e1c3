"""The rollout engines by name. One that serves from another process (vLLM, SGLang) is one file and one entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from statewise.registry import Registry
from statewise.types import Rollout

if TYPE_CHECKING:
    from statewise.policy.load import Policy
    from statewise.policy.sampler import Sampling


class Sampler(Protocol):
    """One continuation of each prompt, in their order, with the log-probabilities it was drawn with (nats).

    The loop computes the log-probabilities of the learner's own texts again and records how far the engine's are off
    (`policy/sampler_mismatch_nats`).
    """

    def __call__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]: ...


# Loaded where one samples: a study that names them is checked without torch.
SAMPLERS: Registry[Sampler] = Registry("sampler", "statewise.engines")
SAMPLERS.put_later("own", "statewise.policy.sampler:sample")
SAMPLERS.put_later("generate_batch", "statewise.policy.generate_batch:sample_by_generate_batch")
