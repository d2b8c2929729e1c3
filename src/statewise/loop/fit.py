"""What makes an update fit the device's memory: micro-batches that are halved, activations that are recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from statewise.errors import OutOfMemoryError
from statewise.types import IntArray, States

Result = TypeVar("Result")
Batches = list[IntArray]


class TokenLimit:
    """Padded tokens that pass a model at once. What did not fit once is not tried again."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def within(
        self,
        batch: Sequence[States],
        split: Callable[[int], Sequence[Batches]],
        run: Callable[[Sequence[Batches]], Result],
    ) -> Result:
        """`run` on micro-batches; where memory runs out, from the start again on micro-batches of half the size.

        Args:
            batch: what is split.
            split: from the most padded tokens of a micro-batch to the micro-batches of each of `batch`.
            run: what passes the model; it may be called several times, and only the last call counts.

        Raises:
            OutOfMemoryError: a single trajectory (or preference) does not fit.
        """
        while True:
            batches = split(self.max_tokens)
            try:
                return run(batches)
            except torch.OutOfMemoryError as error:
                sizes = [
                    _padded_tokens(states, rows) for states, part in zip(batch, batches, strict=True) for rows in part
                ]
                if all(is_single for _, is_single in sizes):
                    longest = max(int(states.lengths.max()) for states in batch)
                    raise OutOfMemoryError(
                        f"one trajectory of {longest} tokens does not fit the device's memory ({error}); train an "
                        "adapter, set update.activation_checkpointing, or shorten max_new_tokens"
                    ) from None
            # Outside of the handler, whose traceback would keep the tensors of the failed pass alive.
            self.max_tokens = min(self.max_tokens, max(size for size, _ in sizes)) // 2
            torch.cuda.empty_cache()


def _padded_tokens(states: States, rows: IntArray) -> tuple[int, bool]:
    """Padded tokens of a micro-batch, and whether it cannot be parted: one row, or the two of a preference."""
    smallest = 1 if states.pair_ids is None else 2
    return int(states.lengths[rows].max()) * len(rows), len(rows) <= smallest


@contextmanager
def recomputed_activations(model: PreTrainedModel) -> Iterator[None]:
    """Layers that recompute their activations do so inside.

    transformers lets a layer recompute only in training mode, which would also turn dropout on; so the mode is set on
    these layers alone, not on what they contain.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
