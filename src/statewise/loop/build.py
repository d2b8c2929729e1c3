"""From an arm's configuration to the objects that train it: policies, documents, source, signals, trainable weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from statewise.config import UpdateSection
from statewise.errors import UsageError
from statewise.locality import Locality
from statewise.locality.adapter import Adapter
from statewise.loop.account import Account
from statewise.loop.fit import TokenLimit
from statewise.loop.history import WeightHistory
from statewise.policy.act import draw_actions
from statewise.policy.load import (
    Policy,
    chat_of,
    check_chat_end,
    check_same_tokenizer,
    decode,
    encode_after,
    encode_prompt,
)
from statewise.policy.sampler import Sampling, sample
from statewise.policy.samplers import Sampler
from statewise.seeding import derive_key
from statewise.signals.signal import ActRequest, Supervision, WeightedSignal, WriteRequest
from statewise.states import EncodedExample, RecordedStates, Source, SourceContext, leaves, reads_gold
from statewise.states.dataset import Dataset
from statewise.states.pairs import read_pairs
from statewise.states.source import RolloutRequest
from statewise.tasks.task import Task
from statewise.types import Example, IntArray, Rollout


@dataclass(frozen=True)
class Recipe:
    """The four independent parts of an arm, and the key that all its randomness derives from.

    `is_chat`: prompts and gold texts are those of the tokenizer's chat template; `sampler`: the rollout engine.
    """

    source: Source
    signals: tuple[WeightedSignal, ...]
    adapter: Adapter
    update: UpdateSection
    key: int
    localities: tuple[Locality, ...] = ()
    is_chat: bool = False
    sampler: Sampler = sample


@dataclass(frozen=True)
class Material:
    """What an arm is trained on: the target `task`, whose training split gives the prompts; the `retention` tasks, for
    a locality that remembers them; the states that sources `log` replay, by their `record`.
    """

    task: Task
    retention: tuple[Task, ...] = ()
    recorded: Mapping[str, RecordedStates] = field(default_factory=dict)


@dataclass
class Engine:
    """The policies of an arm by writer's name, the learner's past, and what all of them have used so far."""

    policies: dict[str, Policy]
    history: WeightHistory
    account: Account = field(default_factory=Account)
    sampler: Sampler = sample

    def roll_out(self, request: RolloutRequest) -> list[Rollout]:
        """Answer a source."""
        sampling = Sampling(request.temperature, request.top_p, request.max_new_tokens)
        with self.history.as_after(request.update):
            return self._write(request.writer, request.prompts, request.keys, sampling)

    def write_on(self, request: WriteRequest) -> list[Rollout]:
        """Answer a signal: the teacher writes."""
        sampling = Sampling(request.temperature, 1.0, request.max_new_tokens)
        return self._write("teacher", request.prompts, request.keys, sampling)

    def act(self, request: ActRequest) -> IntArray:
        """Answer a signal: one action at every state."""
        policy = self.policies[request.actor]
        self.account.score(policy.model, int(request.states.lengths.sum()))
        return draw_actions(policy, request.states, request.temperature, request.key)

    def _write(
        self, writer: str, prompts: Sequence[tuple[int, ...]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]:
        policy = self.policies[writer]
        rollouts = self.sampler(policy, prompts, keys, sampling)
        written = sum(len(rollout.token_ids) for rollout in rollouts)
        self.account.write(writer, policy.model, sum(map(len, prompts)), written)
        return rollouts


@dataclass(frozen=True)
class Setup:
    """Everything `train` needs.

    `trainable` are the learner's parameters that the optimiser moves, by name; `limit`: what passes a model at once.
    """

    recipe: Recipe
    learner: Policy
    engine: Engine
    context: SourceContext
    material: Material
    trainable: dict[str, torch.nn.Parameter]
    limit: TokenLimit

    @property
    def num_adapted(self) -> int | None:
        """Weights of the adapter that is trained; None where the model's own weights are."""
        return sum(p.numel() for p in self.trainable.values()) if self.recipe.adapter.keeps_base else None

    def supervision(self, step: int, place: int = 0) -> Supervision:
        """What the signal at `place` in the arm's sum may ask in update `step`."""
        key = derive_key(self.recipe.key, "signal", step, *([place] if place else []))
        return Supervision(self.engine.write_on, self.engine.act, self.grade, key, step)

    def grade(self, prompt_index: int, token_ids: Sequence[int]) -> float:
        """Reward 0..1 of a response by the task's own filter and metric; nan if it cannot be scored."""
        return self.material.task.reward(prompt_index, decode(self.learner, token_ids))


