"""transformers' continuous batching as a rollout engine: for GPUs, where it keeps the batch full with paged attention.

It obeys the contract of `sampler.sample` but for one point: its random numbers come from one generator for all rows, so
a text depends on the rows beside it, not on its key alone. The same call still gives the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from statewise.errors import UsageError
from statewise.policy.engine import InProcessEngine
from statewise.policy.load import Policy, eval_mode
from statewise.policy.lora import active
from statewise.policy.sampler import Sampling, check_prompts, cut_to_stop
from statewise.seeding import derive_key
from statewise.types import Rollout

PAGE_TOKENS = 32  # of the paged cache; smaller pages waste less, larger ones make shorter tables
PREFILL_TOKENS = 2048  # of prompts and new tokens in one forward pass, at most


class GenerateBatch(InProcessEngine):
    """transformers' own loop, with the policy's own weights."""

    def sample(
        self, policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]:
        """As `sampler.sample`; log-probabilities are those that transformers reports, under the law drawn from.

        Args:
            policy: who writes.
            prompts: token ids.
            keys: all together are the seed.
            sampling: the law and the limits; every row gets the same limit, which must fit the context after each
                prompt.

        Raises:
            UsageError: a prompt or a limit that does not fit the context.
            RuntimeError: transformers failed on a row, or drew a token that the tokenizer does not have.
        """
        check_prompts(policy, prompts, keys)
        if not prompts:
            return []
        longest = max(len(prompt) for prompt in prompts)
        if longest + sampling.max_new_tokens > policy.context_length:
            raise UsageError(
                f"sampling: a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the context of "
                f"{policy.context_length}; lower max_new_tokens, or use the sampler 'own', which cuts such rows"
            )
        settings = GenerationConfig(
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(policy.end_token_ids),
            pad_token_id=policy.end_token_id,
        )
        pages = sum(-(-(len(prompt) + sampling.max_new_tokens) // PAGE_TOKENS) + 1 for prompt in prompts)
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=pages,
            max_batch_tokens=max(PREFILL_TOKENS, longest),
            return_logprobs=True,
            seed=derive_key(*keys) % 2**31,
        )
        with torch.no_grad(), eval_mode(policy), active(policy):
            inputs = [[int(token) for token in prompt] for prompt in prompts]
            written = policy.model.generate_batch(inputs, settings, batching, warmup=False)
        # Requests are numbered in the order of the prompts.
        ordered = sorted(written.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
        return [_rollout(policy, output, sampling) for output in ordered]


def _rollout(policy: Policy, output: object, sampling: Sampling) -> Rollout:
    if output.error is not None:  # type: ignore[attr-defined]
        raise RuntimeError(f"generate_batch: {output.error}")  # type: ignore[attr-defined]
    tokens, logprobs = tuple(output.generated_tokens), tuple(output.logprobs)  # type: ignore[attr-defined]
    if max(tokens, default=0) >= policy.vocab_size:
        raise RuntimeError("generate_batch drew a token of the padded vocabulary; use the sampler 'own'")
    is_finished = bool(tokens) and tokens[-1] in policy.end_token_ids
    length, is_stopped = cut_to_stop(policy, tokens, sampling.stop_strings)
    prompt: tuple[int, ...] = tuple(output.prompt_ids)  # type: ignore[attr-defined]
    return Rollout(prompt, tokens[:length], logprobs[:length], is_finished or is_stopped)
