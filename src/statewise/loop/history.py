"""The learner's weights of the last updates, for sources whose writer is some updates old."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class WeightHistory:
    """Copies of the trainable weights by the number of updates behind them; `lag` of them are kept."""

    def __init__(self, trainable: dict[str, torch.nn.Parameter], lag: int) -> None:
        self._trainable = trainable
        self._lag = lag
        self._kept: dict[int, dict[str, torch.Tensor]] = {}

    def remember(self, update: int) -> None:
        """Keep the weights as they are after `update` updates, and forget what no source can ask for any more."""
        if not self._lag:
            return
        if update not in self._kept:
            self._kept[update] = {name: p.detach().clone() for name, p in self._trainable.items()}
        for old in [one for one in self._kept if one < update - self._lag]:
            del self._kept[old]

    @contextmanager
    def as_after(self, update: int | None) -> Iterator[None]:
        """The learner is as it was after `update` updates inside, and as it is again afterwards (None: no change)."""
        if update is None:
            yield
            return
        now = {name: p.data for name, p in self._trainable.items()}
        try:
            for name, parameter in self._trainable.items():
                parameter.data = self._kept[update][name]
            yield
        finally:
            for name, parameter in self._trainable.items():
                parameter.data = now[name]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything kept, as `update/name`."""
        return {f"{update}/{name}": value for update, kept in self._kept.items() for name, value in kept.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self._kept = {}
        for key, value in tensors.items():
            update, _, name = key.partition("/")
            self._kept.setdefault(int(update), {})[name] = value.to(self._trainable[name].device)
