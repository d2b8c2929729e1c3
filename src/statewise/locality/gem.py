"""Gradient episodic memory: an update must not, to first order, raise the loss on what base says in other tasks.

The step is replaced by the nearest one that no constraint objects to: one constraint per retention task (GEM) or one
for their average (A-GEM). Differences: a memory holds base's own answers on prompts of a retention task, not the
examples of tasks trained on before; and what is projected is the optimizer's step, not the gradient (the same under
plain gradient descent): AdamW's momentum and scaling would lead a projected gradient back across the constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from statewise.errors import DivergedError
from statewise.locality.locality import Constraint, LocalityContext, Metrics, Remembering

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

# Weights whose gradients are held in float64 at a time: runs that leave the cache take 3 times as long.
ROWS_AT_ONCE = 1 << 18


class GEM(Remembering):
    """One constraint per retention task, from `num_prompts` of its prompts and `max_new_tokens` base tokens on each.

    `margin` is the least weight of every task's gradient once a constraint is violated (see `project_gem`).
    """

    kind: Literal["gem"] = "gem"

    margin: Annotated[float, Field(ge=0)] = 0.0

    def copies(self, num_memories: int) -> int:
        return num_memories + 3  # a gradient each, the weights before the step, the step, and what it is replaced by

    def start(self, context: LocalityContext) -> Constraint:
        return _Projection(context, self, lambda step, gradients: project_gem(step, gradients, self.margin))


class AGEM(Remembering):
    """One constraint for all retention tasks together: the mean of the gradients that GEM would hold apart."""

    kind: Literal["a_gem"] = "a_gem"

    def copies(self, num_memories: int) -> int:
        return num_memories + 4  # as GEM, and the mean

    def start(self, context: LocalityContext) -> Constraint:
        return _Projection(context, self, lambda step, gradients: project_agem(step, gradients.mean(dim=0)))


class _Projection(Constraint):
    """Replaces the optimizer's step by the nearest one that no memory objects to.

    What is projected is the step per unit of the learning rate, -Δθ / lr, which under plain gradient descent is the
    gradient.
    """

    def __init__(self, context: LocalityContext, gem: Remembering, project: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._context, self._kind, self._project = context, gem.kind, project
        self.memories = context.remember(gem.kind, gem.memory)

    def before_step(self) -> None:
        import torch

        self._before = self._context.copy()
        self._gradients = torch.stack([_flat(self._context.gradient(states)) for states in self.memories])
        if not bool(self._gradients.isfinite().all()):
            raise DivergedError("the gradient of the loss on a memory is not finite; lower the learning rate")

    def on_step(self, lr: float) -> Metrics:
        import torch

        trainable, before = self._context.trainable, self._before
        step = _flat({name: (before[name] - parameter.detach()) / lr for name, parameter in trainable.items()})
        projected = self._project(step, self._gradients)
        if projected is not step:
            parts = torch.split(projected, [parameter.numel() for parameter in trainable.values()])
            for (name, parameter), part in zip(trainable.items(), parts, strict=True):
                parameter.data.copy_(before[name] - lr * part.view_as(parameter))
        return {f"locality/{self._kind}_projected_rate": int(projected is not step)}


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    import torch

    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def project_agem(gradient: Tensor, memory: Tensor) -> Tensor:
    """The gradient z nearest to g with ⟨z, m⟩ >= 0: z = g - (⟨g, m⟩ / ⟨m, m⟩) m where ⟨g, m⟩ < 0, else g itself.

    Args:
        gradient: g, the update's, [weights], no autograd graph.
        memory: m, gradient of the loss on all memories together, [weights].

    Returns:
        z, [weights]; `gradient` itself, the same tensor, where the constraint holds. What is not finite stays so.

    Source:
        Chaudhry et al., arXiv:1812.00420, eq. 11.
    """
    product = gradient @ memory
    if bool(product >= 0):
        return gradient
    return gradient - product / (memory @ memory) * memory


def project_gem(gradient: Tensor, memories: Tensor, margin: float) -> Tensor:
    """The gradient z nearest to g with ⟨z, g_k⟩ >= 0 for every memory k.

    min_z ½ ‖z - g‖² s.t. ⟨z, g_k⟩ >= 0. Its dual is min_v ½ ‖g + Σ_k v_k g_k‖² s.t. v_k >= margin, z = g + Σ_k v_k g_k:
    non-negative least squares in u = v - margin, solved in float64 on the triangle of a QR decomposition, which unlike
    the Gram matrix does not square the condition number.

    Args:
        gradient: g, the update's, [weights], no autograd graph.
        memories: g_k, gradient of the loss on each memory, [memories, weights].
        margin: least v_k, >= 0, in units of g per unit of g_k; 0 is the nearest z.

    Returns:
        z, [weights], dtype of g; `gradient` itself, the same tensor, where no constraint is violated.

    Raises:
        DivergedError: a gradient is not finite.

    Source:
        Lopez-Paz & Ranzato, arXiv:1706.08840, section 3. The text adds the margin to the solution v*, which may violate
        a constraint again; their code demands v >= margin in the program, as here, and all constraints hold.
        Differences: no 1e-3 on the diagonal of the program; non-negative least squares instead of quadprog.
    """
    products = memories @ gradient
    if bool((products >= 0).all()):
        return gradient
    if not bool(products.isfinite().all()):
        raise DivergedError(f"⟨gradient, memory gradient⟩ is not finite: {products.tolist()}; lower the learning rate")
    weights = _dual(_triangle(gradient, memories), margin)
    return gradient + gradient.new_tensor(weights) @ memories


def _triangle(gradient: Tensor, memories: Tensor) -> npt.NDArray[np.float64]:
    """R of the QR decomposition of the columns (g_1 … g_K, g), [min(weights, K + 1), K + 1], a run of rows at a time.

    Source:
        Demmel et al., arXiv:0808.2664 (TSQR, sequential): R of the rows so far, stacked on the next rows.
    """
    import torch

    triangle = gradient.new_zeros((0, len(memories) + 1), dtype=torch.float64)
    for start in range(0, len(gradient), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        columns = torch.stack([*memories[:, rows], gradient[rows]], dim=1).double()
        triangle = torch.linalg.qr(torch.cat([triangle, columns]), mode="r").R
    values: npt.NDArray[np.float64] = triangle.numpy(force=True)
    return values


def _dual(triangle: npt.NDArray[np.float64], margin: float) -> npt.NDArray[np.float64]:
    """The v of `project_gem` from the triangle of (g_1 … g_K, g), [K]."""
    import numpy as np
    from scipy.optimize import nnls

    memories, gradient = triangle[:, :-1], triangle[:, -1]
    target = -(gradient + margin * memories.sum(axis=1))
    # The solver's tolerance is absolute: columns of length 1. A zero column never enters, whatever it is divided by.
    lengths = np.linalg.norm(memories, axis=0)
    lengths[lengths == 0] = 1.0
    size = np.linalg.norm(target) or 1.0
    solution, _ = nnls(memories / lengths, target / size)
    weights: npt.NDArray[np.float64] = margin + solution * size / lengths
    return weights
