"""What an arm is trained on, in tokens: the documents that fit the model, given pairs, prompts to remember.

Needs a policy's tokenizer and context, not its weights (`policy.load.load_without_weights`), so that a plan can be
checked with the code that a run uses. All arms of a study train on the same documents: where one of them needs gold
texts, a document whose gold text does not fit is left out for the others as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from statewise.console.printing import plural
from statewise.errors import UsageError
from statewise.locality import Memory
from statewise.policy.load import Policy
from statewise.policy.texts import chat_of, check_chat_end, encode_prompt, encode_starts, tokens_after
from statewise.states import EncodedExample, Source
from statewise.states.pairs import read_pairs
from statewise.tasks.task import Chat, Task
from statewise.types import Example

TooLong = Literal["refuse", "skip"]


@dataclass(frozen=True)
class DocumentRule:
    """Which documents are trained on.

    `needs_gold`: their gold texts must fit the context as well; `num_documents`: the first of the split that are used
    (None: all); `too_long`: what becomes of those that do not fit; `is_chat`: prompts and gold texts are those of the
    tokenizer's chat template.
    """

    needs_gold: bool
    num_documents: int | None = None
    too_long: TooLong = "refuse"
    is_chat: bool = False

    def chat(self, policy: Policy) -> Chat | None:
        """The chat template of `policy`, where it is used."""
        return chat_of(policy) if self.is_chat else None


@dataclass(frozen=True)
class Documents:
    """Training documents and given pairs (by file) in tokens; `notes` say what was left out."""

    rule: DocumentRule
    examples: tuple[EncodedExample, ...]
    pairs: Mapping[str, tuple[EncodedExample, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def rule_of(sources: Iterable[Source], too_long: TooLong = "refuse", *, is_chat: bool = False) -> DocumentRule:
    """The rule under which every one of `sources` can draw."""
    used = [source.pool for source in sources]
    counts = [count for count in used if count is not None]
    num_documents = max(counts, default=0) if len(counts) == len(used) else None
    return DocumentRule(any(source.needs_gold for source in sources), num_documents, too_long, is_chat)


def read_documents(policy: Policy, task: Task, sources: Iterable[Source], rule: DocumentRule) -> Documents:
    """The training documents of `task`, and the pairs that `sources` are given.

    Raises:
        UsageError: as `encode_documents` and `add_pairs`.
    """
    return add_pairs(encode_documents(policy, task, rule), policy, task, sources)


def encode_documents(policy: Policy, task: Task, rule: DocumentRule) -> Documents:
    """The training documents of `task`: the same for all arms of a study.

    Raises:
        UsageError: there is none; some do not fit, or have no gold text, and are needed (all of them are named); a gold
            text that shares a token with its prompt; no chat template, or one that ends a turn with another token.
    """
    chat = rule.chat(policy)
    if chat is not None:
        check_chat_end(policy)
    documents = task.examples("train", chat)
    needed = documents if rule.needs_gold else [replace(document, gold="") for document in documents]
    encoded, limit = encode_examples(policy, needed), policy.context_length
    is_long = {example.index: num_tokens(example, rule.needs_gold) > limit for example in encoded}
    kept = tuple(example for example in encoded if rule.too_long == "refuse" or not is_long[example.index])
    if not kept:
        what = "training documents" if not encoded else f"training document that fits {limit} tokens"
        raise UsageError(f"task {task.name!r} has no {what}, so there is nothing to train on")
    used = kept[: rule.num_documents]
    _check_lengths(policy, task, [example for example in used if is_long[example.index]], rule)
    if rule.needs_gold and (empty := [example.index for example in used if not example.gold_ids]):
        raise UsageError(
            f"task {task.name!r}: {plural(len(empty), 'training document')} without gold text ({told(empty)}), "
            "which an arm trains on; use a rollout source, or another task"
        )
    notes = [
        f"{sum(is_long.values())} of {len(encoded):,} training documents of {task.name} exceed the context of "
        f"{limit:,} tokens and are left out of every arm ({told([i for i in is_long if is_long[i]])})"
    ] * (len(kept) < len(encoded))
    return Documents(rule, kept, notes=tuple(notes))


def add_pairs(documents: Documents, policy: Policy, task: Task, sources: Iterable[Source]) -> Documents:
    """`documents` of `task` with the pairs that `sources` are given.

    Raises:
        UsageError: as `encode_pairs`.
    """
    rule, pairs, notes = documents.rule, {}, list(documents.notes)
    for path in dict.fromkeys(file for source in sources for file in source.pair_files):
        pairs[path], left_out = encode_pairs(path, policy, task.examples("train", rule.chat(policy)), rule.too_long)
        notes += left_out
    return replace(documents, pairs=pairs, notes=tuple(notes))


def _check_lengths(policy: Policy, task: Task, too_long: Sequence[EncodedExample], rule: DocumentRule) -> None:
    if not too_long:
        return
    longest = max(too_long, key=lambda example: num_tokens(example, rule.needs_gold))
    gold = f" and {len(longest.gold_ids):,} of gold text" * rule.needs_gold
    raise UsageError(
        f"task {task.name!r}: {plural(len(too_long), 'training document')} "
        f"({told([example.index for example in too_long])}) {_excess(policy)}, the longest, {longest.index}, with "
        f"{len(longest.prompt_ids):,} tokens of prompt{gold}; shorten them, use a model with a longer context, or "
        'leave them out of every arm with shared.too_long = "skip"'
    )


def _excess(policy: Policy) -> str:
    return f"exceeding the context of {policy.context_length:,} tokens"


def fitting_prompts(policy: Policy, texts: Sequence[str], rule: DocumentRule, what: str) -> list[tuple[int, ...]]:
    """The prompts in tokens that leave room for an answer.

    Args:
        policy: whose tokenizer and context they are for.
        texts: the prompts.
        rule: whether one that does not fit is refused or left out.
        what: what they are, for the error.

    Raises:
        UsageError: one does not fit, and is not to be left out; or none fits.
    """
    prompts = [encode_prompt(policy, text) for text in texts]
    fits = [len(prompt) < policy.context_length for prompt in prompts]
    if not all(fits) and (rule.too_long == "refuse" or not any(fits)):
        bad = [place for place, is_fitting in enumerate(fits) if not is_fitting]
        raise UsageError(
            f"{what}: {plural(len(bad), 'prompt')} ({told(bad)}) {_excess(policy)}; shorten them, use fewer worked "
            'examples or a model with a longer context, or leave them out with shared.too_long = "skip"'
        )
    return [prompt for prompt, is_fitting in zip(prompts, fits, strict=True) if is_fitting]


def remembered_prompts(
    policy: Policy, task: Task, kind: str, memory: Memory, rule: DocumentRule
) -> list[tuple[int, ...]]:
    """The prompts of a retention task that a locality of `kind` remembers.

    Raises:
        UsageError: as `fitting_prompts`.
    """
    texts = task.memory_prompts(memory.num_prompts, rule.chat(policy))
    return fitting_prompts(policy, texts, rule, f"task {task.name!r}, whose prompts {kind} remembers")


def num_tokens(example: EncodedExample, needs_gold: bool) -> int:
    """Tokens of a document; a rollout from its prompt has at least one."""
    return len(example.prompt_ids) + (max(1, len(example.gold_ids), len(example.rejected_ids)) if needs_gold else 1)


def encode_examples(policy: Policy, examples: Sequence[Example]) -> list[EncodedExample]:
    """Prompts and gold texts in tokens, each gold text as it stands after its prompt and closed by end-of-text.

    Raises:
        UsageError: a prompt and its gold text share a token.
    """
    starts = encode_starts(policy, [example.prompt for example in examples])
    wholes = iter(encode_starts(policy, [example.prompt + example.gold for example in examples if example.gold]))
    encoded = []
    for example, start in zip(examples, starts, strict=True):
        try:
            gold_ids = (*tokens_after(policy, start, next(wholes)), policy.end_token_id) if example.gold else ()
        except UsageError as error:
            raise UsageError(f"training document {example.index}: {error}") from None
        encoded.append(EncodedExample(example.index, start or (policy.prefix_token_id,), gold_ids))
    return encoded


def encode_pairs(
    path: str, policy: Policy, documents: Sequence[Example], too_long: TooLong
) -> tuple[tuple[EncodedExample, ...], list[str]]:
    """Given preferences in tokens, and notes of what was left out.

    Raises:
        UsageError: a file that cannot be read, a line that names no training document or is empty in tokens, or pairs
            that do not fit the context and are not to be left out.
    """
    by_index = {document.index: document for document in documents}
    encoded: list[EncodedExample] = []
    bad: list[int] = []
    for pair in read_pairs(Path(path)):
        document = by_index.get(pair.index)
        if document is None:
            raise UsageError(
                f"{path}:{pair.line}: index {pair.index} is not one of the {len(by_index)} training documents"
            )
        texts = [Example(document.index, document.prompt, text) for text in (pair.chosen, pair.rejected)]
        chosen, rejected = encode_examples(policy, texts)
        both = EncodedExample(document.index, chosen.prompt_ids, chosen.gold_ids, rejected.gold_ids)
        if num_tokens(both, needs_gold=True) > policy.context_length:
            bad.append(pair.line)
        else:
            encoded.append(both)
    if bad and (too_long == "refuse" or not encoded):
        raise UsageError(
            f"{path}: {plural(len(bad), 'pair')} (lines {told(bad)}) {_excess(policy)}; shorten them, or leave "
            'them out with shared.too_long = "skip"'
        )
    return tuple(encoded), [f"{path}: {plural(len(bad), 'pair')} left out (lines {told(bad)})"] * bool(bad)


def told(indices: Sequence[int]) -> str:
    """Whole numbers with runs drawn together: 0–3, 7, 20–45."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in runs)
