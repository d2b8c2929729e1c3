import numpy as np
import pytest
import scipy.stats
import torch

from statewise.batch import Trajectory, collate
from statewise.signals.continuation import Continuation
from statewise.signals.signal import Supervision
from statewise.types import Rollout, SignalInputs


class Pen:
    """A teacher that writes the length of the prompt, up to three times, and remembers what it was asked."""

    def __init__(self):
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        number = [1 + row % min(3, request.max_new_tokens) for row in range(len(request.prompts))]
        return [
            Rollout(prompt, (100 + len(prompt),) * n, (-0.5,) * n, n > 1)
            for prompt, n in zip(request.prompts, number, strict=True)
        ]


def supervision(pen, key=0):
    def grade(index, token_ids):
        raise AssertionError("a continuation is not graded")

    return Supervision(pen, pen, grade, key)


def test_what_the_teacher_writes_has_the_temperature_that_it_was_written_at():
    for temperature, taken_at in ((0.4, 0.4), (1.0, 1.0), (0.0, 1.0)):  # an arg-max has no temperature: as data
        continued = Continuation(temperature=temperature).supervise(trajectories(2), supervision(Pen()))
        assert continued.temperature == taken_at


def trajectories(num_rows=1, prompt_length=3, length=11):
    return collate([
        Trajectory(tuple(range(10, 10 + length + row % 2)), prompt_length, 40 + row, "rollout", "learner",
                   (-1.0,) * (length + row % 2 - prompt_length))
        for row in range(num_rows)
    ], temperature=0.7)  # fmt: skip


def test_the_prefix_is_kept_and_the_teachers_tokens_alone_are_actions():
    states = trajectories(6)
    pen = Pen()
    continued = Continuation().supervise(states, supervision(pen))
    for row, prompt in enumerate(pen.requests[0].prompts):
        cut, length = len(prompt), int(continued.lengths[row])
        assert prompt == tuple(states.token_ids[row, :cut].tolist())
        assert tuple(continued.token_ids[row, :cut].tolist()) == prompt
        assert (continued.token_ids[row, cut:length] == 100 + cut).all()
        assert np.flatnonzero(continued.action_mask[row]).tolist() == list(range(cut, length))
        assert (continued.behavior_logprobs[row, cut:length] == -0.5).all()
    assert continued.num_states == 1 + 2 + 3 + 1 + 2 + 3
    assert continued.is_finished.tolist() == [False, True, True, False, True, True]


def test_the_rows_keep_their_prompt_and_source_and_the_teacher_is_their_writer():
    states = trajectories(3)
    continued = Continuation().supervise(states, supervision(Pen()))
    assert continued.prompt_indices.tolist() == [40, 41, 42]
    assert continued.prompt_lengths.tolist() == [3, 3, 3]
    assert continued.sources == ("rollout",) * 3
    assert continued.writers == ("teacher",) * 3
    assert continued.temperature == 1.0
    assert states.writers == ("learner",) * 3


def test_the_first_cut_is_the_prompt_alone():
    pen = Pen()
    Continuation(cut="first").supervise(trajectories(4), supervision(pen))
    assert [len(prompt) for prompt in pen.requests[0].prompts] == [3] * 4


def test_a_uniform_cut_takes_every_training_state_alike_and_no_other():
    states = trajectories(1)
    states.action_mask[0, 6] = False  # a token that is not trained on
    pen, num_draws = Pen(), 1400
    for key in range(num_draws):
        Continuation().supervise(states, supervision(pen, key))
    cuts = [len(request.prompts[0]) for request in pen.requests]
    allowed = [3, 4, 5, 7, 8, 9, 10]
    assert set(cuts) == set(allowed)
    assert scipy.stats.chisquare([cuts.count(cut) for cut in allowed]).pvalue > 0.01


def test_rows_are_cut_independently_of_each_other():
    pen = Pen()
    Continuation().supervise(trajectories(40), supervision(pen))
    # 40 rows with 8 or 9 states each: the chance of fewer than 5 different cuts is below 1e-8.
    assert len({len(prompt) for prompt in pen.requests[0].prompts}) >= 5


def test_every_row_has_a_key_of_its_own_and_the_same_key_asks_the_same():
    pen = Pen()
    for key in (1, 1, 2):
        Continuation(num_tokens=7, temperature=0.3).supervise(trajectories(20), supervision(pen, key))
    first, again, other = pen.requests
    assert first == again
    assert len(set(first.keys)) == 20
    assert not set(first.keys) & set(other.keys)
    assert first.prompts != other.prompts
    assert (first.temperature, first.max_new_tokens) == (0.3, 7)


def test_the_loss_is_the_cross_entropy_of_what_was_written():
    # -ln 1/2 = .69315, -ln 1/8 = 2.07944
    loss = Continuation().loss(SignalInputs(policy_logprobs=torch.tensor([0.5, 0.125]).log()))
    assert loss.tolist() == pytest.approx([0.69315, 2.07944], abs=1e-5)