def build(recipe: Recipe, learner: Policy, others: dict[str, Policy], material: Material) -> Setup:
    """Attach the adapter to `learner` and make the context of the source.

    Args:
        recipe: the arm.
        learner: the policy to train; its model is changed in place.
        others: `teacher` and `base`, where source, signals or localities need them.
        material: tasks and recorded states.

    Raises:
        UsageError: a teacher is needed and absent, its tokenizer differs, the task has no training document, or one
            that does not fit the context; a file of pairs that cannot be read.
    """
    signals = [one.signal for one in recipe.signals]
    if "teacher" not in others and (recipe.source.needs_teacher or any(one.needs_teacher for one in signals)):
        kinds = " + ".join(one.kind for one in signals)
        raise UsageError(f"source {recipe.source.kind!r} with signal {kinds!r} needs a teacher; name one")
    for other in others.values():
        check_same_tokenizer(learner, other)
    if recipe.is_chat:
        check_chat_end(learner)
    documents = material.task.examples("train", chat_of(learner) if recipe.is_chat else None)
    needed = documents if reads_gold(recipe.source) else [replace(document, gold="") for document in documents]
    examples = tuple(encode_example(learner, document) for document in needed)
    if not examples:
        raise UsageError(f"task {material.task.name!r} has no training documents, so there is nothing to train on")
    pairs = {
        source.pairs: _encode_pairs(source.pairs, learner, documents)
        for source in leaves(recipe.source)
        if isinstance(source, Dataset) and source.pairs is not None
    }
    trainable = recipe.adapter.attach(learner.model, derive_key(recipe.key, "adapter"))
    if recipe.update.activation_checkpointing:
        learner.model.activation_checkpointing_enable({"use_reentrant": False})
    history = WeightHistory(trainable, recipe.source.max_lag)
    engine = Engine({"learner": learner, **others}, history, sampler=recipe.sampler)
    context = SourceContext(
        examples, engine.roll_out, derive_key(recipe.key, "source"), recipe.update.num_updates,
        recorded=material.recorded, pairs=pairs,
    )  # fmt: skip
    return Setup(recipe, learner, engine, context, material, trainable, TokenLimit(recipe.update.max_tokens))


def encode_example(policy: Policy, example: Example) -> EncodedExample:
    """Prompt and gold text in tokens, the gold text as it stands after the prompt and closed by end-of-text.

    Raises:
        UsageError: prompt and gold text are longer than the model's context, or share a token.
    """
    prompt_ids = encode_prompt(policy, example.prompt)
    try:
        gold_ids = (*encode_after(policy, example.prompt, example.gold), policy.end_token_id) if example.gold else ()
    except UsageError as error:
        raise UsageError(f"training document {example.index}: {error}") from None
    if len(prompt_ids) + max(1, len(gold_ids)) > policy.context_length:
        raise UsageError(
            f"training document {example.index}: prompt ({len(prompt_ids)} tokens) and gold text ({len(gold_ids)}) "
            f"exceed the context of {policy.context_length} tokens; remove the document or use a model with a longer "
            "context"
        )
    return EncodedExample(example.index, prompt_ids, gold_ids)


def _encode_pairs(path: str, policy: Policy, documents: Sequence[Example]) -> tuple[EncodedExample, ...]:
    """Given preferences in tokens.

    Raises:
        UsageError: a file that cannot be read, or a line that names no training document or is empty in tokens.
    """
    by_index = {document.index: document for document in documents}
    encoded: list[EncodedExample] = []
    for pair in read_pairs(Path(path)):
        document = by_index.get(pair.index)
        if document is None:
            raise UsageError(
                f"{path}:{pair.line}: index {pair.index} is not one of the {len(by_index)} training documents"
            )
        chosen, rejected = (
            encode_example(policy, Example(document.index, document.prompt, text))
            for text in (pair.chosen, pair.rejected)
        )
        encoded.append(EncodedExample(document.index, chosen.prompt_ids, chosen.gold_ids, rejected.gold_ids))
    return tuple(encoded)
