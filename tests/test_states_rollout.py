import numpy as np
import pytest
import torch

from statewise.config.refusals import read_kind
from statewise.errors import UsageError
from statewise.policy.sampler import Sampling, sample
from statewise.states import EncodedExample, Source, SourceContext
from statewise.states.rollout import ModelRollout


def context(policy, key=3, num_documents=5, asked=None):
    examples = tuple(EncodedExample(i, tuple(range(60, 63 + i)), ()) for i in range(num_documents))

    def roll_out(request):
        if asked is not None:
            asked.append(request)
        sampling = Sampling(request.temperature, request.top_p, request.max_new_tokens)
        return sample(policy, request.prompts, request.keys, sampling)

    return SourceContext(examples, roll_out, key)


def test_the_rows_of_a_prompt_form_a_group_and_follow_each_other(toy_policy):
    states = ModelRollout(num_prompts=3, samples_per_prompt=4, max_new_tokens=6).sample(context(toy_policy), 0)
    indices = states.prompt_indices.tolist()
    assert len(indices) == 12
    assert [indices[4 * group : 4 * group + 4] for group in range(3)] == [[indices[4 * g]] * 4 for g in range(3)]
    assert len(set(indices)) == 3
    # Samples of one prompt are drawn independently.
    assert len({states.response_ids(row) for row in range(12)}) == 12


def test_every_sampled_token_is_an_action_with_the_log_probability_it_was_drawn_with(toy_policy):
    asked = []
    states = ModelRollout(num_prompts=4, max_new_tokens=8, temperature=0.8).sample(context(toy_policy, asked=asked), 2)
    for row in range(4):
        prompt_length, length = int(states.prompt_lengths[row]), int(states.lengths[row])
        assert tuple(states.token_ids[row, :prompt_length].tolist()) == asked[0].prompts[row]
        assert np.flatnonzero(states.action_mask[row]).tolist() == list(range(prompt_length, length))
        ids = torch.from_numpy(states.token_ids[row : row + 1, :length])
        with torch.no_grad():
            laws = (toy_policy.model(ids).logits[0, :, :257] / 0.8).log_softmax(-1)
        expected = [laws[t - 1, ids[0, t]].item() for t in range(prompt_length, length)]
        np.testing.assert_allclose(states.behavior_logprobs[row, prompt_length:length], expected, atol=1e-5, rtol=1e-5)
    assert np.isnan(states.behavior_logprobs[~states.action_mask]).all()
    assert states.temperature == 0.8


def test_rows_that_were_cut_are_not_finished_and_rows_that_ended_are(toy_policy):
    states = ModelRollout(num_prompts=5, samples_per_prompt=20, max_new_tokens=40).sample(context(toy_policy), 0)
    for row in range(100):
        response = states.response_ids(row)
        assert states.is_finished[row] == (response[-1] == toy_policy.end_token_id)
        assert states.is_finished[row] or len(response) == 40
        assert toy_policy.end_token_id not in response[:-1]
    assert 0 < states.is_finished.sum() < 100


@pytest.mark.parametrize("by", ["learner", "teacher", "base"])
def test_the_writer_is_asked_and_recorded(toy_policy, by):
    asked = []
    source = ModelRollout(by=by, num_prompts=2, max_new_tokens=3, top_p=0.9)
    states = source.sample(context(toy_policy, asked=asked), 0)
    assert set(states.writers) == {asked[0].writer} == {by}
    assert set(states.sources) == {"rollout"}
    assert (asked[0].temperature, asked[0].top_p, asked[0].max_new_tokens) == (1.0, 0.9, 3)
    assert (source.needs_teacher, source.needs_base) == (by == "teacher", by == "base")


def test_the_same_key_and_step_give_the_same_rollouts_and_others_give_others(toy_policy):
    source = ModelRollout(num_prompts=5, max_new_tokens=6)
    first, again = (source.sample(context(toy_policy), 1) for _ in range(2))
    assert first.token_ids.tobytes() == again.token_ids.tobytes()
    assert first.behavior_logprobs.tobytes() == again.behavior_logprobs.tobytes()

    def texts(states):
        return {int(index): states.response_ids(row) for row, index in enumerate(states.prompt_indices)}

    for other in (source.sample(context(toy_policy), 2), source.sample(context(toy_policy, key=4), 1)):
        assert all(texts(other)[index] != text for index, text in texts(first).items())


def test_every_row_of_every_update_has_a_key_of_its_own(toy_policy):
    there = context(toy_policy)
    assert len({there.row_key(step, row) for step in range(50) for row in range(50)}) == 2500


def test_num_examples_takes_the_first_documents(toy_policy):
    source = ModelRollout(num_prompts=4, max_new_tokens=1, num_examples=2)
    assert sorted(source.sample(context(toy_policy), 0).prompt_indices.tolist()) == [0, 0, 1, 1]


def test_the_budget_of_an_update_counts_every_sample():
    source = ModelRollout(num_prompts=6, samples_per_prompt=5)
    assert (source.trajectories_per_update, source.samples_per_prompt) == (30, 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("by", "someone"), ("temperature", 0), ("top_p", 1.5), ("num_prompts", 0), ("samples_per_prompt", -1)],
)
def test_a_setting_out_of_range_is_refused(key, value):
    with pytest.raises(UsageError, match=rf"study\.toml:9: {key}: Input should be"):
        read_kind(Source, {"kind": "rollout", key: value}, "study.toml:9")
