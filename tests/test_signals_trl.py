"""Signals and reduction against TRL 1.16.

TRL's functions are compiled out of its source files as they stand there: importing its trainers takes half a minute.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.loss.loss_utils import ForCausalLMLoss
from trl_source import run, tree, trl_function

from statewise.batch import Trajectory, collate
from statewise.locality.kl_to_base import KLToBase
from statewise.loop.reduce import state_weights
from statewise.signals import JSD, ForwardKL, Imitate, ReverseKL
from statewise.signals.reward import Reward
from statewise.types import SignalInputs

CLIP = 0.2
PROMPT_LENGTH = 2


def trl_advantages(rewards, group_size, scale_rewards):
    """The lines of GRPOTrainer that turn rewards of one reward function into advantages."""
    condition = "self.multi_objective_aggregation == 'sum_then_normalize'"
    block = next(n for n in ast.walk(tree("trainer/grpo_trainer.py"))
                 if isinstance(n, ast.If) and ast.unparse(n.test) == condition)  # fmt: skip
    trainer = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize", scale_rewards=scale_rewards, reward_weights=torch.ones(1)
    )
    rewards = torch.from_numpy(rewards)[:, None]
    names = run(
        [block], torch=torch, self=trainer, device="cpu", num_generations=group_size, rewards_per_func=rewards,
        unscorable_mask=rewards.isnan().all(dim=1), nanstd=trl_function("trainer/utils.py", "nanstd"),
    )  # fmt: skip
    return torch.nan_to_num(names["advantages"], nan=0.0).numpy()


def trl_policy_loss(loss_type, logprobs, behavior, advantages, mask, *, max_completion_length=None, beta=0.0, **given):
    """GRPOTrainer._compute_loss on given log-probabilities [batch, completion]; `given` are further inputs of it."""
    trainer = SimpleNamespace(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=beta,
        use_vllm="importance_sampling_ratio" in given, vllm_importance_sampling_correction=True,
        importance_sampling_level="token", loss_type=loss_type, epsilon_low=CLIP, epsilon_high=CLIP,
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=False),
        max_completion_length=max_completion_length,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True), _entropy_bonus_enabled=False, _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros_like(logprobs), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(len(mask), PROMPT_LENGTH, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), PROMPT_LENGTH, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long), "completion_mask": mask.long(),
        "advantages": advantages, "old_per_token_logps": behavior, "num_items_in_batch": mask.sum(), **given,
    }  # fmt: skip
    compute = trl_function("trainer/grpo_trainer.py", "_compute_loss", nanmin=torch.min, nanmax=torch.max)
    return compute(trainer, trainer.model, inputs)


def trl_importance_ratio(old, behavior, mask, mode, cap):
    """The lines of GRPOTrainer that weigh what an engine of another law wrote, [batch, completion] or [batch, 1]."""
    condition = "self.use_vllm and self.vllm_importance_sampling_correction"
    block = next(n for n in ast.walk(tree("trainer/grpo_trainer.py"))
                 if isinstance(n, ast.If) and ast.unparse(n.test) == condition
                 and "logps_diff" in ast.unparse(n))  # fmt: skip
    trainer = SimpleNamespace(
        use_vllm=True, vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=f"{mode}_truncate",
        vllm_importance_sampling_clip_min=None, vllm_importance_sampling_clip_max=cap, tools=None,
    )  # fmt: skip
    names = run(
        [block], torch=torch, self=trainer, old_per_token_logps=old, sampling_per_token_logps=behavior,
        completion_mask=mask.long(), tool_mask=None,
    )  # fmt: skip
    return names["vllm_importance_sampling_ratio"]


def unequal_states(response_lengths=(5, 1, 3, 7), seed=0):
    """Rows of unequal length with `PROMPT_LENGTH` prompt tokens each."""
    rng = np.random.default_rng(seed)
    return collate(
        [
            Trajectory(tuple(rng.integers(0, 11, PROMPT_LENGTH + n).tolist()), PROMPT_LENGTH, i, "rollout", "learner")
            for i, n in enumerate(response_lengths)
        ]
    )


def reduced(losses, states, reduction):
    return (losses * torch.from_numpy(state_weights(states, reduction)[states.action_mask])).sum()


def test_the_reference_is_the_pinned_trl():
    assert version("trl").startswith("1.16.")


@pytest.mark.parametrize(
    ("signal", "beta"),
    [(ForwardKL(), 0), (ReverseKL(), 1), *[(JSD(beta=beta), beta) for beta in (0.01, 0.1, 0.5, 0.9, 0.99)]],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_divergences_and_their_gradients_equal_those_of_trl(signal, beta, temperature):
    # TRL: beta = 0 is KL(teacher ‖ student), forward; beta = 1 is KL(student ‖ teacher), reverse.
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 6, 17, generator=generator) for _ in range(2))
    labels = torch.zeros(2, 6, dtype=torch.long)
    labels[0, :2] = labels[1, 4:] = -100
    student.requires_grad_(True)
    jsd_loss = trl_function("experimental/gkd/gkd_trainer.py", "generalized_jsd_loss")
    expected = jsd_loss(student, teacher, labels=labels, beta=beta, temperature=temperature)

    mask = labels != -100
    inputs = SignalInputs(policy_logits=student[mask] / temperature, teacher_logits=teacher[mask] / temperature)
    losses = signal.loss(inputs)
    assert losses.shape == (8,)  # 2 x 6 positions less 2 x 2 masked ones
    torch.testing.assert_close(losses.mean(), expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(loss, student)[0] for loss in (losses.mean(), expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("reduction", "loss_type"), [("trajectories", "grpo"), ("states", "bnpo"), ("states", "dapo")])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_reward_and_its_gradient_equal_trls_grpo(reduction, loss_type, spread):
    states = unequal_states()
    generator = torch.Generator().manual_seed(1)
    mask = torch.from_numpy(states.action_mask)[:, PROMPT_LENGTH:]
    logprobs = (-3 * torch.rand(mask.shape, generator=generator)).requires_grad_(True)
    # At spread 0 the ratio is 1: the one update of a batch. At 0.5 about half of the ratios leave [0.8, 1.2].
    behavior = logprobs.detach() + spread * torch.randn(mask.shape, generator=generator)
    advantages = torch.tensor([1.5, -0.7, 0.2, -1.0])
    expected = trl_policy_loss(loss_type, logprobs, behavior, advantages, mask)

    losses = Reward(clip=CLIP).loss(
        SignalInputs(
            policy_logprobs=logprobs[mask],
            old_logprobs=behavior[mask],
            advantages=advantages[:, None].expand(mask.shape)[mask],
        )
    )
    loss = reduced(losses, states, reduction)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(value, logprobs)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (ours[mask] == 0).any() == (spread > 0)  # some are clipped


@pytest.mark.parametrize("mode", ["token", "sequence"])
def test_truncated_importance_weights_equal_trls(mode):
    states, advantages, cap = unequal_states(), torch.tensor([1.5, -0.7, 0.2, -1.0]), 1.3
    mask = torch.from_numpy(states.action_mask)[:, PROMPT_LENGTH:]
    generator = torch.Generator().manual_seed(5)
    logprobs = (-3 * torch.rand(mask.shape, generator=generator)).requires_grad_(True)
    old, behavior = (logprobs.detach() + 0.3 * torch.randn(mask.shape, generator=generator) for _ in range(2))
    ratio = trl_importance_ratio(old, behavior, mask, mode, cap)
    expected = trl_policy_loss("grpo", logprobs, old, advantages, mask, importance_sampling_ratio=ratio)
    losses = Reward(clip=CLIP, importance=mode, importance_cap=cap).loss(
        SignalInputs(
            policy_logprobs=logprobs[mask], old_logprobs=old[mask], behavior_logprobs=behavior[mask],
            advantages=advantages[:, None].expand(mask.shape)[mask], rows=mask.nonzero()[:, 0],
        )
    )  # fmt: skip
    loss = reduced(losses, states, "trajectories")
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(value, logprobs)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert ratio.max() == cap  # some are truncated


def test_kl_to_base_by_k3_equals_trls_penalty():
    states, advantages, beta = unequal_states(), torch.tensor([1.5, -0.7, 0.2, -1.0]), 0.3
    mask = torch.from_numpy(states.action_mask)[:, PROMPT_LENGTH:]
    generator = torch.Generator().manual_seed(6)
    logprobs = (-3 * torch.rand(mask.shape, generator=generator)).requires_grad_(True)
    base = logprobs.detach() + 0.5 * torch.randn(mask.shape, generator=generator)
    with_kl, without = (
        trl_policy_loss("grpo", logprobs, logprobs.detach(), advantages, mask, beta=one, ref_per_token_logps=base)
        for one in (beta, 0.0)
    )
    inputs = SignalInputs(policy_logprobs=logprobs[mask], base_logprobs=base[mask])
    penalty = beta * reduced(KLToBase(estimator="k3").loss(inputs), states, "trajectories")
    torch.testing.assert_close(penalty, with_kl - without, atol=1e-6, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(value, logprobs)[0] for value in (penalty, with_kl - without))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("advantage", "scale_rewards"), [("grpo", "group"), ("dr_grpo", "none")])
def test_advantages_equal_trls(advantage, scale_rewards):
    rewards = np.random.default_rng(0).choice([0.0, 0.3, 1.0], 24).astype(np.float32)
    rewards[:4] = 1.0  # a group without spread
    rewards[5] = rewards[9] = rewards[10] = np.nan  # answers that could not be scored
    rewards[12:16] = np.nan  # a group of which none could
    groups = np.repeat(np.arange(6), 4)
    ours = Reward(advantage=advantage).advantages(rewards, groups)
    np.testing.assert_allclose(ours, trl_advantages(rewards, 4, scale_rewards), atol=1e-5, rtol=1e-5)
    assert (ours[:4] == 0).all() and (ours[12:16] == 0).all() and ours[5] == 0


def test_imitate_over_unequal_rows_is_the_cross_entropy_of_sft():
    # TRL's SFT is `per_token_loss.sum() / num_tokens`: transformers' causal loss over labels other than -100.
    states = unequal_states()
    logits = torch.randn(*states.token_ids.shape, 11, generator=torch.Generator().manual_seed(2))
    token_ids = torch.from_numpy(states.token_ids)
    mask = torch.from_numpy(states.action_mask)
    labels = token_ids.where(mask, -100)

    before = torch.roll(logits, 1, dims=1)  # the law of token t is at position t - 1
    logprobs = before.log_softmax(-1).gather(-1, token_ids[..., None]).squeeze(-1)[mask]
    loss = reduced(Imitate().loss(SignalInputs(policy_logprobs=logprobs)), states, "states")
    torch.testing.assert_close(loss, ForCausalLMLoss(logits, labels, 11), atol=1e-6, rtol=1e-5)
    plain = F.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1), ignore_index=-100)
    torch.testing.assert_close(loss, plain, atol=1e-6, rtol=1e-5)


def trl_leave_one_out(rewards, num_generations):
    """The lines of RLOOTrainer that turn rewards into advantages, without normalization."""
    function = next(
        node for node in ast.walk(tree("trainer/rloo_trainer.py"))
        if isinstance(node, ast.FunctionDef) and "scorable_counts" in ast.unparse(node) and node.name.startswith("_")
    )  # fmt: skip
    block = next(
        node for node in ast.walk(function)
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "num_generations > 1"
        and "baselines" in ast.unparse(node)
    )  # fmt: skip
    rewards = torch.from_numpy(rewards)
    grouped = rewards.view(-1, num_generations)
    names = run(
        [block], torch=torch, num_generations=num_generations, rewards=rewards, grouped_rewards=grouped,
        grouped_sum=torch.nansum(grouped, dim=1, keepdim=True),
        scorable_counts=(~torch.isnan(grouped)).sum(dim=1, keepdim=True),
    )  # fmt: skip
    return torch.nan_to_num(names["advantages"], nan=0.0).numpy()


def test_leave_one_out_advantages_equal_trls():
    rewards = np.random.default_rng(0).choice([0.0, 0.3, 1.0], 24).astype(np.float32)
    rewards[5] = rewards[9] = rewards[10] = np.nan
    rewards[12:16] = np.nan
    ours = Reward(advantage="rloo").advantages(rewards, np.repeat(np.arange(6), 4))
    np.testing.assert_allclose(ours, trl_leave_one_out(rewards, 4), atol=1e-5, rtol=1e-5)


def test_rloo_has_the_gradient_of_its_sequence_loss_on_the_learners_own_states():
    # RLOOTrainer's loss is the mean over trajectories of -A exp(Σ log π - Σ log π_old): at ratio 1 its gradient is that
    # of the sum over a trajectory, which is reduction `constant` with one token.
    states, advantages = unequal_states(), torch.tensor([1.5, -0.7, 0.2, -1.0])
    mask = torch.from_numpy(states.action_mask)[:, PROMPT_LENGTH:]
    logprobs = (-3 * torch.rand(mask.shape, generator=torch.Generator().manual_seed(3))).requires_grad_(True)
    old = logprobs.detach()
    theirs = -(advantages * (((logprobs - old) * mask).sum(1)).exp()).mean()
    losses = Reward(advantage="rloo", clip=0.0).loss(
        SignalInputs(
            policy_logprobs=logprobs[mask],
            old_logprobs=old[mask],
            advantages=advantages[:, None].expand(mask.shape)[mask],
        )
    )
    weights = torch.from_numpy(state_weights(states, "constant", 1)[states.action_mask])
    one, other = (torch.autograd.grad(loss, logprobs)[0] for loss in ((losses * weights).sum(), theirs))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_dr_grpo_equals_trls_with_a_constant_length():
    states, advantages = unequal_states(), torch.tensor([0.5, -0.5, 0.25, -0.25])
    mask = torch.from_numpy(states.action_mask)[:, PROMPT_LENGTH:]
    generator = torch.Generator().manual_seed(4)
    logprobs = (-3 * torch.rand(mask.shape, generator=generator)).requires_grad_(True)
    behavior = logprobs.detach() + 0.3 * torch.randn(mask.shape, generator=generator)
    expected = trl_policy_loss("dr_grpo", logprobs, behavior, advantages, mask, max_completion_length=16)
    losses = Reward(advantage="dr_grpo", clip=CLIP).loss(
        SignalInputs(
            policy_logprobs=logprobs[mask], old_logprobs=behavior[mask],
            advantages=advantages[:, None].expand(mask.shape)[mask],
        )
    )  # fmt: skip
    weights = torch.from_numpy(state_weights(states, "constant", 16)[states.action_mask])
    loss = (losses * weights).sum()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(value, logprobs)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
