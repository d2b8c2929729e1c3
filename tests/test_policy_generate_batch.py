"""transformers' continuous batching behind the contract of the own sampler; here on a CPU, where it is not fast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from statewise.errors import UsageError
from statewise.policy.engine import ENGINES
from statewise.policy.load import Policy, copy_policy
from statewise.policy.sampler import Sampling, sample
from statewise.policy.texts import decode

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # transformers speaks of what a CPU lacks
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PROMPTS = [(72, 101, 108), (65, 66, 67, 68, 69), (72, 101, 108)]
KEYS = [1, 2, 3]


def generate(policy: Policy, sampling: Sampling, keys=KEYS):
    return ENGINES["generate_batch"]().sample(policy, PROMPTS, keys, sampling)


@pytest.fixture(scope="module")
def policy(toy_policy) -> Policy:
    """The toy without padded logits, which transformers would sample."""
    policy = copy_policy(toy_policy, "toy")
    policy.model.resize_token_embeddings(policy.vocab_size)
    return policy


def test_greedy_texts_are_those_of_the_own_sampler(policy):
    greedy = Sampling(0.0, max_new_tokens=12)
    ours, theirs = sample(policy, PROMPTS, KEYS, greedy), generate(policy, greedy)
    assert [r.token_ids for r in theirs] == [r.token_ids for r in ours]
    assert [r.prompt_ids for r in theirs] == PROMPTS
    assert [r.is_finished for r in theirs] == [r.is_finished for r in ours]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_under_the_law_drawn_from(policy, temperature):
    for rollout in generate(policy, Sampling(temperature, max_new_tokens=12)):
        ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        with torch.no_grad():
            logits = policy.model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].float()
        taken = torch.tensor(rollout.token_ids)[:, None]
        expected = (logits / temperature).log_softmax(-1).gather(-1, taken).squeeze(-1)
        np.testing.assert_allclose(rollout.logprobs, expected.numpy(), atol=1e-4)


def test_the_same_keys_give_the_same_texts_and_others_others(policy):
    sampling = Sampling(max_new_tokens=12)
    first, again, other = (generate(policy, sampling, keys) for keys in (KEYS, KEYS, [4, 5, 6]))
    assert first == again
    assert [r.token_ids for r in first] != [r.token_ids for r in other]


def test_a_text_ends_at_its_stop_string(policy):
    plain = generate(policy, Sampling(0.0, max_new_tokens=12))[0]
    stop = next(letter for letter in decode(policy, plain.token_ids) if letter.isascii())
    cut = generate(policy, Sampling(0.0, max_new_tokens=12, stop_strings=(stop,)))[0]
    assert cut.is_finished
    assert decode(policy, cut.token_ids).endswith(stop)
    assert cut.token_ids == plain.token_ids[: len(cut.token_ids)]


def test_a_limit_that_does_not_fit_the_context_is_refused(policy):
    with pytest.raises(UsageError, match="exceed the context of 128; lower max_new_tokens"):
        generate(policy, Sampling(max_new_tokens=126))


def test_no_prompts_are_no_rollouts(policy):
    assert ENGINES["generate_batch"]().sample(policy, [], [], Sampling()) == []
