"""Which weights an arm may move: all of them, or a low-rank adapter (LoRA, arXiv:2106.09685).

What is trained is float32 whatever the model computes in: bfloat16 has 8 bits, so that a step of 1e-5 on a weight of
0.02 would be rounded away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from transformers import PreTrainedModel

from statewise.policy.load import Policy, save_weights
from statewise.policy.lora import add_adapter, save_adapter

LEARNER = "learner"  # name of the adapter that is trained


class Adapter(Protocol):
    """Chooses the trainable parameters of a model, in place. `keeps_base`: the model's own weights stay as they are."""

    kind: ClassVar[str]
    keeps_base: ClassVar[bool]

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, torch.nn.Parameter]:
        """Make `model` ready for training and return its trainable parameters by name."""
        ...

    def save(self, policy: Policy, folder: Path, base: str) -> Path:
        """Write what was trained below `folder`, as `model` or `adapter`; returns the file of the weights."""
        ...


@dataclass(frozen=True)
class Full:
    """Every weight is trained; a tied weight appears once."""

    kind: ClassVar[str] = "full"
    keeps_base: ClassVar[bool] = False

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, torch.nn.Parameter]:
        """All parameters, in float32, gradients on; `seed` is not used."""
        model.float().requires_grad_(True)
        return dict(model.named_parameters())

    def save(self, policy: Policy, folder: Path, base: str) -> Path:
        """The whole model, in `model`."""
        save_weights(policy, folder / "model")
        return folder / "model" / "model.safetensors"


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of every linear layer of the decoder; `alpha / rank` scales them."""

    kind: ClassVar[str] = "lora"
    keeps_base: ClassVar[bool] = True

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, torch.nn.Parameter]:
        """A (random from `seed`) and B (zero), float32: the model computes what it did until the first update."""
        return add_adapter(model, LEARNER, self.rank, self.alpha, seed)

    def save(self, policy: Policy, folder: Path, base: str) -> Path:
        """The adapter alone, in `adapter`, as peft stores it; `base` is the model it belongs to."""
        return save_adapter(policy, LEARNER, folder / "adapter", base)


ADAPTERS: dict[str, type[Adapter]] = {"full": Full, "lora": Lora}
