"""A kind that does what it does not say of itself is refused by name, since plans stood on what it said."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from toy_arm import make_setup, make_source

from statewise.errors import InterruptedTrainingError, UsageError
from statewise.kind import Law
from statewise.locality.kl_to_base import KLToBase
from statewise.locality.locality import Constraint
from statewise.loop.train import Observer, train
from statewise.signals import SIGNALS, WeightedSignal
from statewise.signals.continuation import Continuation
from statewise.signals.imitate import Imitate
from statewise.states.dataset import Dataset
from statewise.states.rollout import ModelRollout


class SaysData(ModelRollout):
    laws: ClassVar[tuple[Law, ...]] = (Law(),)


class SaysShort(ModelRollout):
    longest_rollout: ClassVar[int] = 3


class SaysNobody(ModelRollout):
    needs_base: ClassVar[bool] = False


class WritesShort(Continuation):
    longest_written: ClassVar[int] = 2


class TooLong(Dataset):
    def sample(self, context, step):
        states = super().sample(context, step)
        states.lengths[:] = 10_000
        return states


ROLLED = {"num_prompts": 2, "max_new_tokens": 4}


@pytest.mark.parametrize(
    ("source", "signal", "told"),
    [
        (
            SaysData(**ROLLED, temperature=0.5), Imitate(),
            r"source 'rollout': its states were drawn at temperature 0\.5, top_p 1, and its 'laws' say 1, top_p 1",
        ),
        (SaysShort(**ROLLED), Imitate(), "asks for 4 new tokens and says 3 at most; let its 'longest_rollout' say so"),
        (
            make_source("dataset"),
            (WeightedSignal.model_construct(signal=WritesShort(num_tokens=5), weight=1.0),),
            "a signal asks for 5 new tokens and says 2 at most; let its 'longest_written' say so",
        ),
        (TooLong(), Imitate(), "source 'dataset': a trajectory has 10000 tokens, and 'learner' has a context of"),
    ],
)  # fmt: skip
def test_a_kind_that_says_another_thing_than_it_does_stops_the_arm(toy_policy, tmp_path, source, signal, told):
    with pytest.raises(UsageError, match=told):
        train(make_setup(toy_policy, source, signal), tmp_path, Observer())


def test_a_writer_that_the_arm_does_not_have_is_named(toy_policy, tmp_path):
    setup = make_setup(toy_policy, SaysNobody(**ROLLED, by="base"), Imitate())
    del setup.writers.policies["base"]
    with pytest.raises(UsageError, match="asks the base, which the arm does not have; let its 'needs_base' be true"):
        train(setup, tmp_path, Observer())


def test_a_text_beyond_the_context_of_a_teacher_stops_the_arm(toy_policy, tmp_path, monkeypatch):
    setup = make_setup(toy_policy, make_source("dataset"), SIGNALS["reverse_kl"]())
    monkeypatch.setattr(setup.writers.policies["teacher"].model.config, "max_position_embeddings", 4)
    with pytest.raises(UsageError, match=r"has \d+ tokens, and 'teacher' has a context of 4; a source yields"):
        train(setup, tmp_path, Observer())


class Late(KLToBase):
    """Holds on to the weights after the first update, and pulls the later ones to them."""

    def start(self, context):
        return _Late(context)


class _Late(Constraint):
    def __init__(self, context):
        super().__init__()
        self.context = context

    def on_step(self, lr):
        for name, value in self.tensors.items():
            self.context.trainable[name].data.lerp_(value, 0.5)
        return {}

    def on_update(self, mean_penalty):
        self.tensors = self.tensors or self.context.copy()
        return {}


def test_tensors_that_a_locality_makes_on_its_way_are_there_after_a_resume(toy_policy, tmp_path):
    def arm():
        return make_setup(toy_policy, make_source("dataset"), Imitate(), localities=(Late(),), checkpoint_every=1)

    whole, begun, resumed = (arm() for _ in range(3))
    train(whole, tmp_path / "whole", Observer())
    steps = iter([False, False, True])
    with pytest.raises(InterruptedTrainingError, match="stopped before update 2"):
        train(begun, tmp_path / "parts", Observer(should_stop=lambda: next(steps)))
    train(resumed, tmp_path / "parts", Observer())
    for name, value in whole.trainable.items():
        assert torch.equal(resumed.trainable[name], value)
