"""One action of a policy at every training state: what it would do there, whoever wrote the trajectory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from statewise.batch import FloatArray, IntArray, States, take_rows
from statewise.policy.load import Policy, eval_mode
from statewise.policy.sampler import Sampling, check_law, draw
from statewise.policy.score import action_logprobs, batch_tensors, micro_batches, state_hidden
from statewise.seeding import generator

FORWARD_TOKENS = 8192  # padded tokens of a forward pass without gradient


def draw_actions(policy: Policy, states: States, temperature: float, key: int) -> IntArray:
    """One action at every training state, by inverse transform from one uniform a position of a row's own stream.

    Args:
        policy: who acts.
        states: where.
        temperature: of the law that is drawn from; 0: the arg-max.
        key: of the randomness.

    Returns:
        int64 [batch, time]; 0 outside the action mask.

    Raises:
        DivergedError: the policy's law is not a number somewhere.
    """
    actions = np.zeros_like(states.token_ids)
    uniforms = np.stack([generator(key, "act", row).random(actions.shape[1]) for row in range(len(actions))])
    with torch.no_grad(), eval_mode(policy):
        for rows in micro_batches(states, FORWARD_TOKENS):
            micro = take_rows(states, rows)
            hidden = state_hidden(policy, micro)
            own = torch.from_numpy(uniforms[rows, : micro.token_ids.shape[1]][micro.action_mask]).to(hidden.device)
            drawn, logprobs = draw(policy, hidden, own, Sampling(temperature=temperature))
            check_law(policy, logprobs)
            chosen = np.zeros_like(micro.token_ids)
            chosen[micro.action_mask] = drawn.numpy(force=True)
            actions[rows, : micro.token_ids.shape[1]] = chosen
    return actions


def label_logprobs(policy: Policy, states: States, batches: Sequence[IntArray]) -> FloatArray:
    """Log-probability of every state's label under `policy` as it is, without gradient.

    Args:
        policy: who scores.
        states: where.
        batches: its rows in micro-batches.

    Returns:
        float32 [batch, time], nats; nan outside the action mask.
    """
    found = np.full(states.token_ids.shape, np.nan, dtype=np.float32)
    with torch.no_grad():
        for rows in batches:
            micro = take_rows(states, rows)
            labels = batch_tensors(micro, device=policy.device).labels
            logprobs = action_logprobs(policy, state_hidden(policy, micro), labels, states.temperature)
            part = np.full(micro.token_ids.shape, np.nan, dtype=np.float32)
            part[micro.action_mask] = logprobs.numpy(force=True)
            found[rows, : micro.token_ids.shape[1]] = part
    return found
