"""Packed rows: every token once, texts kept apart, and the same hidden states and gradients as padded rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_arm import make_setup, make_source, supervised_terms

from statewise.batch import Trajectory, collate
from statewise.locality.adapter import Lora
from statewise.loop.update import Updater
from statewise.policy.packing import pack, packed_batches
from statewise.policy.score import padding_share, state_hidden
from statewise.signals import SIGNALS


def states_of(lengths):
    rng = np.random.default_rng(0)
    return collate(
        [Trajectory(tuple(rng.integers(1, 200, n).tolist()), 1, i, "dataset", "data") for i, n in enumerate(lengths)]
    )


def test_first_fit_by_hand():
    # Lengths without the last token: 7, 4, 3, 2, 1. Bins of 7: {7}, {4, 3}, {2, 1}.
    packing = pack(states_of([5, 8, 4, 3, 2]))
    assert packing.bins.tolist() == [1, 0, 1, 2, 2]
    assert packing.starts.tolist() == [0, 0, 4, 0, 2]
    assert packing.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 0, 1, 2, 3]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=12))
def test_every_row_lies_whole_in_its_place(lengths):
    states = states_of(lengths)
    packing = pack(states)
    taken = np.zeros(packing.token_ids.shape, dtype=int)
    for row, length in enumerate(lengths):
        span = slice(packing.starts[row], packing.starts[row] + length - 1)
        assert packing.token_ids[packing.bins[row], span].tolist() == states.token_ids[row, : length - 1].tolist()
        taken[packing.bins[row], span] += 1
    assert taken.max() == 1
    assert packing.token_ids.shape[1] == max(lengths) - 1
    assert taken.sum() == sum(lengths) - len(lengths)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=12), st.integers(1, 100))
def test_micro_batches_hold_every_row_once_within_the_limit(lengths, max_tokens):
    batches = packed_batches(np.array(lengths), max_tokens)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= max_tokens


def test_hidden_states_are_those_of_padded_rows(toy_policy):
    states = states_of([30, 9, 25, 3, 14, 2, 11])
    with torch.no_grad():
        padded, packed = state_hidden(toy_policy, states), state_hidden(toy_policy, states, is_packed=True)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-4)
    rows = [np.arange(7)]
    # 87 tokens in 4 bins of 29, and 94 in 7 rows of 30.
    assert padding_share(states, rows, is_packed=True) == pytest.approx(1 - 87 / 116)
    assert padding_share(states, rows) == pytest.approx(1 - 94 / 210)


@pytest.mark.parametrize("signal", ["imitate", "reverse_kl", "reward"])
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
def test_an_update_of_packed_rows_is_that_of_padded_ones(toy_policy, signal, adapter):
    results, gradients = [], []
    for is_packed in (False, True):
        setup = make_setup(
            toy_policy, make_source(num_prompts=4), SIGNALS[signal](), adapter=adapter, packing=is_packed
        )
        results.append(Updater(setup).apply(supervised_terms(setup), 0))
        gradients.append({name: p.grad for name, p in setup.trainable.items()})
    assert results[0].loss == pytest.approx(results[1].loss, abs=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-3)


def test_packed_rows_may_be_recomputed(toy_policy):
    setup = make_setup(
        toy_policy, make_source(), SIGNALS["imitate"](), packing=True, activation_checkpointing=True, max_tokens=20
    )
    assert Updater(setup).apply(supervised_terms(setup), 0).num_micro_batches > 1
