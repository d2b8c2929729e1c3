"""Which weights an arm may move: all of them, or a low-rank adapter (LoRA, arXiv:2106.09685) through peft.

What is trained is float32 whatever the model computes in: bfloat16 has 8 bits, so that a step of 1e-5 on a weight of
0.02 would be rounded away. For the same reason a merged model is float32.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import Field
from transformers import PreTrainedModel


class Adapter(Protocol):
    """Chooses the trainable parameters of a model, in place."""

    kind: ClassVar[str]

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, torch.nn.Parameter]:
        """Make `model` ready for training and return its trainable parameters by name."""
        ...

    def merge(self, model: PreTrainedModel) -> None:
        """Turn `model`, in place, into a plain model with what was learned in its own weights."""
        ...


@dataclass(frozen=True)
class Full:
    """Every weight is trained; a tied weight appears once."""

    kind: ClassVar[str] = "full"

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, torch.nn.Parameter]:
        """All parameters, in float32, gradients on; `seed` is not used."""
        model.float().requires_grad_(True)
        return dict(model.named_parameters())

    def merge(self, model: PreTrainedModel) -> None:
        """Nothing to merge."""


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of every linear layer of the decoder; `alpha / rank` scales them."""

    kind: ClassVar[str] = "lora"

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, torch.nn.Parameter]:
        """Inject A (random from `seed`) and B (zero): the model computes what it did until the first update."""
        targets = sorted(_linear_names(model))
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets, lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed % 2**63)
            # peft warns of tied embeddings even where no embedding is a target.
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            inject_adapter_in_model(config, model)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in trainable.values():
            parameter.data = parameter.data.float()  # peft gives them the precision of the layer they adapt
        return trainable

    def merge(self, model: PreTrainedModel) -> None:
        """Add B A · alpha / rank to the layers, in float32, and take the adapter layers out again."""
        model.float()
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                layer: Any = module
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _linear_names(model: PreTrainedModel) -> set[str]:
    """Full names of the decoder's linear layers; the head is left out, as in peft's "all-linear"."""
    head = model.get_output_embeddings()
    return {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}


ADAPTERS: dict[str, type[Adapter]] = {"full": Full, "lora": Lora}
