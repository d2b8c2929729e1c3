"""Which weights an arm may move: all of them, or a low-rank adapter (LoRA, arXiv:2106.09685).

What is trained is float32 whatever the model computes in: bfloat16 has 8 bits, so that a step of 1e-5 on a weight of
0.02 would be rounded away.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from statewise.kind import Kind, Kinds

if TYPE_CHECKING:
    from torch.nn import Parameter
    from transformers import PreTrainedModel

    from statewise.policy.load import Policy

LEARNER = "learner"  # name of the adapter that is trained


class Sizes(Protocol):
    """The sizes of a model (`plan.model_size.Shape`)."""

    @property
    def num_parameters(self) -> int: ...

    def num_adapter_parameters(self, rank: int) -> int: ...


class Adapter(Kind):
    """Chooses the trainable parameters of a model, in place."""

    registry: ClassVar[Kinds[Adapter]] = Kinds("adapter", "statewise.adapters")

    @property
    def keeps_base(self) -> bool:
        """Whether the model's own weights stay as they are."""
        return False

    @property
    def summary(self) -> str:
        """In a few words."""
        return self.kind

    @abstractmethod
    def num_trained(self, sizes: Sizes) -> int:
        """Weights that are trained, for estimates."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, Parameter]:
        """Make `model` ready for training and return its trainable parameters by name."""

    @abstractmethod
    def save(self, policy: Policy, folder: Path, base: str) -> Path:
        """Write what was trained below `folder`, as `model` or `adapter`; returns the file of the weights."""


class Full(Adapter):
    """Every weight is trained; a tied weight appears once."""

    kind: Literal["full"] = "full"
    summary: ClassVar[str] = "full weights"

    @model_validator(mode="before")
    @classmethod
    def _drop_those_of_lora(cls, table: Any) -> Any:
        """So that a study can be changed from `lora` by the kind alone."""
        is_table = isinstance(table, dict)
        return {key: value for key, value in table.items() if key not in ("rank", "alpha")} if is_table else table

    def num_trained(self, sizes: Sizes) -> int:
        return sizes.num_parameters

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, Parameter]:
        """All parameters, in float32, gradients on; `seed` is not used."""
        model.float().requires_grad_(True)
        return dict(model.named_parameters())

    def save(self, policy: Policy, folder: Path, base: str) -> Path:
        """The whole model, in `model`."""
        from statewise.policy.load import save_weights

        save_weights(policy, folder / "model")
        return folder / "model" / "model.safetensors"


class Lora(Adapter):
    """Low-rank updates of every linear layer of the decoder; `alpha / rank` scales them."""

    kind: Literal["lora"] = "lora"
    keeps_base: ClassVar[bool] = True

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0

    @property
    def summary(self) -> str:
        return f"LoRA rank {self.rank}"

    def num_trained(self, sizes: Sizes) -> int:
        return sizes.num_adapter_parameters(self.rank)

    def attach(self, model: PreTrainedModel, seed: int) -> dict[str, Parameter]:
        """A (random from `seed`) and B (zero), float32: the model computes what it did until the first update."""
        from statewise.policy.lora import add_adapter

        return add_adapter(model, LEARNER, self.rank, self.alpha, seed)

    def save(self, policy: Policy, folder: Path, base: str) -> Path:
        """The adapter alone, in `adapter`, as peft stores it; `base` is the model it belongs to."""
        from statewise.policy.lora import save_adapter

        return save_adapter(policy, LEARNER, folder / "adapter", base)


ADAPTERS = Adapter.registry
ADAPTERS.add(Full, Lora)
