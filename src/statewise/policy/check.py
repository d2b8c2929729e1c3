"""What sampling and scoring rely on, asked of a model when it is loaded: one law, whoever asks for it.

What config.json tells is held against lists of what is understood. What it cannot tell is tried out: a few tokens in
rows of unequal lengths must have the same law in the rollout engine, in the scoring pass, and in transformers' own
forward pass over each row alone. An architecture that nobody thought of is thus refused, not trained wrongly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from statewise.batch import States, Trajectory, collate
from statewise.errors import DivergedError, UsageError
from statewise.policy.load import Policy
from statewise.policy.rope import STEADY, SWITCHING, rope_kinds
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import action_logprobs, batch_tensors, state_hidden
from statewise.types import Rollout

CACHEABLE_LAYERS = {"full_attention", "sliding_attention"}
# What a forward pass raises that takes other arguments, or returns something else, than most do.
CALL_ERRORS = (TypeError, AttributeError, LookupError, ValueError, RuntimeError)
PROBE_LENGTHS, PROBE_TOKENS = (6, 2), 3  # of the prompts, and of what is written after each
# Mean difference of log-probabilities, nats. Another shape of the batch rounds otherwise; a wrong mask or position is
# off by a multiple of these.
TOLERANCES = {torch.float32: 0.01}
HALF_TOLERANCE = 0.1


def check_config(policy: Policy, folder: Path) -> None:
    """Refuse a model by what can be known of it without its weights.

    Raises:
        UsageError: layers, rope or tokenizer that are not understood, or no context length; says which.
    """
    config, what = policy.model.config.get_text_config(), f"model folder {folder}"
    layers = set(getattr(config, "layer_types", None) or ())
    if layers - CACHEABLE_LAYERS:
        raise UsageError(
            f"{what}: layers of kind {', '.join(sorted(layers - CACHEABLE_LAYERS))} cannot be sampled; "
            f"use a model whose layers are {' or '.join(sorted(CACHEABLE_LAYERS))}"
        )
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        raise UsageError(f"{what}: config.json has no max_position_embeddings (the context length); add it")
    strange = rope_kinds(config) - STEADY - SWITCHING
    if strange:
        raise UsageError(
            f"{what}: rope of kind {', '.join(sorted(strange))} (config.json, rope_parameters) is not understood; "
            f"use a model whose rope is one of {', '.join(sorted(STEADY | SWITCHING))}"
        )
    num_logits = int(policy.model.get_output_embeddings().weight.shape[0])
    if policy.vocab_size > num_logits:
        raise UsageError(
            f"{what}: the tokenizer has {policy.vocab_size} tokens, the model logits for {num_logits}; "
            "use the tokenizer that the model was trained with"
        )


def check_model(policy: Policy, folder: Path) -> None:
    """Refuse a model that sampling or scoring would get wrong without a sign of it.

    Raises:
        UsageError: what `check_config` refuses, a head that is not all, or laws that differ; says which.
        DivergedError: its logits are not numbers.
    """
    check_config(policy, folder)
    what = f"model folder {folder}"
    try:
        with torch.no_grad():
            _check_head(policy, what)
            _check_laws(policy, what)
    except CALL_ERRORS as error:
        raise UsageError(
            f"{what}: {type(policy.model).__name__} cannot be called as decoders of transformers are "
            f"({type(error).__name__}: {error}); use another model family"
        ) from error


def check_packing(policy: Policy) -> None:
    """Refuse a model that does not keep texts apart which are laid end to end.

    Raises:
        UsageError: a packed text has another law than a padded one.
    """
    _, states = _probe(policy)
    labels = batch_tensors(states, device=policy.device).labels
    with torch.no_grad():
        padded, packed = (
            action_logprobs(policy, state_hidden(policy, states, is_packed=is_packed), labels, 1.0)
            for is_packed in (False, True)
        )
    if not _is_small(policy, packed - padded):
        raise UsageError(
            f"{type(policy.model).__name__} does not keep packed texts apart "
            f"({(packed - padded).abs().mean().item():.2g} nats off); set update.packing = false"
        )


def _check_head(policy: Policy, what: str) -> None:
    """Some families scale or cap their logits after the head; scoring applies the head alone."""
    probe = torch.full((1, 2), policy.end_token_id, device=policy.device)
    logits = policy.model(input_ids=probe, use_cache=False).logits
    if bool(logits.isnan().any()):
        raise DivergedError(f"{what}: its logits are not numbers; the weights are damaged, or training diverged")
    hidden = policy.model.get_decoder()(input_ids=probe, use_cache=False).last_hidden_state
    if not torch.allclose(policy.model.get_output_embeddings()(hidden), logits, rtol=1e-3, atol=1e-3):
        raise UsageError(
            f"{what}: {type(policy.model).__name__} changes its logits after the output head (scaling or "
            "soft-capping), which scoring does not reproduce; use another model family"
        )


def _check_laws(policy: Policy, what: str) -> None:
    rollouts, states = _probe(policy)
    alone = [_logprobs_alone(policy, rollout) for rollout in rollouts]
    begun = replace(rollouts[0], token_ids=rollouts[0].token_ids[:1])
    tensors = batch_tensors(states, device=policy.device)
    scored = action_logprobs(policy, state_hidden(policy, states), tensors.labels, 1.0)
    found = {
        "the law of a token depends on the tokens that follow it": _logprobs_alone(policy, begun) - alone[0][:1],
        "a row of a batch has another law than alone": scored - torch.cat(alone),
        "a rollout beside others, with cached keys and values, has another law than one forward pass over its text": (
            tensors.inputs.required("behavior_logprobs") - torch.cat(alone)
        ),
    }
    for fault, difference in found.items():
        if not _is_small(policy, difference):
            raise UsageError(
                f"{what}: {type(policy.model).__name__} cannot be sampled and scored alike: {fault} "
                f"({difference.abs().mean().item():.2g} nats); use another model family"
            )


def _probe(policy: Policy) -> tuple[list[Rollout], States]:
    """Rollouts of unequal prompts, and their states; no token ends them, so that every row goes through the cache."""
    endless = replace(policy, end_token_id=-1, other_end_ids=())
    spread = [int(at) for at in torch.linspace(0, policy.vocab_size - 1, sum(PROBE_LENGTHS) + 2)[1:-1]]
    room = max(1, policy.context_length - PROBE_TOKENS)
    long, short = spread[: PROBE_LENGTHS[0]][:room], spread[PROBE_LENGTHS[0] :][:room]
    # The short prompt twice, with other random numbers: packed, the two share a row.
    prompts = [long, short, short]
    rollouts = sample(endless, prompts, range(len(prompts)), Sampling(max_new_tokens=PROBE_TOKENS))
    rows = [
        Trajectory((*r.prompt_ids, *r.token_ids), len(r.prompt_ids), 0, "rollout", policy.name, r.logprobs)
        for r in rollouts
    ]
    return rollouts, collate(rows)


def _logprobs_alone(policy: Policy, rollout: Rollout) -> Tensor:
    """Of each token of a rollout, by transformers' forward pass over the text alone: [tokens] float32, nats."""
    ids = torch.tensor([rollout.prompt_ids + rollout.token_ids], device=policy.device)
    logits: Tensor = policy.model(input_ids=ids, use_cache=False).logits[0, :-1, : policy.vocab_size]
    return logits.float().log_softmax(-1).gather(-1, ids[0, 1:, None])[len(rollout.prompt_ids) - 1 :, 0]


def _is_small(policy: Policy, difference: Tensor) -> bool:
    return difference.abs().mean().item() <= TOLERANCES.get(policy.model.dtype, HALF_TOLERANCE)
