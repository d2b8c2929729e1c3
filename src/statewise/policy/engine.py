"""The rollout engines by name. One that serves from another process (vLLM, SGLang) is one file and one entry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from statewise.registry import Registry
from statewise.types import Rollout

if TYPE_CHECKING:
    from statewise.policy.load import Policy
    from statewise.policy.sampler import Sampling


class RolloutEngine(ABC):
    """Writes for the policies of one arm, from its first update to its last.

    The loop computes the log-probabilities of the learner's own texts again and records how far the engine's are off
    (`policy/sampler_mismatch_nats`).
    """

    @abstractmethod
    def sample(
        self, policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]:
        """One continuation of each prompt, in their order, with the log-probabilities it was drawn with (nats)."""

    @abstractmethod
    def sync_weights(self, policy: Policy) -> None:
        """Take over the weights of `policy`, which writes next: it never did, or they are others than when it did."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; nobody writes any more."""


class InProcessEngine(RolloutEngine):
    """An engine that reads the policy itself, so that there is nothing to take over and nothing to give back."""

    def sync_weights(self, policy: Policy) -> None:
        return

    def close(self) -> None:
        return


# Loaded where one samples: a study that names them is checked without torch.
ENGINES: Registry[Callable[[], RolloutEngine]] = Registry("sampler", "statewise.engines")
ENGINES.put_later("own", "statewise.policy.sampler:OwnEngine")
ENGINES.put_later("generate_batch", "statewise.policy.generate_batch:GenerateBatch")
