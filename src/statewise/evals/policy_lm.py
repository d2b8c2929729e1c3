"""A policy as lm-eval sees a model.

How a text is split into context and continuation is lm-eval's own code (TemplateLM), so that items get the scores that
lm-eval's HFLM gives; a begin-of-text token is added where HFLM adds one, and to training prompts as well. Departs from
HFLM: a padded vocabulary is cut to the tokenizer's, and the decoding (greedy or sampled) is the caller's instead of the
task's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from statewise.errors import UsageError
from statewise.evals.likelihood import Pair, score_continuations, warn_of_cuts
from statewise.policy.load import Policy
from statewise.policy.sampler import Sampling, sample
from statewise.policy.texts import decode_all, encode, encode_prompt, encode_start
from statewise.seeding import derive_key
from statewise.tasks.generation import DEFAULT_MAX_NEW_TOKENS, cut_at, max_tokens_of, stops_of


@dataclass(frozen=True)
class Decoding:
    """How answers are generated: temperature 0 is greedy; a sampled answer is a function of `seed` and its item.

    `max_new_tokens` is a cap: a task that allows fewer gets fewer.
    """

    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS


@dataclass(frozen=True)
class Written:
    """An answer. `is_finished`: it ended by itself, at an end of text or a stop string, not at the limit of tokens."""

    text: str
    is_finished: bool


class PolicyLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """lm-eval's interface to a policy; final. The caller puts the model into evaluation mode (`bystander`)."""

    def __init__(self, policy: Policy, decoding: Decoding | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.tokenizer = policy.tokenizer
        self.decoding = decoding or Decoding()

    @property
    def eot_token_id(self) -> int:
        return self.policy.end_token_id

    @property
    def prefix_token_id(self) -> int:
        return self.policy.prefix_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """As in HFLM: begin-of-text by the tokenizer's own habit, unless `add_special_tokens` is False."""
        return list(encode(self.policy, string) if add_special_tokens is False else encode_start(self.policy, string))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return score_continuations(self.policy, pairs)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts (nats), in windows of the context length that predict each token once."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.policy.context_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append(Pair(tuple(context), tuple(continuation)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, score_continuations(self.policy, pairs), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context, up to its first stop string; equal for equal seed, task and item."""
        return [written.text for written in self.write(requests)]

    def write(self, requests: Sequence[Instance]) -> list[Written]:
        """`generate_until`, and how each continuation ended."""
        groups: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            kwargs = request.args[1]
            groups[stops_of(kwargs), min(max_tokens_of(kwargs), self.decoding.max_new_tokens)].append(place)
        keys = self._keys(requests)
        written: dict[int, Written] = {}
        for (stops, max_new_tokens), places in groups.items():
            prompts = self._prompts([requests[place].args[0] for place in places], max_new_tokens)
            sampling = Sampling(self.decoding.temperature, max_new_tokens=max_new_tokens, stop_strings=stops)
            rollouts = sample(self.policy, prompts, [keys[place] for place in places], sampling)
            texts = decode_all(self.policy, [rollout.token_ids for rollout in rollouts])
            for place, text, rollout in zip(places, texts, rollouts, strict=True):
                written[place] = Written(cut_at(text, stops), rollout.is_finished)
        return [written[place] for place in range(len(requests))]

    def _keys(self, requests: Sequence[Instance]) -> list[int]:
        """One key a request; a repeated request gets a new one each time."""
        num_seen: Counter[tuple[str, int, int]] = Counter()
        keys = []
        for request in requests:
            item = (str(request.task_name), int(request.doc_id), int(request.idx))
            keys.append(derive_key(self.decoding.seed, "evaluation", *item, num_seen[item]))
            num_seen[item] += 1
        return keys

    def _prompts(self, contexts: Sequence[str], max_new_tokens: int) -> list[tuple[int, ...]]:
        """Tokens of the contexts, cut on the left to leave room for the answer, as in lm-eval."""
        room = self.policy.context_length - max_new_tokens
        if room < 1:
            raise UsageError(
                f"answers of {max_new_tokens} tokens leave no room for a prompt in {self.policy.name!r}, whose context "
                f"has {self.policy.context_length}; lower max_new_tokens"
            )
        prompts = [encode_prompt(self.policy, context) for context in contexts]
        warn_of_cuts(self.policy, sum(len(prompt) > room for prompt in prompts), len(prompts))
        return [prompt[-room:] for prompt in prompts]
