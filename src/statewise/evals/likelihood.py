"""Log-likelihood of continuations after contexts, as multiple-choice tasks ask for.

Departs from scoring one padded sequence a pair: pairs that differ in their last token only (the usual choices) share
one forward pass, since that token is never an input; passes run longest first in micro-batches of similar length.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statewise.batch import Trajectory, collate, take_rows
from statewise.errors import UsageError
from statewise.policy.load import Policy
from statewise.policy.score import Law, chunked_over_laws, micro_batches, state_hidden, states_per_chunk

SCORING_TOKENS = 8192  # padded tokens per forward pass


@dataclass(frozen=True)
class Pair:
    """Context and continuation as token ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def score_continuations(policy: Policy, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """Log-likelihood of each continuation, log p(continuation | context) = sum_t log p(c_t | context, c_<t).

    Returns:
        One (nats, is_greedy) a pair, in order; is_greedy: greedy decoding would write the continuation.

    Raises:
        UsageError: an empty context or continuation, or a continuation that is longer than the model's context.
    """
    if not pairs:
        return []
    pairs = _fit_all(policy, pairs)
    shared: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for place, pair in enumerate(pairs):
        shared.setdefault((len(pair.context), pair.context + pair.continuation[:-1]), []).append(place)
    rows = list(shared.values())
    states = collate([_trajectory(pairs[places[0]], row) for row, places in enumerate(rows)])
    logprobs, are_greedy = np.zeros(len(pairs)), np.ones(len(pairs), dtype=np.bool_)
    with torch.no_grad():
        for batch in micro_batches(states, SCORING_TOKENS):
            hidden = state_hidden(policy, take_rows(states, batch))
            owners, at_state, actions = _spread(pairs, [rows[row] for row in batch])
            index = torch.tensor(at_state, device=policy.device)
            taken = torch.tensor(actions, device=policy.device)
            law = Law(policy, 1.0, states_per_chunk(policy))
            scored = chunked_over_laws(_score_actions, law, hidden[index], taken).numpy(force=True)
            np.add.at(logprobs, owners, scored[:, 0].astype(np.float64))
            np.logical_and.at(are_greedy, owners, scored[:, 1] > 0)
    return [(float(logprob), bool(is_greedy)) for logprob, is_greedy in zip(logprobs, are_greedy, strict=True)]


def _trajectory(pair: Pair, row: int) -> Trajectory:
    return Trajectory(pair.context + pair.continuation, len(pair.context), row, source="evaluation", writer="task")


def _fit_all(policy: Policy, pairs: Sequence[Pair]) -> list[Pair]:
    """Contexts that are too long lose their beginning, as in lm-eval; the last action is no input and takes no room."""
    limit = policy.context_length + 1
    fitted = []
    for pair in pairs:
        if not pair.context:
            raise UsageError(
                f"no token stands before a choice of {len(pair.continuation)} tokens: its context is spaces alone, to "
                f"which the tokenizer of {policy.name!r} gives no token; give doc_to_text of the task a text"
            )
        if not 0 < len(pair.continuation) < limit:
            raise UsageError(
                f"a choice of {len(pair.continuation)} tokens cannot be scored by {policy.name!r}, whose context has "
                f"{policy.context_length}; correct the task's choices or use a model with a longer context"
            )
        fitted.append(
            Pair(pair.context[max(0, len(pair.context) + len(pair.continuation) - limit) :], pair.continuation)
        )
    warn_of_cuts(policy, sum(new != old for new, old in zip(fitted, pairs, strict=True)), len(pairs))
    return fitted


def warn_of_cuts(policy: Policy, num_cut: int, num_contexts: int) -> None:
    """Warn where contexts lost their beginning: their scores hold, but of a task that shows less."""
    if num_cut:
        warnings.warn(
            f"{num_cut} of {num_contexts} contexts do not fit {policy.name!r} (context {policy.context_length}) and "
            "lost their beginning, as in lm-eval; use fewer worked examples",
            stacklevel=2,
        )


def _spread(pairs: Sequence[Pair], rows: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """For every action of every pair of `rows`: whose it is, at which state of the micro-batch, and which token."""
    owners: list[int] = []
    at_state: list[int] = []
    actions: list[int] = []
    offset = 0
    for places in rows:
        num_actions = len(pairs[places[0]].continuation)
        for place in places:
            owners += [place] * num_actions
            at_state += range(offset, offset + num_actions)
            actions += pairs[place].continuation
        offset += num_actions
    return owners, at_state, actions


def _score_actions(logits: Tensor, actions: Tensor) -> Tensor:
    """[states, 2]: log-probability of the action (nats), and 1 where it is the most probable."""
    logprobs = logits.gather(-1, actions[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return torch.stack([logprobs, (logits.argmax(-1) == actions).float()], dim=-1)
