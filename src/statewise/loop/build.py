"""From an arm's configuration to the objects that train it: policies, documents, source, signal, trainable weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from statewise.config import UpdateSection
from statewise.errors import UsageError
from statewise.locality.adapter import Adapter
from statewise.policy.load import Policy, chat_of, check_chat_end, check_same_tokenizer, decode, encode, encode_prompt
from statewise.policy.sampler import Sampling, sample
from statewise.policy.samplers import Sampler
from statewise.seeding import derive_key
from statewise.signals.signal import Signal, Supervision, WriteRequest
from statewise.states.source import EncodedExample, RolloutRequest, Source, SourceContext
from statewise.tasks.task import Task
from statewise.types import Example, Rollout


@dataclass(frozen=True)
class Recipe:
    """The four independent parts of an arm, and the key that all its randomness derives from.

    `is_chat`: prompts and gold texts are those of the tokenizer's chat template; `sampler`: the rollout engine.
    """

    source: Source
    signal: Signal
    adapter: Adapter
    update: UpdateSection
    key: int
    is_chat: bool = False
    sampler: Sampler = sample


@dataclass
class Engine:
    """The policies of an arm by writer's name, and how many tokens each has written so far."""

    policies: dict[str, Policy]
    num_generated: dict[str, int] = field(default_factory=dict)
    sampler: Sampler = sample

    def roll_out(self, request: RolloutRequest) -> list[Rollout]:
        """Answer a source."""
        sampling = Sampling(request.temperature, request.top_p, request.max_new_tokens)
        return self._write(request.writer, request.prompts, request.keys, sampling)

    def write_on(self, request: WriteRequest) -> list[Rollout]:
        """Answer a signal: the teacher writes."""
        sampling = Sampling(request.temperature, 1.0, request.max_new_tokens)
        return self._write("teacher", request.prompts, request.keys, sampling)

    def _write(
        self, writer: str, prompts: Sequence[tuple[int, ...]], keys: Sequence[int], sampling: Sampling
    ) -> list[Rollout]:
        rollouts = self.sampler(self.policies[writer], prompts, keys, sampling)
        written = sum(len(rollout.token_ids) for rollout in rollouts)
        self.num_generated[writer] = self.num_generated.get(writer, 0) + written
        return rollouts


@dataclass(frozen=True)
class Setup:
    """Everything `train` needs. `trainable` are the learner's parameters that the optimiser moves, by name."""

    recipe: Recipe
    learner: Policy
    teacher: Policy | None
    engine: Engine
    context: SourceContext
    task: Task
    trainable: dict[str, torch.nn.Parameter]

    def supervision(self, step: int) -> Supervision:
        """What the signal may ask in update `step`."""
        return Supervision(
            write=self.engine.write_on, grade=self.grade, key=derive_key(self.recipe.key, "signal", step)
        )

    def grade(self, prompt_index: int, token_ids: Sequence[int]) -> float:
        """Reward 0..1 of a response by the task's own filter and metric; nan if it cannot be scored."""
        return self.task.reward(prompt_index, decode(self.learner, token_ids))


def build(recipe: Recipe, learner: Policy, others: dict[str, Policy], task: Task) -> Setup:
    """Attach the adapter to `learner` and make the context of the source.

    Args:
        recipe: the arm.
        learner: the policy to train; its model is changed in place.
        others: `teacher` and `base`, where source or signal need them.
        task: the target task, whose training split gives the prompts.

    Raises:
        UsageError: a teacher is needed and absent, its tokenizer differs, the task has no training document, or one
            that does not fit the context.
    """
    teacher = others.get("teacher")
    if teacher is None and (recipe.source.needs_teacher or recipe.signal.needs_teacher):
        raise UsageError(f"source {recipe.source.kind!r} with signal {recipe.signal.kind!r} needs a teacher; name one")
    for other in others.values():
        check_same_tokenizer(learner, other)
    if recipe.is_chat:
        check_chat_end(learner)
    documents = task.examples("train", chat_of(learner) if recipe.is_chat else None)
    examples = tuple(encode_example(learner, document) for document in documents)
    if not examples:
        raise UsageError(f"task {task.name!r} has no training documents, so there is nothing to train on")
    trainable = recipe.adapter.attach(learner.model, derive_key(recipe.key, "adapter"))
    if recipe.update.activation_checkpointing:
        learner.model.activation_checkpointing_enable({"use_reentrant": False})
    engine = Engine({"learner": learner, **others}, sampler=recipe.sampler)
    context = SourceContext(examples, engine.roll_out, derive_key(recipe.key, "source"))
    return Setup(recipe, learner, teacher, engine, context, task, trainable)


def encode_example(policy: Policy, example: Example) -> EncodedExample:
    """Prompt and gold text in tokens, the gold text closed by end-of-text.

    Raises:
        UsageError: prompt and gold text are longer than the model's context.
    """
    prompt_ids = encode_prompt(policy, example.prompt)
    gold_ids = (*encode(policy, example.gold), policy.end_token_id) if example.gold else ()
    if len(prompt_ids) + max(1, len(gold_ids)) > policy.context_length:
        raise UsageError(
            f"training document {example.index}: prompt ({len(prompt_ids)} tokens) and gold text ({len(gold_ids)}) "
            f"exceed the context of {policy.context_length} tokens; remove the document or use a model with a longer "
            "context"
        )
    return EncodedExample(example.index, prompt_ids, gold_ids)
