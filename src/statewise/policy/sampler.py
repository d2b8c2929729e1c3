"""The rollout engine: many continuations at once, each a function of its prompt and its key alone.

Row r draws its token t by inverse transform from uniform t of its own counter-based stream, so that order, batch
size and dropped neighbours change a text only through float rounding. Departs from transformers' `generate`: an equal
prompt is read once, finished rows leave the batch, the cache is written in place, no global generator is touched, and
log-probabilities are those of the law that was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statewise.errors import DivergedError, OutOfMemoryError, UsageError
from statewise.policy.cache import BlockCache
from statewise.policy.engine import InProcessEngine
from statewise.policy.load import Policy, eval_mode
from statewise.policy.lora import active
from statewise.policy.score import head_logits, states_per_chunk
from statewise.policy.texts import decode, decode_all
from statewise.types import Rollout

COMPACT_BELOW = 0.9  # live rows / rows in the cache: dropping rows copies the cache, so not at every step
CACHE_BYTES = 6e9  # keys and values of the rows that are written side by side
PREFILL_TOKENS = 2048  # read at once; on 2 cores 2048 took 0.70 of the time of 15,000
FIRST_STOP_CHECK = 8  # tokens; later checks at 9/8 of the length, so decoding again costs 9 x one decoding at most


@dataclass(frozen=True)
class Sampling:
    """How to sample: temperature 0 takes the arg-max (first of equals) and needs no randomness.

    `top_p` in (0, 1]: the smallest set of tokens with at least this probability. `max_new_tokens`, `max_rows` >= 1;
    at most `max_rows` are written side by side, and fewer where the cache would exceed `CACHE_BYTES`. A text that
    contains one of `stop_strings` ends at the token completing it, which is kept.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 96
    max_rows: int = 256
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(
                f"sampling: temperature {self.temperature} is not >= 0 and finite; 0 is greedy, 1 the model's law"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"sampling: top_p {self.top_p} is not in (0, 1]; 1 keeps every token")
        for name, value in (("max_new_tokens", self.max_new_tokens), ("max_rows", self.max_rows)):
            if value < 1:
                raise UsageError(f"sampling: {name} {value} is not >= 1")
        if "" in self.stop_strings:
            raise UsageError('sampling: "" in stop_strings would end every text at once; remove it')


@dataclass(frozen=True)
class _Rows:
    """The rows of one group while they are written. Shapes [rows] and [rows, steps]; the tensors are filled in place.

    `prompt_lengths`, `limits` (most tokens a row may get), `num_tokens` int64; `uniforms` float64; `tokens` int64;
    `logprobs` float32; `is_finished` bool: it ended by an end-of-text.
    """

    prompt_lengths: Tensor
    limits: Tensor
    uniforms: Tensor
    tokens: Tensor
    logprobs: Tensor
    num_tokens: Tensor
    is_finished: Tensor


class OwnEngine(InProcessEngine):
    """`sample`, with the policy's own weights."""

    def sample(
        self, policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]:
        return sample(policy, prompts, keys, sampling)


def sample(policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling) -> list[Rollout]:
    """One continuation of each prompt, in the order of the prompts.

    Args:
        policy: who writes.
        prompts: token ids, each at least one token and at most the context length - 1.
        keys: one a prompt, 0 <= key < 2^128: equal keys and prompts give equal texts; greedy sampling ignores them.
        sampling: the law and the limits.

    Returns:
        Rollouts whose `logprobs` (nats) are under the law drawn from: temperature and top-p applied; for greedy, under
        temperature 1. A row is cut where the context ends.

    Raises:
        UsageError: a prompt that is empty or does not fit, or not one key a prompt.
        OutOfMemoryError: not even one row fits the device's memory; before, half as many are tried, again and again.
    """
    check_prompts(policy, prompts, keys)
    # Neighbours of equal length waste no padding; neighbours with equal prompts share one prefill.
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), tuple(prompts[row])))
    rollouts: dict[int, Rollout] = {}
    with torch.no_grad(), eval_mode(policy), active(policy):
        lengths = [len(prompt) for prompt in prompts]
        max_rows = min(sampling.max_rows, rows_within(policy, max(lengths, default=0) + sampling.max_new_tokens))
        while len(rollouts) < len(order):
            group = order[len(rollouts) : len(rollouts) + max_rows]
            texts = [tuple(int(token) for token in prompts[row]) for row in group]
            written = _sample_if_it_fits(policy, texts, [keys[row] for row in group], sampling)
            rollouts.update(zip(group, written, strict=False))
            if not written:
                max_rows = len(group) // 2
                torch.cuda.empty_cache()
    return [rollouts[row] for row in range(len(prompts))]


