"""Divergences estimated from one action a state, and laws cut to their largest outcomes.

With r = q(a)/p(a), an action a ~ p estimates a divergence D_f = Σ_v p(v) f(q(v)/p(v)) by f(r); Schulman's k1, k2, k3
(joschu.net/blog/kl-approx.html) are three choices of f for one KL. Departs from the common use in one point: the value
of k1 and k3 is unbiased, but their plain gradient is not that of the divergence, since a's own law moves with the
parameters; the policy-gradient term is therefore added here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Estimator = Literal["exact", "top_k", "k1", "k2", "k3"]
SAMPLED = ("k1", "k2", "k3")


def is_sampled(estimator: Estimator) -> bool:
    """Whether one action a state is looked at instead of a law."""
    return estimator in SAMPLED


def with_policy_gradient(values: Tensor, policy_logprobs: Tensor) -> Tensor:
    """`values`, with the gradient of E_{a~π}[values]: the path's, plus value · ∇ log π(a|s) (REINFORCE).

    Args:
        values: f per state, float32 [states], for actions drawn from the policy.
        policy_logprobs: log π(a|s) of those actions, float32 [states], nats.

    Returns:
        The same values, float32 [states].
    """
    return values + values.detach() * (policy_logprobs - policy_logprobs.detach())


def reverse_kl_estimate(estimator: Estimator, policy_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(p ‖ q) from a ~ p, x = log q(a) - log p(a): k1 = -x, k2 = x²/2, k3 = e^x - 1 - x.

    Gradients: k1 and k3 with the policy-gradient term, unbiased; k2 by its path alone, E[-x ∇log p] = ∇KL, unbiased
    although its value is not.

    Returns:
        Per state, nats, [states]; k2, k3 >= 0.
    """
    x = teacher_logprobs - policy_logprobs
    if estimator == "k1":
        # The path's own gradient, ∇ log p(a), is 0 in expectation and only adds noise.
        return with_policy_gradient(-x.detach(), policy_logprobs)
    if estimator == "k2":
        return x.square() / 2
    return with_policy_gradient(x.expm1() - x, policy_logprobs)


def forward_kl_estimate(estimator: Estimator, policy_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(q ‖ p) from a ~ q, x = log p(a) - log q(a): k1 = -x, k2 = x²/2, k3 = e^x - 1 - x.

    The teacher draws, so nothing but the path carries a gradient: unbiased for k1 and k3, E[x ∇log p] for k2 is not the
    gradient of this KL (nor is its value the KL's).

    Returns:
        Per state, nats, [states]; k2, k3 >= 0.
    """
    x = policy_logprobs - teacher_logprobs
    if estimator == "k1":
        return -x
    return x.square() / 2 if estimator == "k2" else x.expm1() - x


def jsd_estimate(estimator: Estimator, policy_logprobs: Tensor, teacher_logprobs: Tensor, beta: float) -> Tensor:
    """JSD_β(q, p) from a ~ p, r = q(a)/p(a), m = β r + 1 - β: f(r) = β r log(r/m) - (1-β) log m.

    f(1) = f'(1) = 0, so k1 and k3, which differ by f'(1)(r - 1), are one; k2 = β (1-β) log²(r) / 2 is its second-order
    term. All with the policy-gradient term; k2 is biased in value and gradient.

    Returns:
        Per state, nats, >= 0, [states].
    """
    x = teacher_logprobs - policy_logprobs
    if estimator == "k2":
        return with_policy_gradient(beta * (1 - beta) * x.square() / 2, policy_logprobs)
    mixture = (beta * x.exp() + (1 - beta)).log()
    return with_policy_gradient(beta * x.exp() * (x - mixture) - (1 - beta) * mixture, policy_logprobs)


def cut_to_top(policy: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both laws over the teacher's k likeliest tokens and one bucket for all others.

    Joining outcomes can only lower a divergence (data processing); for k >= vocabulary it is the exact one. Without the
    bucket, reverse KL would push the policy's mass out of the k tokens at no cost.

    Args:
        policy: log-probabilities, float32 [states, vocab].
        teacher: the same of the teacher.
        k: tokens kept, >= 1.

    Returns:
        Log-probabilities (policy, teacher), [states, k + 1], the bucket last.
    """
    if k >= teacher.shape[-1]:
        return policy, teacher
    kept = teacher.topk(k, dim=-1).indices
    rest = teacher.new_ones(teacher.shape).scatter_(-1, kept, 0.0).log()  # 0 outside the k tokens, -inf on them
    cut = [(law.gather(-1, kept), (law + rest).logsumexp(-1, keepdim=True)) for law in (policy, teacher)]
    (top_p, tail_p), (top_q, tail_q) = cut
    return _joined(top_p, tail_p), _joined(top_q, tail_q)


def _joined(top: Tensor, tail: Tensor) -> Tensor:
    from torch import cat

    return cat([top, tail], dim=-1)
