"""The sizes of a decoder and the numbers that follow from them, without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statewise.errors import UsageError
from statewise.storage.parsing import parse_json


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a decoder, from its config.json."""

    num_layers: int
    hidden: int
    intermediate: int
    heads_width: int
    kv_width: int
    vocab: int
    is_tied: bool

    @classmethod
    def of(cls, folder: Path) -> ModelSize:
        """Raises: UsageError: config.json lacks a size that decoders of the Llama family have."""
        try:
            config: dict[str, Any] = parse_json((folder / "config.json").read_text(encoding="utf-8"))
            head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            return cls(
                num_layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                intermediate=config["intermediate_size"],
                heads_width=head * config["num_attention_heads"],
                kv_width=head * config.get("num_key_value_heads", config["num_attention_heads"]),
                vocab=config["vocab_size"],
                is_tied=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise UsageError(f"{folder}: config.json has no {error}, so the memory cannot be estimated") from None

    @property
    def linear_widths(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        h, i = self.hidden, self.intermediate
        return (
            (h, self.heads_width),
            (h, self.kv_width),
            (h, self.kv_width),
            (self.heads_width, h),
            (h, i),
            (h, i),
            (i, h),
        )

    @property
    def num_parameters(self) -> int:
        """Of the whole model; norms are left out."""
        layers = self.num_layers * sum(a * b for a, b in self.linear_widths)
        return layers + self.vocab * self.hidden * (1 if self.is_tied else 2)

    def num_adapter_parameters(self, rank: int) -> int:
        """Of a LoRA adapter on every linear layer."""
        return self.num_layers * rank * sum(a + b for a, b in self.linear_widths)
