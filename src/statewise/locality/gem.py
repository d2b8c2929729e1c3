"""Gradient episodic memory: an update must not, to first order, raise the loss on what base says in other tasks.

The step is replaced by the nearest one that no constraint objects to: one constraint per retention task (GEM) or one
for their average (A-GEM). Differences: a memory holds base's own answers on prompts of a retention task, not the
examples of tasks trained on before; and what is projected is the optimizer's step, not the gradient (the same under
plain gradient descent): AdamW's momentum and scaling would lead a projected gradient back across the constraint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from statewise.errors import DivergedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

# Weights whose gradients are held in float64 at a time: runs that leave the cache take 3 times as long.
ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class GEM:
    """One constraint per retention task, from `num_prompts` of its prompts and `max_new_tokens` base tokens on each.

    `margin` is the least weight of every task's gradient once a constraint is violated (see `project_gem`).
    """

    kind: ClassVar[str] = "gem"
    needs_base: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = True

    num_prompts: Annotated[int, Field(ge=1)] = 64
    max_new_tokens: Annotated[int, Field(ge=1)] = 16
    margin: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class AGEM:
    """One constraint for all retention tasks together: the mean of the gradients that GEM would hold apart."""

    kind: ClassVar[str] = "a_gem"
    needs_base: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = True

    num_prompts: Annotated[int, Field(ge=1)] = 64
    max_new_tokens: Annotated[int, Field(ge=1)] = 16


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
