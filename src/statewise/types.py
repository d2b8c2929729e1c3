"""Frozen data that passes between rooms. Arrays are numpy: what a source yields is what the recorder writes.

Torch enters only where a model does (`policy`, `loop`); sources and signals can thus be listed and checked without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One document of a task, as training and sampling see it.

    `index` is the document's place in its split; `gold` carries its leading delimiter and is "" where the task has
    none.
    """

    index: int
    prompt: str
    gold: str


@dataclass(frozen=True)
class Rollout:
    """One sampled continuation of one prompt.

    `token_ids` holds the new tokens, the end-of-text token included if it was drawn; `logprobs` their log-probabilities
    in nats under the law they were drawn from (temperature applied). `is_finished`: it stopped by itself.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_finished: bool


@dataclass(frozen=True)
class SignalInputs:
    """What a loss may look at, for one flat run of training states.

    `[states]` runs over the trained actions of a micro-batch, row by row, so that padding cannot enter a loss. Losses
    that compare whole laws get logits, in chunks; the others get log-probabilities of the states' labels. What a signal
    does not name in its `needs` is None.

    Shapes: `policy_logits`, `teacher_logits`, `base_logits` float32 [states, vocab], sampling temperature applied;
    `policy_logprobs`, `teacher_logprobs`, `base_logprobs`, `old_logprobs` (the learner when it took up this batch),
    `behavior_logprobs` (nan where unknown), `advantages` float32 [states]; log-probabilities in nats. `rows`, `pairs`
    int64 [states]: row of the micro-batch, and preference pair, counted from 0.
    """

    policy_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    behavior_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    base_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    rows: Tensor | None = None
    pairs: Tensor | None = None
    policy_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    base_logits: Tensor | None = None

    def required(self, name: str) -> Tensor:
        """The input `name`; a missing one is the loop's mistake, not the user's.

        Raises:
            LookupError: the loop did not provide `name`.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise LookupError(f"signal input {name!r} was not provided by the loop")
        return value
