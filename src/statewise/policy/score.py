"""Log-probabilities of training states under a policy.

The backbone runs on padded micro-batches; only the hidden states *at training states* are kept, and the output head is
applied to chunks of them, so [states, vocab] never exists as a whole. Departs from the usual trainer, which takes
logits of every position, prompts and padding included, and masks them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statewise.batch import IntArray, States, take_rows
from statewise.policy.load import Policy
from statewise.policy.lora import active
from statewise.policy.packing import pack
from statewise.types import SignalInputs

# Logits of a chunk: 40 MiB of float32. A loss and its gradient hold about eight tensors of that size at their peak.
# Blocks of at most 32 MiB would make it more on a CPU: glibc keeps those once freed, in a heap that they fragment.
CHUNK_LOGITS = 10 * 2**20
MAX_PADDING_SHARE = 0.15  # of a micro-batch's padded tokens
MIN_FILLED_SHARE = 1 / 8  # of `max_tokens`: below it a micro-batch costs more in overhead than its padding does
INPUTS = {field.name for field in fields(SignalInputs)}


@dataclass(frozen=True)
class StateTensors:
    """A micro-batch on the device.

    Shapes: `token_ids` int64, `action_mask` bool [batch, time]; `labels` (the actions, where a signal set no others)
    int64 [states]; `inputs`, of what a loss may look at, all that the states themselves have.
    """

    token_ids: Tensor
    action_mask: Tensor
    labels: Tensor
    inputs: SignalInputs


def micro_batches(states: States, max_tokens: int) -> list[IntArray]:
    """Rows in micro-batches of similar length: every row once, the same for the same lengths.

    Longest first; a micro-batch ends where the next row would take it over `max_tokens` padded tokens, or over 15 %
    padding once it is an eighth full (smaller ones would cost more in overhead than they save in padding). The two rows
    of a preference stay together, since its loss looks at both.

    Args:
        states: the batch; only its lengths and pairs matter.
        max_tokens: limit of rows × longest row; a row (or pair) that is longer by itself gets a micro-batch of its own.

    Returns:
        Row indices, int64, one array a micro-batch.
    """
    if states.pair_ids is not None and (states.pair_ids >= 0).all():
        units = np.stack([np.flatnonzero(states.pair_ids == pair) for pair in np.unique(states.pair_ids)])
        return [units[batch].ravel() for batch in _batches(states.lengths[units].max(axis=1), max_tokens // 2)]
    return _batches(states.lengths, max_tokens)


def _batches(lengths: IntArray, max_tokens: int) -> list[IntArray]:
    order = np.argsort(-lengths, kind="stable")
    batches: list[IntArray] = []
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or _is_full(lengths[order[start : end + 1]], max_tokens):
            batches.append(order[start:end])
            start = end
    return batches


def _is_full(lengths: IntArray, max_tokens: int) -> bool:
    """Whether the last of `lengths` (longest first) is one too many for the micro-batch of the others."""
    padded = len(lengths) * int(lengths[0])
    if padded > max_tokens:
        return True
    is_wasteful = padded - int(lengths.sum()) > MAX_PADDING_SHARE * padded
    return is_wasteful and padded - int(lengths[0]) >= MIN_FILLED_SHARE * max_tokens


def padding_share(states: States, batches: Sequence[IntArray], *, is_packed: bool = False) -> float:
    """Share of padding in the padded tokens of all micro-batches, 0..1."""
    if is_packed:
        computed = sum(pack(take_rows(states, rows)).token_ids.size for rows in batches)
        return 1 - sum(int((states.lengths[rows] - 1).sum()) for rows in batches) / computed
    padded = sum(len(rows) * int(states.lengths[rows].max()) for rows in batches)
    return 1 - sum(int(states.lengths[rows].sum()) for rows in batches) / padded


def batch_tensors(
    states: States, rows: Sequence[int] | IntArray | None = None, device: torch.device | str = "cpu"
) -> StateTensors:
    """The tensors of `rows` (all rows if None), the time axis cut to the longest of them."""
    if rows is not None:
        states = take_rows(states, rows)
    mask = states.action_mask
    rows_of_states = np.nonzero(mask)[0]
    seen = {"labels": states.labels[mask], "rows": rows_of_states}
    for name, values in vars(states).items():
        if name in INPUTS and values is not None:
            seen[name] = values[mask] if values.ndim > 1 else values[rows_of_states]
    if states.pair_ids is not None:
        seen["pairs"] = _from_zero(states.pair_ids[rows_of_states])
    tensors = {name: torch.from_numpy(values).to(device) for name, values in seen.items()}
    return StateTensors(
        token_ids=torch.from_numpy(states.token_ids).to(device),
        action_mask=torch.from_numpy(mask).to(device),
        labels=tensors.pop("labels"),
        inputs=SignalInputs(**tensors),
    )


def _from_zero(ids: IntArray) -> IntArray:
    """Equal ids as equal numbers 0, 1, …"""
    numbers: IntArray = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    return numbers


def state_hidden(policy: Policy, states: States, *, is_packed: bool = False) -> Tensor:
    """The backbone's last hidden state at every training state, i.e. at t - 1 for each action t.

    Args:
        policy: whose backbone runs.
        states: a micro-batch.
        is_packed: lay the rows end to end instead of padding each (`packing`); the same but for rounding.

    Returns:
        [states, hidden] in the model's dtype, row by row; with gradient where it is enabled.
    """
    if is_packed:
        return _packed_hidden(policy, states)
    tensors = batch_tensors(states, device=policy.device)
    # No attention mask: rows are padded on the right and attention is causal, so a real position never sees padding,
    # and positions 0..T-1 are right as they are. Without a mask sdpa takes its fast causal kernel.
    # The last column is an action only: nothing follows it, so its hidden state is not needed.
    with active(policy):
        output = policy.model.get_decoder()(input_ids=tensors.token_ids[:, :-1], use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden[tensors.action_mask[:, 1:]]


def _packed_hidden(policy: Policy, states: States) -> Tensor:
    packing = pack(states)
    with active(policy):
        output = policy.model.get_decoder()(
            input_ids=torch.from_numpy(packing.token_ids).to(policy.device),
            position_ids=torch.from_numpy(packing.position_ids).to(policy.device),
            use_cache=False,
        )
    rows, columns = np.nonzero(states.action_mask[:, 1:])
    hidden: Tensor = output.last_hidden_state
    return hidden[torch.from_numpy(packing.bins[rows]), torch.from_numpy(packing.starts[rows] + columns)]


def head_logits(policy: Policy, hidden: Tensor, temperature: float) -> Tensor:
    """Logits of the next token at the sampling temperature, cut to the tokenizer's vocabulary.

    Returns:
        [states, vocab] float32.
    """
    logits: Tensor = policy.model.get_output_embeddings()(hidden)[..., : policy.vocab_size].float()
    return logits if temperature == 1 else logits / temperature


def states_per_chunk(policy: Policy) -> int:
    """How many states' logits fit in `CHUNK_LOGITS`."""
    return max(1, CHUNK_LOGITS // policy.vocab_size)


def action_logprobs(
    policy: Policy, hidden: Tensor, actions: Tensor, temperature: float, chunk_size: int | None = None
) -> Tensor:
    """Log-probability of each action: log π(a|s) = z_a / T - log sum_v exp(z_v / T).

    Args:
        policy: whose output head is applied.
        hidden: [states, hidden], from `state_hidden`.
        actions: [states] int64, the token taken at each state.
        temperature: T > 0, of the law that is scored.
        chunk_size: states whose logits are held at once; None: `states_per_chunk`.

    Returns:
        [states] float32, nats, <= 0; exact gradient.
    """

    def score(logits: Tensor, actions: Tensor) -> Tensor:
        return logits.gather(-1, actions[:, None]).squeeze(-1) - logits.logsumexp(-1)

    law = Law(policy, temperature, chunk_size or states_per_chunk(policy))
    return chunked_over_laws(score, law, hidden, actions)


@dataclass(frozen=True)
class Law:
    """The policy whose head turns hidden states into logits, at which temperature, `chunk_size` states at a time."""

    policy: Policy
    temperature: float
    chunk_size: int

    def logits(self, hidden: Tensor) -> Tensor:
        """[states, vocab] float32 of hidden states [states, hidden]."""
        return head_logits(self.policy, hidden, self.temperature)


def chunked_over_laws(score: Callable[..., Tensor], law: Law, hidden: Tensor, *tensors: Tensor) -> Tensor:
    """`score(law.logits(hidden), *tensors)`, with one chunk of [states, vocab] in memory at a time.

    Under a frozen head, each value is differentiated in the forward pass, while its logits are there. Under a trained
    head they are computed again in the backward pass, where all chunks add to one gradient of the head in place:
    autograd would hold that of a chunk beside their sum, each as large as the head. Both gradients are exact.

    Args:
        score: takes logits [states, vocab] and a chunk of `tensors`, returns [states], each value from its own row. It
            is differentiated by the logits alone: what else it uses counts as constant.
        law: whose logits.
        hidden: [states, hidden], from `state_hidden`.
        *tensors: further arguments of `score`, [states, ...], without gradient.

    Returns:
        [states], with gradient to `hidden` and the head, where they have one.
    """
    if len(hidden) <= law.chunk_size:
        return score(law.logits(hidden), *tensors)
    head = law.policy.model.get_output_embeddings()
    values: Tensor
    if torch.is_grad_enabled() and head.weight.requires_grad:
        values = _TrainedHead.apply(score, law, head.bias, head.weight, hidden, *tensors)
    elif torch.is_grad_enabled() and hidden.requires_grad:
        values = _FrozenHead.apply(score, law, hidden, *tensors)
    else:
        values = torch.cat([score(law.logits(part), *others) for part, *others in _chunks(law, hidden, *tensors)])
    return values


def _chunks(law: Law, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor, law.chunk_size) for tensor in tensors), strict=True)


