import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.batch import Trajectory, collate
from statewise.policy.load import copy_policy
from statewise.policy.score import (
    Law,
    action_logprobs,
    batch_tensors,
    chunked_over_laws,
    head_logits,
    micro_batches,
    padding_share,
    state_hidden,
    states_per_chunk,
    take_rows,
)


def make_states(lengths, prompt_length=2, seed=0, temperature=1.0):
    rng = np.random.default_rng(seed)
    rows = [tuple(int(token) for token in rng.integers(0, 257, length)) for length in lengths]
    return collate(
        [Trajectory(ids, prompt_length, i, "rollout", "toy", tuple([-1.0] * (len(ids) - prompt_length)))
         for i, ids in enumerate(rows)],
        temperature,
    )  # fmt: skip


def score(policy, states, **options):
    actions = batch_tensors(states).labels
    return action_logprobs(policy, state_hidden(policy, states), actions, states.temperature, **options)


def by_hand(policy, states):
    """Every row alone, plain logits, one position at a time."""
    values = []
    for row, length in enumerate(states.lengths):
        ids = torch.tensor(states.token_ids[row, :length])[None]
        logprobs = (policy.model(ids).logits[0, :, :257] / states.temperature).log_softmax(-1)
        values += [logprobs[t - 1, ids[0, t]] for t in range(length) if states.action_mask[row, t]]
    return torch.stack(values)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_plain_model(toy_policy, temperature):
    states = make_states([9, 5, 12, 3], temperature=temperature)
    states.action_mask[0, 4] = False  # a hole: one token that is not trained on
    with torch.no_grad():
        scored = score(toy_policy, states)
        assert scored.dtype == torch.float32
        # Logits reach ~40 here, so float32 itself is good to about 4e-6.
        torch.testing.assert_close(scored, by_hand(toy_policy, states), atol=1e-6, rtol=2e-6)


def test_the_law_sums_to_one_over_the_tokenizers_tokens_alone(toy_policy):
    hidden = state_hidden(toy_policy, make_states([6, 6]))
    logits = head_logits(toy_policy, hidden, 2.0)
    assert logits.shape == (8, 257)  # the model has 264 logits
    raw = toy_policy.model.lm_head(hidden)[:, :257]
    torch.testing.assert_close(logits, raw / 2)


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_chunks_change_neither_values_nor_gradients(toy_policy, chunk_size):
    policy = copy_policy(toy_policy, "learner")
    states = make_states([9, 5, 12, 3])
    weights = torch.linspace(-1, 1, states.num_states)
    gradients = []
    for size in (states.num_states, chunk_size):
        policy.model.zero_grad()
        values = score(policy, states, chunk_size=size)
        (values * weights).sum().backward()
        gradients.append((values.detach(), [p.grad.clone() for p in policy.model.parameters()]))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    for whole, chunked in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=1e-4)


def test_only_one_chunk_of_logits_is_held_at_a_time_without_gradients_too(toy_policy):
    sizes = []

    def largest(logits):
        sizes.append(len(logits))
        return logits.amax(-1)

    with torch.no_grad():
        hidden = state_hidden(toy_policy, make_states([9]))
        values = chunked_over_laws(largest, Law(toy_policy, 1.0, 3), hidden)
        torch.testing.assert_close(values, toy_policy.model.lm_head(hidden).amax(-1))
    assert max(sizes) == 3 and sum(sizes) == len(hidden) > 3


def test_the_default_chunk_follows_the_vocabulary(toy_policy):
    assert states_per_chunk(toy_policy) == 10 * 2**20 // 257


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(3, 30), min_size=1, max_size=5), st.integers(31, 60))
def test_padding_cannot_change_logprobs(lengths, longest):
    policy = PADDING_POLICY[0]
    alone = make_states(lengths)
    with torch.no_grad():
        expected = score(policy, alone)
        padded = make_states([*lengths, longest])
        padded.token_ids[:-1][padded.token_ids[:-1] == 0] = 7  # rows keep their own tokens below
        padded.token_ids[:-1, : alone.token_ids.shape[1]] = alone.token_ids
        for row, length in enumerate(lengths):
            padded.token_ids[row, length:] = 99  # what stands in the padding must not matter either
        torch.testing.assert_close(score(policy, padded)[: len(expected)], expected, atol=2e-5, rtol=2e-5)


PADDING_POLICY = []


@pytest.fixture(autouse=True, scope="module")
def padding_policy(toy_policy):
    PADDING_POLICY.append(toy_policy)  # hypothesis warns of function-scoped fixtures; this one is the session's


def test_micro_batches_hold_every_row_once_within_the_limit():
    lengths = np.random.default_rng(1).integers(3, 120, 200)
    states = make_states(lengths)
    batches = micro_batches(states, 1024)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(rows) * lengths[rows].max() <= 1024 for rows in batches)
    assert [rows.tolist() for rows in micro_batches(states, 1024)] == [rows.tolist() for rows in batches]


@pytest.mark.parametrize("max_tokens", [1024, 4096, 16384])
def test_a_typical_length_mix_has_little_padding(max_tokens):
    rng = np.random.default_rng(2)  # prompts of about 40 tokens, continuations of about 25, at most 72
    lengths = rng.integers(20, 60, 256) + np.minimum(72, 1 + rng.geometric(1 / 25, 256))
    states = make_states(lengths)
    assert padding_share(states, micro_batches(states, max_tokens)) < 0.15
    assert padding_share(states, [np.arange(256)]) > 0.3  # what one padded batch would waste


def test_small_leftovers_are_not_split_to_single_rows():
    # 8 rows of 10..80 tokens, 360 in all: an eighth of 16,384 is 2,048, so padding is not worth a second pass.
    states = make_states(range(10, 90, 10))
    assert len(micro_batches(states, 16384)) == 1


def test_padding_share_by_hand():
    # Rows of 4 and 2 together: 8 padded, 6 real; a row of 3 alone: 3. 1 - 9 / 11.
    states = make_states([4, 3, 2], prompt_length=1)
    assert padding_share(states, [np.array([0, 2]), np.array([1])]) == pytest.approx(2 / 11)


def test_a_row_longer_than_the_limit_is_alone():
    batches = micro_batches(make_states([50, 10, 10]), 20)
    assert [rows.tolist() for rows in batches] == [[0], [1, 2]]


def test_taken_rows_keep_their_order_and_lose_the_padding():
    states = make_states([9, 5, 7])
    taken = take_rows(states, [2, 1])
    assert taken.token_ids.shape == taken.action_mask.shape == taken.behavior_logprobs.shape == (2, 7)
    assert taken.prompt_indices.tolist() == [2, 1]
    assert taken.response_ids(1) == states.response_ids(1)
    assert taken.num_states == 5 + 3


def test_tensors_of_a_micro_batch_run_over_its_states_row_by_row():
    states = make_states([4, 5])
    states.advantages[:] = [0.5, -2.0]
    tensors = batch_tensors(states, [1, 0])
    assert tensors.token_ids.shape == (2, 5)
    assert tensors.labels.tolist() == [*states.response_ids(1), *states.response_ids(0)]
    assert tensors.inputs.advantages.tolist() == [-2.0, -2.0, -2.0, 0.5, 0.5]
    assert tensors.inputs.behavior_logprobs.tolist() == [-1.0] * 5