def _sample_if_it_fits(
    policy: Policy, prompts: list[tuple[int, ...]], keys: list[int], sampling: Sampling
) -> list[Rollout]:
    """The rollouts of one group; [] where the memory of the device ends. A handler would keep the tensors alive.

    Raises:
        OutOfMemoryError: the group is one row.
    """
    try:
        return _sample_group(policy, prompts, keys, sampling)
    except torch.OutOfMemoryError as error:
        if len(prompts) == 1:
            raise OutOfMemoryError(
                f"sampling: one text of {len(prompts[0])} + {sampling.max_new_tokens} tokens does not fit the device's "
                f"memory ({error}); lower max_new_tokens"
            ) from None
    return []


def check_prompts(policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int]) -> None:
    """Refuse a prompt that is empty or does not fit the context, and prompts that have not a key each."""
    if len(keys) != len(prompts):
        raise UsageError(f"sampling: {len(keys)} keys for {len(prompts)} prompts; every prompt needs a key of its own")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UsageError(f"sampling: prompt {row} is empty; a state needs at least one token")
        if len(prompt) >= policy.context_length:
            raise UsageError(
                f"sampling: prompt {row} has {len(prompt)} tokens, but {policy.name!r} has a context of "
                f"{policy.context_length} and needs room for one new token; shorten or leave out this prompt"
            )


