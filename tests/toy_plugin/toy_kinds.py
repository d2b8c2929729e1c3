"""A package of somebody else's: one class or function a kind, one line each in its entry points."""

import json
from typing import ClassVar, Literal

import numpy as np

from statewise.batch import Trajectory, collate
from statewise.kind import Law
from statewise.locality.locality import Constraint, Locality
from statewise.policy.engine import InProcessEngine
from statewise.signals import Signal
from statewise.states import Source
from statewise.states.source import Visit
from statewise.trackers import Tracker


class Beginning(Source):
    """The first tokens of gold texts."""

    kind: Literal["beginning"] = "beginning"
    needs_gold: ClassVar[bool] = True

    num_trajectories: int = 4
    num_tokens: int = 8

    laws: ClassVar[tuple[Law, ...]] = (Law(),)

    @property
    def trajectories_per_update(self):
        return self.num_trajectories

    def sized(self, num_trajectories):
        return self.changed(num_trajectories=num_trajectories)

    def expect(self, lengths, replayed):
        return Visit(self.num_trajectories, min(lengths.gold, self.num_tokens), {})

    def sample(self, context, step):
        return collate(
            [
                Trajectory(
                    one.prompt_ids + one.gold_ids[: self.num_tokens], len(one.prompt_ids), one.index, self.kind, "data"
                )
                for one in context.draw_examples(self.num_trajectories, step, 1)
            ]
        )


class Smoothed(Signal):
    """Cross-entropy times a share."""

    kind: Literal["smoothed"] = "smoothed"

    share: float = 0.9

    def loss(self, inputs):
        return -self.share * inputs.required("policy_logprobs")


class Counted(Locality):
    """Counts steps and holds nothing back."""

    kind: Literal["counted"] = "counted"

    def copies(self, num_memories):
        return 0

    def start(self, context):
        return _Counted()


class _Counted(Constraint):
    def on_step(self, lr):
        self.numbers["steps"] = self.numbers.get("steps", 0) + 1
        return {"locality/counted_steps": self.numbers["steps"]}


def furthest(comparison, signs):
    """The largest change of one feature of the mean state."""
    gaps = comparison.x.vectors.mean(axis=1) - comparison.y.vectors.mean(axis=1)
    return np.abs(signs @ gaps / len(gaps)).max(axis=1)


class ByHand(InProcessEngine):
    """The own sampler under another name."""

    def sample(self, policy, prompts, keys, sampling):
        from statewise.policy.sampler import sample  # torch, which a list of names can do without

        return sample(policy, prompts, keys, sampling)


class Noted(Tracker):
    """A file beside the run folder."""

    def start(self, run):
        return 0

    def log(self, run, step, metrics):
        with (run.folder.parent / "noted.jsonl").open("a") as stream:
            stream.write(json.dumps([run.name, step, metrics]) + "\n")

    def finish(self, run, is_done):
        self.log(run, -1, {"is_done": is_done})
