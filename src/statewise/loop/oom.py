"""What makes an update fit the device's memory: micro-batches that are halved, activations that are recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from statewise.batch import IntArray, States
from statewise.errors import OutOfMemoryError

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
        *,
        is_packed: bool = False,
    ) -> Result:
        """`run` on micro-batches; where memory runs out, from the start again on micro-batches of half the size.

        Args:
            batch: what is split.
            split: from the most padded tokens of a micro-batch to the micro-batches of each of `batch`.
            run: what passes the model; it may be called several times, and only the last call counts.
            is_packed: rows are laid end to end, so that a micro-batch has hardly any padding.

        Raises:
            OutOfMemoryError: a single trajectory (or preference) does not fit.
        """
        while True:
            batches = split(self.max_tokens)
            try:
                return run(batches)
            except torch.OutOfMemoryError as error:
                parts = [
                    (states.lengths[rows], states) for states, of in zip(batch, batches, strict=True) for rows in of
                ]
                if all(len(lengths) <= (1 if states.pair_ids is None else 2) for lengths, states in parts):
                    longest = max(int(states.lengths.max()) for states in batch)
                    raise OutOfMemoryError(
                        f"one trajectory of {longest} tokens does not fit the device's memory ({error}); train an "
                        "adapter, set update.activation_checkpointing, or shorten max_new_tokens"
                    ) from None
            # Outside of the handler, whose traceback would keep the tensors of the failed pass alive.
            sizes = [int(lengths.sum() if is_packed else len(lengths) * lengths.max()) for lengths, _ in parts]
            self.max_tokens = min(self.max_tokens, max(sizes)) // 2
            torch.cuda.empty_cache()


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
