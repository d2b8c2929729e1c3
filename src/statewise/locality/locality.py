"""The contract of a locality: a table of a study file, and what it becomes while an arm trains.

`start` is called before the first update, while the learner still is the base model; it is called again, with the same
outcome, when an interrupted run is resumed, and the `Constraint` then gets back the numbers and tensors that it had.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from statewise.batch import States
from statewise.kind import Kind, Kinds

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Metrics = dict[str, float | int]


@dataclass(frozen=True)
class Memory:
    """What is remembered of each retention task: what base writes on `num_prompts` of its prompts."""

    num_prompts: int
    max_new_tokens: int


@dataclass(frozen=True)
class LocalityContext:
    """What a locality may use of an arm.

    `trainable`: the weights by name. `remember(kind, memory)`: the states of each retention task's memory. `gradient`:
    of the mean cross-entropy of a memory's actions, by name of the weight, at the weights as they are.
    `sample_gradients`: of log π(y|x), one remembered text at a time. `keep(name, tensors)` writes a file for those who
    look at it later.
    """

    trainable: Mapping[str, Parameter]
    remember: Callable[[str, Memory], list[States]]
    gradient: Callable[[States], dict[str, Tensor]]
    sample_gradients: Callable[[States], Iterator[dict[str, Tensor]]]
    keep: Callable[[str, dict[str, Tensor]], object]

    def copy(self) -> dict[str, Tensor]:
        """The weights as they are, in memory of their own."""
        return {name: parameter.detach().clone() for name, parameter in self.trainable.items()}


class Constraint:
    """A locality at work. Each hook returns metrics; here they do nothing.

    `numbers` and `tensors` are what must be remembered across a resume: they are written into every checkpoint.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}
        self.tensors: dict[str, Tensor] = {}

    @property
    def penalty(self) -> tuple[Any, float] | None:
        """A loss (`loop.score.Loss`) and its weight in the next gradient step; None for none."""
        return None

    def on_gradient(self) -> Metrics:
        """The gradient lies in the weights and is not clipped yet."""
        return {}

    def before_step(self) -> None:
        """The gradient is clipped; the optimizer is about to take its step."""

    def on_step(self, lr: float) -> Metrics:
        """The optimizer took its step, which may be bent."""
        return {}

    def after_step(self) -> None:
        """The step is final."""

    def on_update(self, mean_penalty: float | None) -> Metrics:
        """An update ended; its penalty's mean over states in nats, None where there was no state."""
        return {}

    def at_end(self) -> None:
        """The last update ended; the weights are about to be saved and evaluated."""


class Locality(Kind):
    """A term that holds the policy near where it started."""

    registry: ClassVar[Kinds[Locality]] = Kinds("locality", "statewise.localities")

    @property
    def needs_base(self) -> bool:
        """Whether base is scored at the training states."""
        return False

    @property
    def memory(self) -> Memory | None:
        """What is remembered of the retention tasks; None for nothing."""
        return None

    @abstractmethod
    def copies(self, num_memories: int) -> int:
        """How often the trained weights are held beside themselves; for estimates of memory."""

    @abstractmethod
    def start(self, context: LocalityContext) -> Constraint:
        """The locality at work on an arm."""


class Remembering(Locality):
    """A locality that remembers the retention tasks: two fields, the same for all of them."""

    num_prompts: Annotated[int, Field(ge=1)] = 64
    max_new_tokens: Annotated[int, Field(ge=1)] = 16

    @property
    def memory(self) -> Memory:
        return Memory(self.num_prompts, self.max_new_tokens)