def rows_within(policy: Policy, num_columns: int) -> int:
    """How many rows of `num_columns` tokens the cache may hold, at least 1."""
    config = policy.model.config.get_text_config()
    width = (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) * (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    )
    row_bytes = num_columns * config.num_hidden_layers * 2 * width * policy.model.dtype.itemsize
    return max(1, int(CACHE_BYTES // row_bytes))


def _sample_group(policy: Policy, prompts: list[tuple[int, ...]], keys: list[int], sampling: Sampling) -> list[Rollout]:
    rows = _start_rows(policy, prompts, keys, sampling)
    hidden, cache, prompt_mask = _prefill(policy, prompts)
    num_steps = rows.tokens.shape[1]
    running = torch.arange(len(prompts), device=policy.device)  # which row each row of the cache belongs to
    is_live = torch.ones_like(rows.is_finished)
    # Columns of the cache: padding up to the longest prompt (hidden by the mask), a prompt, then what was written. With
    # padding between the two, an attention window, which counts columns, would reach less far back than it should.
    mask = torch.nn.functional.pad(prompt_mask, (0, num_steps), value=True)
    is_padded = not bool(prompt_mask.all())
    next_check = FIRST_STOP_CHECK
    ends = torch.tensor(policy.end_token_ids, device=policy.device)
    for step in range(num_steps):
        actions, rows.logprobs[running, step] = draw(policy, hidden, rows.uniforms[running, step], sampling)
        rows.tokens[running, step] = actions
        rows.num_tokens[running] += is_live
        is_end = torch.isin(actions, ends)
        rows.is_finished[running] |= is_live & is_end
        is_live = is_live & ~is_end & (rows.limits[running] > step + 1)
        if sampling.stop_strings and step + 1 == next_check:
            is_live &= ~_has_stop(policy, rows.tokens[running, : step + 1], sampling.stop_strings)
            next_check += max(FIRST_STOP_CHECK, next_check // 8)
        num_live = int(is_live.sum())
        if num_live == 0:
            break
        if num_live < COMPACT_BELOW * len(running):
            kept = is_live.nonzero().squeeze(1)
            running, actions, is_live, mask = running[kept], actions[kept], is_live[kept], mask[kept]
            cache.take_rows(kept)
        output = policy.model.get_decoder()(
            input_ids=actions[:, None],
            attention_mask=mask[:, : cache.get_seq_length() + 1] if is_padded else None,
            position_ids=(rows.prompt_lengths[running] + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        hidden = output.last_hidden_state[:, -1]
    return _finish_rows(policy, prompts, rows, sampling.stop_strings)


def _start_rows(policy: Policy, prompts: list[tuple[int, ...]], keys: list[int], sampling: Sampling) -> _Rows:
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)
    limits = (policy.context_length - lengths).clamp(max=sampling.max_new_tokens)
    num_steps = int(limits.max())
    uniforms = np.zeros((len(prompts), num_steps))
    if sampling.temperature > 0:
        for row, key in enumerate(keys):
            uniforms[row] = np.random.Generator(np.random.Philox(key=key)).random(num_steps)
    tokens = torch.zeros((len(prompts), num_steps), dtype=torch.int64, device=policy.device)
    return _Rows(
        prompt_lengths=lengths,
        limits=limits,
        uniforms=torch.from_numpy(uniforms).to(policy.device),
        tokens=tokens,
        logprobs=torch.zeros_like(tokens, dtype=torch.float32),
        num_tokens=torch.zeros_like(lengths),
        is_finished=torch.zeros_like(lengths, dtype=torch.bool),
    )


def _prefill(policy: Policy, prompts: list[tuple[int, ...]]) -> tuple[Tensor, BlockCache, Tensor]:
    """Read every distinct prompt once, `PREFILL_TOKENS` at a time.

    Returns:
        For every row: hidden state at the prompt's last token [rows, hidden]; cache, each prompt in its last columns;
        mask of prompt tokens [rows, longest prompt].
    """
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    texts = list(distinct)
    parts, start = [], 0
    while start < len(texts):
        # Longest first, so the first of a part sets its width.
        end = start + max(1, PREFILL_TOKENS // len(texts[start]))
        parts.append(_read(policy, texts[start:end]))
        start = end
    lengths = torch.tensor([len(text) for text in texts], device=policy.device)
    hidden = torch.cat([part for part, _ in parts])
    cache = BlockCache.join([part for _, part in parts])
    padding = len(texts[0]) - lengths
    if bool(padding.any()):
        cache.shift_rows(padding)
    mask = torch.arange(len(texts[0]), device=policy.device) >= padding[:, None]
    if len(texts) == len(prompts):
        return hidden, cache, mask
    place_of_row = torch.tensor([distinct[prompt] for prompt in prompts], device=policy.device)
    cache.take_rows(place_of_row)
    return hidden[place_of_row], cache, mask[place_of_row]


def _read(policy: Policy, texts: list[tuple[int, ...]]) -> tuple[Tensor, BlockCache]:
    """Hidden state at the last token of each text [texts, hidden], and the cache; padded right, so without a mask."""
    lengths = torch.tensor([len(text) for text in texts], device=policy.device)
    token_ids = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.int64)
    for row, text in enumerate(texts):
        token_ids[row, : len(text)] = torch.tensor(text)
    cache = BlockCache()
    output = policy.model.get_decoder()(input_ids=token_ids.to(policy.device), past_key_values=cache, use_cache=True)
    return output.last_hidden_state[torch.arange(len(texts), device=policy.device), lengths - 1], cache


def draw(policy: Policy, hidden: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One action a row: the token whose interval of the cumulative law holds the row's uniform.

    Args:
        policy: whose output head is applied.
        hidden: [rows, hidden].
        uniforms: [rows] float64 in [0, 1).
        sampling: temperature and top-p.

    Returns:
        Actions [rows] int64 and their log-probabilities [rows] float32, nats, under the sampled law.
    """
    size = states_per_chunk(policy)
    pairs = zip(torch.split(hidden, size), torch.split(uniforms, size), strict=True)
    drawn = [_draw_chunk(head_logits(policy, part, sampling.temperature or 1.0), u, sampling) for part, u in pairs]
    return torch.cat([actions for actions, _ in drawn]), torch.cat([logprobs for _, logprobs in drawn])


def check_law(policy: Policy, logprobs: Tensor) -> None:
    """Refuse what was drawn from a law that is not a number.

    Args:
        policy: whose law.
        logprobs: of what `draw` drew, any shape; asked once for many draws, since it waits for the device.

    Raises:
        DivergedError: one of them is not finite.
    """
    if not bool(logprobs.isfinite().all()):
        raise DivergedError(f"{policy.name}: its next-token law is not a number at some state")


def _draw_chunk(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        actions = logprobs.argmax(-1, keepdim=True)
        return actions.squeeze(-1), logprobs.gather(-1, actions).squeeze(-1)
    probs = logprobs.exp()
    if sampling.top_p < 1:
        probs = _cut_to_top_p(probs, sampling.top_p)
    # float64: the rounding of a float32 sum over 150,000 tokens would exceed the probability of most of them.
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # Below the total even after rounding, so that the interval found is never one of probability 0.
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    # Only where the law is not a number is the place found beyond the vocabulary; `check_law` refuses it.
    actions = torch.searchsorted(cumulative, target[:, None], right=True).clamp(max=probs.shape[-1] - 1)
    drawn = logprobs.gather(-1, actions).squeeze(-1)
    return actions.squeeze(-1), drawn - total.log().float() if sampling.top_p < 1 else drawn


def _cut_to_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Set to 0 all but the smallest set of tokens with probability >= top_p (of equals, the lower ids are kept)."""
    descending, tokens = probs.sort(dim=-1, descending=True, stable=True)
    mass_before = descending.cumsum(-1, dtype=torch.float64) - descending
    return probs.masked_fill(torch.zeros_like(probs, dtype=torch.bool).scatter(-1, tokens, mass_before >= top_p), 0.0)


def _has_stop(policy: Policy, tokens: Tensor, stop_strings: tuple[str, ...]) -> Tensor:
    # The whole text is decoded each time: the text of a tail alone may differ (bytes of one character, leading spaces).
    texts = decode_all(policy, tokens.tolist())
    return torch.tensor([_contains(text, stop_strings) for text in texts], device=tokens.device)


def _contains(text: str, stop_strings: tuple[str, ...]) -> bool:
    return any(stop in text for stop in stop_strings)


def _finish_rows(
    policy: Policy, prompts: list[tuple[int, ...]], rows: _Rows, stop_strings: tuple[str, ...]
) -> list[Rollout]:
    """Cut every row at its end and at the first token that completes a stop string, whenever that was noticed.

    Raises:
        DivergedError: a token was drawn from a law that is not a number.
    """
    check_law(policy, rows.logprobs)
    rollouts = []
    columns = (rows.tokens, rows.logprobs, rows.num_tokens, rows.is_finished)
    for prompt, *row in zip(prompts, *(column.tolist() for column in columns), strict=True):
        tokens, logprobs, num_tokens, is_finished = row
        length, is_stopped = cut_to_stop(policy, tokens[:num_tokens], stop_strings)
        rollouts.append(Rollout(prompt, tuple(tokens[:length]), tuple(logprobs[:length]), is_finished or is_stopped))
    return rollouts


def cut_to_stop(policy: Policy, tokens: Sequence[int], stop_strings: tuple[str, ...]) -> tuple[int, bool]:
    """How many tokens there are up to the one that completes a stop string, and whether there is one."""
    if stop_strings and _contains(decode(policy, tokens), stop_strings):
        return _length_to_stop(policy, tokens, stop_strings), True
    return len(tokens), False


def _length_to_stop(policy: Policy, tokens: Sequence[int], stop_strings: tuple[str, ...]) -> int:
    """The fewest tokens whose text contains a stop string; the whole of `tokens` does. By bisection."""
    low, high = 0, len(tokens)
    while high - low > 1:
        middle = (low + high) // 2
        if _contains(decode(policy, tokens[:middle]), stop_strings):
            high = middle
        else:
            low = middle
    return high
