import ast
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_arm import make_setup, make_source, supervised_terms
from trl_source import tree, trl_function

from statewise.batch import Trajectory, collate
from statewise.loop.reduce import state_weights
from statewise.loop.update import Updater
from statewise.policy.score import micro_batches
from statewise.signals.preference import Preference
from statewise.signals.signal import Supervision
from statewise.types import SignalInputs


def rows(prompt_indices, lengths, rewards=None):
    rewards = rewards or [math.nan] * len(lengths)
    return collate([
        Trajectory(tuple(range(2 + n)), 2, index, "rollout", "learner", (-1.0,) * n, reward=reward)
        for index, n, reward in zip(prompt_indices, lengths, rewards, strict=True)
    ])  # fmt: skip


def supervision(grade=lambda indices, rows: [float(len(ids)) for ids in rows]):
    return Supervision(None, None, grade, 0)


def inputs_of(policy, base, states):
    mask = states.action_mask
    row_of_state = np.nonzero(mask)[0]
    return SignalInputs(
        policy_logprobs=policy[torch.from_numpy(mask)], base_logprobs=base[torch.from_numpy(mask)],
        advantages=torch.from_numpy(states.advantages[row_of_state]), rows=torch.from_numpy(row_of_state),
        pairs=torch.from_numpy(states.pair_ids[row_of_state]),
    )  # fmt: skip


def test_a_pair_is_the_best_and_the_worst_answer_to_a_prompt():
    states = rows([7, 7, 3, 7, 3], [2, 5, 4, 3, 4])  # rewards are lengths; prompt 3 has two equal ones
    paired = Preference().supervise(states, supervision())
    assert paired.prompt_indices.tolist() == [7, 7]
    assert (paired.lengths - 2).tolist() == [5, 2]
    assert paired.advantages.tolist() == [1, -1]
    assert paired.pair_ids.tolist() == [0, 0]


def test_given_rewards_make_the_pair_without_asking_the_grader():
    def grade(index, ids):
        raise AssertionError("the pair is given")

    paired = Preference().supervise(rows([1, 1], [2, 3], [0.0, 1.0]), supervision(grade))
    assert (paired.lengths - 2).tolist() == [3, 2]


def test_answers_that_cannot_be_told_apart_train_nothing():
    paired = Preference().supervise(rows([1, 1, 2], [3, 3, 4]), supervision())
    assert paired.num_states == 0


def test_dpo_of_a_pair_equals_the_value_by_hand():
    # Sums of log π - log base: better .2 + .2 = .4, worse -.1. h = .5, β = .1: -ln σ(.05) = ln(1 + e^-.05) = .66846.
    states = Preference().supervise(rows([1, 1], [2, 1], [1.0, 0.0]), supervision())
    base = torch.zeros(states.action_mask.shape)
    policy = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.0, 0.0, -0.1, 0.0]])
    assert Preference(beta=0.1).loss(inputs_of(policy, base, states)).tolist() == pytest.approx([0.66846] * 3, abs=1e-5)
    # IPO takes means: .2 - (-.1) = .3; (.3 - 1/(2 · .5))² = .49.
    ipo = Preference(loss_type="ipo", beta=0.5).loss(inputs_of(policy, base, states))
    assert ipo.tolist() == pytest.approx([0.49] * 3, abs=1e-5)


@pytest.mark.parametrize(("loss_type", "beta"), [("dpo", 0.1), ("dpo", 0.7), ("ipo", 0.1), ("ipo", 0.5)])
def test_loss_and_gradient_of_an_update_equal_those_of_trl(loss_type, beta):
    states = rows([1, 1, 4, 4, 9, 9], [5, 2, 3, 3, 1, 6], [1.0, 0.0] * 3)
    paired = Preference().supervise(states, supervision())
    generator = torch.Generator().manual_seed(0)
    policy = (-3 * torch.rand(paired.token_ids.shape, generator=generator)).requires_grad_(True)
    base = -3 * torch.rand(paired.token_ids.shape, generator=generator)
    losses = Preference(loss_type=loss_type, beta=beta).loss(inputs_of(policy, base, paired))
    weights = torch.from_numpy(state_weights(paired, "trajectories")[paired.action_mask])
    ours = (losses * weights).sum()

    mask = torch.from_numpy(paired.action_mask).float()
    sums = ((policy - base) * mask).sum(1)
    theirs = trl_preference_loss(loss_type, beta, sums[::2], sums[1::2], torch.cat([mask[::2], mask[1::2]]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    one, other = (torch.autograd.grad(loss, policy)[0] for loss in (ours, theirs))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def trl_preference_loss(loss_type, beta, better, worse, completion_mask):
    """The lines of TRL 1.16's DPOTrainer._compute_loss that turn log-ratios into the loss of a batch.

    `completion_mask`: all better answers, then all worse ones, as TRL lays them.
    """
    function = next(
        node for node in ast.walk(tree("trainer/dpo_trainer.py"))
        if isinstance(node, ast.FunctionDef) and node.name == "_compute_loss"
    )  # fmt: skip
    wanted = {"dpo": "'sigmoid'", "ipo": "'ipo'"}[loss_type]
    branch = next(
        node for node in ast.walk(function)
        if isinstance(node, ast.If) and ast.unparse(node.test) == f"loss_type == {wanted}"
    )  # fmt: skip

    class Trainer:
        pass

    trainer = Trainer()
    trainer.beta, trainer.label_smoothing = beta, 0.0
    names = {
        "self": trainer, "torch": torch, "F": F, "delta_score": better - worse, "chosen_scores": better,
        "rejected_scores": worse, "chosen_logratios": better, "rejected_logratios": worse,
        "completion_mask": completion_mask,
    }  # fmt: skip
    exec(compile(ast.Module(branch.body, []), "trl", "exec"), names)
    return names["per_sequence_loss"].mean()


def test_a_pair_stays_in_one_micro_batch_whatever_its_size():
    states = Preference().supervise(rows([1, 1, 2, 2, 3, 3], [9, 1, 4, 2, 7, 3], [1.0, 0.0] * 3), supervision())
    for batch in micro_batches(states, max_tokens=12):
        assert len(batch) % 2 == 0
        assert all(count == 2 for count in np.unique(states.pair_ids[batch], return_counts=True)[1])


def test_micro_batches_change_an_update_by_rounding_only(toy_policy):
    gradients = []
    for max_tokens in (1, 8192):
        source = make_source(num_prompts=4, samples_per_prompt=3)
        setup = make_setup(toy_policy, source, Preference(), max_tokens=max_tokens, reduction="trajectories")
        result = Updater(setup).apply(supervised_terms(setup), 0)
        gradients.append(({name: p.grad for name, p in setup.trainable.items()}, result.num_micro_batches))
    assert gradients[0][1] > gradients[1][1] == 1
    for name, value in gradients[0][0].items():
        torch.testing.assert_close(value, gradients[1][0][name], atol=1e-5, rtol=1e-4)


def test_at_the_base_model_dpo_is_ln_2(toy_policy):
    setup = make_setup(toy_policy, make_source(num_prompts=3, samples_per_prompt=3), Preference())
    setup.writers.policies["base"] = replace(setup.learner, name="base")
    assert Updater(setup).apply(supervised_terms(setup), 0).loss == pytest.approx(math.log(2), abs=1e-5)


def test_the_reference_code_of_trl_is_where_it_is_looked_for():
    assert trl_function("trainer/dpo_trainer.py", "_compute_loss") is not None
