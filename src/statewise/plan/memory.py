"""How much memory an arm will need on a GPU, and how long it will take there: arithmetic on shapes, nothing measured.

Counts weights, what is trained (float32, with AdamW's two moments), the activations of a micro-batch, chunks of logits
and the cache of rollouts. Speed is a card's published peak times an assumed share of it. Good for choosing a card; a
run that does not fit halves its micro-batches anyway (`loop.oom`).
"""

from __future__ import annotations

from dataclasses import dataclass

from statewise.config.study import ArmSection
from statewise.plan.dag import BASE, Plan
from statewise.plan.estimate import ArmEstimate, PlanEstimate
from statewise.plan.model_size import ModelSize

HALF, FULL = 2, 4  # bytes
CHUNK_BYTES = 4 * 10 * 2**20  # `policy.score.CHUNK_LOGITS` in float32
CHUNK_COPIES = 8  # logits, log-probabilities, a law loss and their gradients; counted by `benchmarks/reverse_kl.py`
CACHE_BYTES = 6e9  # `policy.sampler.CACHE_BYTES`
SAMPLED_ROWS = 256  # `policy.sampler.Sampling.max_rows`
RUNTIME_BYTES = 0.8e9  # CUDA context, kernels' workspace, fragments
TRAINING_SHARE = 0.35  # of the published peak, as dense models of this size are trained; assumed
STEP_OVERHEAD_S = 0.025  # of one decoding step of transformers, whatever the batch; assumed
SPARE = 0.9  # of a card that may be filled


@dataclass(frozen=True)
class Card:
    """A GPU: memory, dense bfloat16 peak and memory bandwidth, as the vendor gives them."""

    name: str
    memory_gb: float
    peak_tflops: float
    bandwidth_tb_s: float


CARDS = (
    Card("24 GB (RTX 4090)", 24, 165, 1.01),
    Card("40 GB (A100)", 40, 312, 1.56),
    Card("80 GB (H100)", 80, 989, 3.35),
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of one arm on a GPU, in bfloat16: while it trains, and while it samples."""

    training: float
    sampling: float

    @property
    def peak(self) -> float:
        return max(self.training, self.sampling)


def estimate_memory(plan: Plan) -> dict[str, MemoryEstimate]:
    """Peak memory of every arm of `plan`, by name."""
    shape = ModelSize.of(plan.model)
    return {name: _estimate_arm(shape, plan, name) for name in plan.arms}


def _estimate_arm(shape: ModelSize, plan: Plan, name: str) -> MemoryEstimate:
    arm = plan.arms[name]
    is_adapter, trained = arm.adapter.keeps_base, arm.adapter.num_trained(shape)
    weights = shape.num_parameters * (HALF if is_adapter else FULL)
    if arm.teacher is not None:
        teacher, other = plan.arms.get(arm.teacher), plan.others.get(arm.teacher)
        is_shared = is_adapter and (arm.teacher == BASE or (teacher is not None and teacher.adapter.keeps_base))
        weights += 0 if is_shared else (ModelSize.of(other) if other else shape).num_parameters * HALF
    weights += int(plan.num_reward_parameters * HALF)
    if arm.needs_base and not is_adapter:
        weights += shape.num_parameters * HALF
    num_memories = len(plan.config.shared.retention)
    copies = arm.source.max_lag + sum(one.copies(num_memories) for one in arm.locality)
    # An adapter's own weights in float32 (a model's are counted above), the gradient, two moments.
    optimiser = trained * FULL * ((4 if is_adapter else 3) + copies)
    chunk = CHUNK_BYTES * CHUNK_COPIES
    activations = _activation_bytes(shape, arm, is_adapter)
    fixed = weights + RUNTIME_BYTES
    new_tokens = max(arm.source.longest_rollout, plan.config.shared.evaluation.max_new_tokens)
    cache = min(CACHE_BYTES, SAMPLED_ROWS * (new_tokens + 256) * shape.num_layers * 2 * shape.kv_width * HALF)
    return MemoryEstimate(fixed + optimiser + activations + chunk, fixed + optimiser + cache + chunk)


def _activation_bytes(shape: ModelSize, arm: ArmSection, is_adapter: bool) -> float:
    """What a backward pass keeps of a micro-batch: per layer and token, or per layer's input where it is recomputed."""
    width = HALF if is_adapter else FULL
    inputs = sum(a for a, _ in shape.linear_widths)
    # Inputs of the linear layers, attention's own operands, the gate's; peft keeps each input again in float32.
    kept = (inputs + 2 * shape.heads_width + 2 * shape.kv_width + 2 * shape.intermediate + 2 * shape.hidden) * width
    kept += inputs * FULL if is_adapter else 0
    layers = 1 if arm.update.activation_checkpointing else shape.num_layers
    recomputed = shape.num_layers * shape.hidden * width if arm.update.activation_checkpointing else 0
    return float(arm.update.max_tokens * (kept * layers + recomputed))


def estimate_card_seconds(plan: Plan, estimate: PlanEstimate, card: Card) -> dict[str, float]:
    """Seconds to train each arm once on `card`; evaluation is not counted."""
    shape = ModelSize.of(plan.model)
    return {name: _card_seconds(shape, plan, name, estimate.arms[name], card) for name in plan.arms}


def _card_seconds(shape: ModelSize, plan: Plan, name: str, cost: ArmEstimate, card: Card) -> float:
    written = 2 * shape.num_parameters * cost.num_generated  # bound by memory, not by arithmetic: counted in steps
    training = (cost.flops_forward + cost.flops_backward - written) / (card.peak_tflops * 1e12 * TRAINING_SHARE)
    step_s = max(STEP_OVERHEAD_S, shape.num_parameters * HALF / (card.bandwidth_tb_s * 1e12))
    rows = cost.num_trajectories / cost.num_updates
    arm = plan.arms[name]
    longest = sum(leaf.longest_rollout for leaf in arm.source.leaves)
    longest += sum(one.signal.longest_written for one in arm.signal)
    return training + cost.num_updates * -(-rows // SAMPLED_ROWS) * longest * step_s
