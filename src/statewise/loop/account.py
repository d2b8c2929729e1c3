"""What an arm has used so far: states, tokens with a loss, tokens written, and model FLOPs.

FLOPs are those of the method, 2 N a token forward and 4 N backward (N parameters; Kaplan et al., arXiv:2001.08361, sec.
2.1), whatever an implementation computes again. A frozen weight costs 2 N backward (its input's gradient alone); the
own weights of an adapter that is trained are added, those of one that only acts or is scored are not. Attention over
the context, small at these lengths, is left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from transformers import PreTrainedModel

from statewise.policy.lora import num_parameters


@dataclass
class Account:
    """Running totals of an arm; `num_generated` tokens by writer."""

    num_states: int = 0
    num_loss_tokens: int = 0
    flops_forward: float = 0.0
    flops_backward: float = 0.0
    num_generated: dict[str, int] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)

    def size_of(self, model: PreTrainedModel) -> int:
        """Parameters of a model, counted once."""
        if id(model) not in self._sizes:
            self._sizes[id(model)] = num_parameters(model)
        return self._sizes[id(model)]

    def write(self, writer: str, model: PreTrainedModel, num_read: int, num_written: int) -> None:
        """`num_written` tokens were generated after `num_read` of prompts."""
        self.num_generated[writer] = self.num_generated.get(writer, 0) + num_written
        self.score(model, num_read + num_written)

    def score(self, model: PreTrainedModel, num_tokens: int) -> None:
        """`num_tokens` passed a model forward."""
        self.flops_forward += 2.0 * self.size_of(model) * num_tokens

    def train(self, model: PreTrainedModel, num_adapted: int | None, num_tokens: int) -> None:
        """`num_tokens` passed a model forward and backward, to its weights or to the `num_adapted` of its adapter."""
        size = self.size_of(model)
        self.flops_forward += 2.0 * (size + (num_adapted or 0)) * num_tokens
        self.flops_backward += (4.0 * size if num_adapted is None else 2.0 * size + 4.0 * num_adapted) * num_tokens

    def used(self, unit: str) -> float:
        """What counts against a budget in `unit`: states, loss_tokens or flops."""
        if unit == "flops":
            return self.flops_forward + self.flops_backward
        return float({"states": self.num_states, "loss_tokens": self.num_loss_tokens}[unit])

    def totals(self) -> dict[str, float | dict[str, int]]:
        """Everything that a checkpoint must keep."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}

    def restore(self, totals: dict[str, float | dict[str, int]]) -> None:
        """Continue from what `totals` gave."""
        for key, value in totals.items():
            setattr(self, key, value)
