"""From an arm's configuration to the objects that train it: policies, documents, source, signals, trainable weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from statewise.batch import IntArray
from statewise.config.study import UpdateSection
from statewise.errors import UsageError
from statewise.locality import Adapter, Locality
from statewise.loop.account import Account
from statewise.loop.documents import Documents, read_documents, rule_of
from statewise.loop.history import WeightHistory
from statewise.loop.oom import TokenLimit
from statewise.policy.act import draw_actions
from statewise.policy.check import check_packing
from statewise.policy.engine import RolloutEngine
from statewise.policy.load import Policy, check_same_tokenizer
from statewise.policy.sampler import OwnEngine, Sampling
from statewise.policy.texts import decode_all
from statewise.seeding import derive_key
from statewise.signals.signal import ActRequest, Supervision, WeightedSignal, WriteRequest
from statewise.states import RecordedStates, Source, SourceContext
from statewise.states.source import RolloutRequest
from statewise.tasks.task import Task
from statewise.types import Rollout


@dataclass(frozen=True)
class Recipe:
    """The four independent parts of an arm, and the key that all its randomness derives from.

    `engine` writes for it; whoever made it closes it.
    """

    source: Source
    signals: tuple[WeightedSignal, ...]
    adapter: Adapter
    update: UpdateSection
    key: int
    localities: tuple[Locality, ...] = ()
    engine: RolloutEngine = field(default_factory=OwnEngine)


@dataclass(frozen=True)
class Material:
    """What an arm is trained on: the target `task`, whose training split gives the prompts; the `retention` tasks, for
    a locality that remembers them; the states that sources `log` replay, by their `record`; the `documents` in the
    learner's tokens (None: those of the target that fit this arm).
    """

    task: Task
    retention: tuple[Task, ...] = ()
    recorded: Mapping[str, RecordedStates] = field(default_factory=dict)
    documents: Documents | None = None


@dataclass
class Writers:
    """The policies of an arm by writer's name, the learner's past, and what all of them have used so far.

    `longest_rollout`, `longest_written`: new tokens that the source and the signals said they ask for at most.
    """

    policies: dict[str, Policy]
    engine: RolloutEngine
    history: WeightHistory
    longest_rollout: int
    longest_written: int
    account: Account = field(default_factory=Account)
    _update: int = 0
    _synced: dict[str, int] = field(default_factory=dict)  # by writer: after how many updates the engine's weights are

    def begin(self, update: int) -> None:
        """Update number `update` begins, with the weights as they are."""
        self._update = update
        self.history.remember(update)

    def roll_out(self, request: RolloutRequest) -> list[Rollout]:
        """Answer a source."""
        _check_length("source", request.max_new_tokens, self.longest_rollout, "longest_rollout")
        sampling = Sampling(request.temperature, request.top_p, request.max_new_tokens)
        with self.history.as_after(request.update):
            if request.writer == "learner":
                self._sync("learner", self._update if request.update is None else request.update)
            return self._write(request.writer, request.prompts, request.keys, sampling)

    def write_on(self, request: WriteRequest) -> list[Rollout]:
        """Answer a signal: the teacher writes."""
        _check_length("signal", request.max_new_tokens, self.longest_written, "longest_written")
        sampling = Sampling(request.temperature, 1.0, request.max_new_tokens)
        return self._write("teacher", request.prompts, request.keys, sampling)

    def act(self, request: ActRequest) -> IntArray:
        """Answer a signal: one action at every state."""
        policy = self._policy(request.actor)
        self.account.score(policy.model, int(request.states.lengths.sum()))
        return draw_actions(policy, request.states, request.temperature, request.key)

    def _sync(self, writer: str, num_updates: int) -> None:
        if self._synced.get(writer) != num_updates:
            self.engine.sync_weights(self._policy(writer))
            self._synced[writer] = num_updates

    def _policy(self, name: str) -> Policy:
        if name not in self.policies:
            raise UsageError(
                f"source or signal asks the {name}, which the arm does not have; let its 'needs_{name}' be true"
            )
        return self.policies[name]

    def _write(
        self, writer: str, prompts: Sequence[tuple[int, ...]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]:
        policy = self._policy(writer)
        if writer not in self._synced:
            self._sync(writer, 0)
        rollouts = self.engine.sample(policy, prompts, keys, sampling)
        written = sum(len(rollout.token_ids) for rollout in rollouts)
        self.account.write(writer, policy.model, sum(map(len, prompts)), written)
        return rollouts


@dataclass(frozen=True)
class Setup:
    """Everything `train` needs.

    `trainable` are the learner's parameters that the optimiser moves, by name; `limit`: what passes a model at once;
    `documents`: what `context` draws from.
    """

    recipe: Recipe
    learner: Policy
    writers: Writers
    context: SourceContext
    material: Material
    trainable: dict[str, torch.nn.Parameter]
    limit: TokenLimit
    documents: Documents

    @property
    def num_adapted(self) -> int | None:
        """Weights of the adapter that is trained; None where the model's own weights are."""
        return sum(p.numel() for p in self.trainable.values()) if self.recipe.adapter.keeps_base else None

    def supervision(self, step: int, place: int = 0) -> Supervision:
        """What the signal at `place` in the arm's sum may ask in update `step`."""
        key = derive_key(self.recipe.key, "signal", step, *([place] if place else []))
        return Supervision(
            self.writers.write_on, self.writers.act, self.grade, key, step, self.recipe.update.trains_end_of_text
        )

    def grade(self, prompt_indices: Sequence[int], rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards 0..1 of responses by the task's own filter and metric; nan where one cannot be scored."""
        rewards, flops = self.material.task.rewards(prompt_indices, decode_all(self.learner, rows))
        self.writers.account.flops_forward += flops
        return rewards


def build(recipe: Recipe, learner: Policy, others: dict[str, Policy], material: Material) -> Setup:
    """Attach the adapter to `learner` and make the context of the source.

    Args:
        recipe: the arm.
        learner: the policy to train; its model is changed in place.
        others: `teacher` and `base`, where source, signals or localities need them.
        material: tasks, recorded states and documents.

    Raises:
        UsageError: a teacher is needed and absent, its tokenizer differs, the task has no training document, or one
            that does not fit the context; a file of pairs that cannot be read; `packing` of a model that mixes texts.
    """
    signals = [one.signal for one in recipe.signals]
    if "teacher" not in others and (recipe.source.needs_teacher or any(one.needs_teacher for one in signals)):
        kinds = " + ".join(one.kind for one in signals)
        raise UsageError(f"source {recipe.source.kind!r} with signal {kinds!r} needs a teacher; name one")
    for other in others.values():
        check_same_tokenizer(learner, other)
    if recipe.update.packing:
        check_packing(learner)
    own = [recipe.source]
    documents = material.documents or read_documents(learner, material.task, own, rule_of(own))
    trainable = recipe.adapter.attach(learner.model, derive_key(recipe.key, "adapter"))
    if recipe.update.activation_checkpointing:
        learner.model.activation_checkpointing_enable({"use_reentrant": False})
    history = WeightHistory(trainable, recipe.source.max_lag)
    writers = Writers(
        {"learner": learner, **others}, recipe.engine, history, recipe.source.longest_rollout,
        max(one.longest_written for one in signals),
    )  # fmt: skip
    context = SourceContext(
        documents.examples, writers.roll_out, derive_key(recipe.key, "source"), recipe.update.num_updates,
        recorded=material.recorded, pairs=documents.pairs,
    )  # fmt: skip
    limit = TokenLimit(recipe.update.max_tokens)
    return Setup(recipe, learner, writers, context, material, trainable, limit, documents)


def _check_length(what: str, asked: int, most: int, name: str) -> None:
    """Memory and cost are planned by what the kinds say."""
    if asked > most:
        raise UsageError(f"a {what} asks for {asked} new tokens and says {most} at most; let its {name!r} say so")
