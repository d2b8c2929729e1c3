from collections import Counter

import numpy as np
import pytest

from statewise.errors import UsageError
from statewise.states import SOURCES, Dataset, EncodedExample, SourceContext


def documents(num_documents, has_gold=True):
    return tuple(
        EncodedExample(i, (200, i), (*range(10, 11 + i % 3), 256) if has_gold else ()) for i in range(num_documents)
    )


def context(num_documents=7, key=5, **options):
    def roll_out(request):
        raise AssertionError("a dataset asks no model")

    return SourceContext(documents(num_documents, **options), roll_out, key)


def drawn(source, context, num_steps):
    return [index for step in range(num_steps) for index in source.sample(context, step).prompt_indices.tolist()]


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 21])
def test_every_document_comes_once_an_epoch_also_where_batches_straddle_it(batch):
    indices = drawn(Dataset(num_trajectories=batch), context(7), 21)
    for epoch in range(batch * 21 // 7):
        assert sorted(indices[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_epochs_have_orders_of_their_own():
    indices = drawn(Dataset(num_trajectories=7), context(7), 20)
    assert len({tuple(indices[7 * epoch : 7 * epoch + 7]) for epoch in range(20)}) == 20


def test_the_first_place_of_an_epoch_is_given_to_every_document():
    # 700 epochs, 100 a document on average; the standard deviation is sqrt(700 · 1/7 · 6/7) = 9.3.
    first = Counter(context(7).draw_examples(7, step, 1)[0].index for step in range(700))
    assert all(abs(first[i] - 100) < 40 for i in range(7))


def test_the_same_key_and_step_give_the_same_states_in_any_order_of_asking():
    source, there = Dataset(num_trajectories=4), context(7)
    once = source.sample(there, 5)
    source.sample(there, 2)
    again = source.sample(context(7), 5)
    assert once.token_ids.tobytes() == again.token_ids.tobytes()
    assert once.prompt_indices.tolist() == again.prompt_indices.tolist()


def test_another_key_gives_another_order():
    assert drawn(Dataset(num_trajectories=7), context(7, key=5), 1) != drawn(
        Dataset(num_trajectories=7), context(7, key=6), 1
    )


@pytest.mark.parametrize(("num_examples", "expected"), [(3, 3), (7, 7), (100, 7), (None, 7)])
def test_num_examples_takes_the_first_documents(num_examples, expected):
    indices = drawn(Dataset(num_trajectories=5, num_examples=num_examples), context(7), 21)
    assert Counter(indices) == dict.fromkeys(range(expected), 105 // expected)


def test_every_gold_token_is_an_action_and_no_prompt_token_is():
    states = Dataset(num_trajectories=7).sample(context(7), 0)
    for row, index in enumerate(states.prompt_indices.tolist()):
        gold = documents(7)[index].gold_ids
        assert states.response_ids(row) == gold
        assert np.flatnonzero(states.action_mask[row]).tolist() == list(range(2, 2 + len(gold)))
    assert states.num_states == sum(len(document.gold_ids) for document in documents(7))


def test_data_has_no_behavior_law_and_counts_as_finished():
    states = Dataset(num_trajectories=3).sample(context(), 0)
    assert np.isnan(states.behavior_logprobs).all()
    assert states.is_finished.all()
    assert (set(states.sources), set(states.writers)) == ({"dataset"}, {"data"})
    assert states.temperature == 1.0


def test_a_document_without_gold_text_is_refused():
    with pytest.raises(UsageError, match=r"has no gold text, so source 'dataset' has no states for it; use a rollout"):
        Dataset(num_trajectories=3).sample(context(has_gold=False), 0)


def test_a_dataset_needs_no_model():
    source = Dataset(num_trajectories=6)
    assert not source.needs_teacher
    assert not source.needs_base
    assert (source.trajectories_per_update, source.group_size) == (6, 1)


def test_the_room_lists_every_source_under_its_kind():
    assert all(source.model_fields["kind"].default == name for name, source in SOURCES.items())
