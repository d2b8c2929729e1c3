"""The rollout engines by name. One that serves from another process (vLLM, SGLang) would be one file and one entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from statewise.policy.generate_batch import sample_by_generate_batch
from statewise.policy.load import Policy
from statewise.policy.sampler import Sampling, sample
from statewise.types import Rollout


class Sampler(Protocol):
    """One continuation of each prompt, in their order, with the log-probabilities it was drawn with (nats).

    The loop computes the log-probabilities of the learner's own texts again and records how far the engine's are off
    (`policy/sampler_mismatch_nats`).
    """

    def __call__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]: ...


SAMPLERS: dict[str, Sampler] = {"own": sample, "generate_batch": sample_by_generate_batch}
