"""The key-value cache of the rollout engine.

Departs from transformers' `DynamicCache`, which copies all keys and values at every step to append one column: here a
step writes its column in place, into a buffer that grows by blocks. Rows can be repeated (one prefill for many rollouts
of a prompt) and dropped (finished rollouts).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

BLOCK_COLUMNS = 32  # spare columns at each growth: at most this much memory is idle, and copies are 1 / 32 as many


class BlockLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one attention layer, [rows, heads, columns, width], with spare columns at the end."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.num_columns = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns views of all columns so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.num_columns, self.num_columns + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys = _with_room(self.keys[:, :, :start], end + BLOCK_COLUMNS)
            self.values = _with_room(self.values[:, :, :start], end + BLOCK_COLUMNS)
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.num_columns = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def take_rows(self, rows: Tensor) -> None:
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)

    def shift_rows(self, by: Tensor) -> None:
        columns = torch.arange(self.num_columns, device=by.device)
        source = ((columns - by[:, None]) % self.num_columns)[:, None, :, None]
        keys, values = self.keys[:, :, : self.num_columns], self.values[:, :, : self.num_columns]
        self.keys = keys.gather(2, source.expand_as(keys))
        self.values = values.gather(2, source.expand_as(values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_columns + query_length, 0

    def get_seq_length(self) -> int:
        return self.num_columns

    def get_max_length(self) -> int:
        return -1  # transformers' sign for "grows"


def _with_room(tensor: Tensor, num_columns: int) -> Tensor:
    rows, heads, old_columns, width = tensor.shape
    wider = tensor.new_empty((rows, heads, num_columns, width))
    wider[:, :, :old_columns] = tensor
    return wider


def _joined(parts: list[Tensor], num_rows: int, num_columns: int) -> Tensor:
    # Zeros, not new_empty: hidden columns are still multiplied by their weight 0, and 0 x nan is nan.
    _, heads, _, width = parts[0].shape
    joined = parts[0].new_zeros((num_rows, heads, num_columns + BLOCK_COLUMNS, width))
    start = 0
    for part in parts:
        joined[start : start + part.shape[0], :, : part.shape[2]] = part
        start += part.shape[0]
    return joined


class BlockCache(Cache):  # type: ignore[misc]  # transformers is untyped here
    """One `BlockLayer` per attention layer, made when the model first writes to it."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BlockLayer)

    @classmethod
    def join(cls, parts: list[BlockCache]) -> BlockCache:
        """The rows of all parts, the first the one with the most columns; missing columns are filled with zeros."""
        if len(parts) == 1:
            return parts[0]
        joined = cls()
        num_columns, num_rows = parts[0].get_seq_length(), sum(part.layers[0].keys.shape[0] for part in parts)
        for layers in zip(*(part.layers for part in parts), strict=True):
            layer = BlockLayer()
            layer.lazy_initialization(layers[0].keys, layers[0].values)
            layer.keys = _joined([each.keys[:, :, : each.num_columns] for each in layers], num_rows, num_columns)
            layer.values = _joined([each.values[:, :, : each.num_columns] for each in layers], num_rows, num_columns)
            layer.num_columns = num_columns
            joined.layers.append(layer)
        return joined

    def take_rows(self, rows: Tensor) -> None:
        """Keep the rows of this index (int64, [new rows]); an index may occur more than once."""
        for layer in self.layers:
            layer.take_rows(rows)

    def shift_rows(self, by: Tensor) -> None:
        """Move the columns of every row to the right by its own number (int64, [rows]); what leaves comes in again."""
        for layer in self.layers:
            layer.shift_rows(by)