class _FrozenHead(torch.autograd.Function):
    """`chunked_over_laws` where only the hidden states get a gradient: d value / d hidden of every state is kept."""

    @staticmethod
    def forward(ctx: Any, score: Callable[..., Tensor], law: Law, hidden: Tensor, *tensors: Tensor) -> Tensor:
        slopes, values = torch.empty_like(hidden), []
        for part, slope, *others in _chunks(law, hidden, slopes, *tensors):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                value = score(law.logits(leaf), *others)
            slope.copy_(torch.autograd.grad(value, leaf, torch.ones_like(value))[0])
            values.append(value.detach())
        ctx.save_for_backward(slopes)
        ctx.num_tensors = len(tensors)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (None, None, (slopes * gradient[:, None]).to(slopes.dtype), *[None] * ctx.num_tensors)


class _TrainedHead(torch.autograd.Function):
    """`chunked_over_laws` where the head gets a gradient too."""

    @staticmethod
    def forward(
        ctx: Any, score: Callable[..., Tensor], law: Law, bias: Tensor | None, weight: Tensor, *tensors: Tensor
    ) -> Tensor:
        ctx.score, ctx.law = score, law
        ctx.save_for_backward(bias, weight, *tensors)
        return torch.cat([score(law.logits(part), *others) for part, *others in _chunks(law, *tensors)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        law: Law = ctx.law
        bias, weight, hidden, *tensors = ctx.saved_tensors
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        of_bias = None if bias is None else torch.zeros_like(bias)
        tokens = slice(law.policy.vocab_size)
        for part_gradient, part_of_hidden, part, *others in _chunks(law, gradient, of_hidden, hidden, *tensors):
            of_logits = _gradient_of_logits(ctx.score, law, part, others, part_gradient)
            torch.mm(of_logits, weight[tokens], out=part_of_hidden)
            of_weight[tokens].addmm_(of_logits.T, part)
            if of_bias is not None:
                of_bias[tokens] += of_logits.sum(0)
        return (None, None, of_bias, of_weight, of_hidden, *[None] * len(tensors))


def _gradient_of_logits(
    score: Callable[..., Tensor], law: Law, hidden: Tensor, others: Sequence[Tensor], gradient: Tensor
) -> Tensor:
    """[states, vocab]: the gradient of `gradient` · score with respect to the head's output, in its own dtype."""
    logits = law.logits(hidden).requires_grad_()
    with torch.enable_grad():
        values = score(logits, *others)
    of_logits: Tensor
    (of_logits,) = torch.autograd.grad(values, logits, gradient)
    if law.temperature != 1:
        of_logits /= law.temperature
    return of_logits.to(hidden.dtype)
