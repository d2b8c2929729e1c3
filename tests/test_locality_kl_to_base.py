import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from statewise.config.refusals import read_kind
from statewise.errors import UsageError
from statewise.locality import LOCALITIES, Locality
from statewise.locality.kl_to_base import KLToBase
from statewise.types import SignalInputs

K3 = KLToBase(estimator="k3")


def laws(policy, base):
    """One state with the given next-token laws."""
    return SignalInputs(
        policy_logits=torch.tensor([policy]).log().requires_grad_(True), base_logits=torch.tensor([base]).log()
    )


def random_logits(num_states=7, vocab=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(num_states, vocab, generator=generator, dtype=torch.float64) for _ in range(2)]


def k3_of_every_action(policy, base):
    """k3 [states, vocab]: the value where each token of the vocabulary in turn is the action."""
    states = SignalInputs(
        policy_logprobs=policy.log_softmax(-1).flatten(), base_logprobs=base.log_softmax(-1).flatten()
    )
    return K3.loss(states).view_as(policy)


def test_locality_is_imported_without_torch():
    code = "import statewise.locality, sys; assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_term_says_its_kind_and_what_it_needs():
    assert all(term().kind == kind for kind, term in LOCALITIES.items())
    assert {kind for kind, term in LOCALITIES.items() if term().needs_base} == {"kl_to_base"}
    assert {kind for kind, term in LOCALITIES.items() if term().memory} == {"ewc", "gem", "a_gem"}


@pytest.mark.parametrize("kind", sorted(LOCALITIES))
def test_every_term_has_a_default_for_every_field(kind):
    assert read_kind(Locality, {"kind": kind}, "study.toml") == LOCALITIES[kind]()


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "kl_to_base", "coefficient": 0.0},
        {"kind": "kl_to_base", "target": 0.0},
        {"kind": "kl_to_base", "horizon": 0},
        {"kind": "kl_to_base", "estimator": "k2"},
        {"kind": "ewc", "strength": 0.0},
        {"kind": "ewc", "num_prompts": 0},
        {"kind": "gem", "margin": -0.1},
        {"kind": "a_gem", "max_new_tokens": 0},
        {"kind": "a_gem", "margin": 0.5},
        {"kind": "ema", "decay": 1.0},
    ],
)
def test_a_value_outside_its_range_is_refused(table):
    wrong = next(key for key in table if key != "kind")
    with pytest.raises(UsageError, match=rf"study\.toml: ({wrong}: |unknown key: '{wrong}')"):
        read_kind(Locality, table, "study.toml")


def test_the_exact_kl_has_the_stated_direction():
    # p = (1/2, 1/2), q = (9/10, 1/10): 1/2 ln(5/9) + 1/2 ln 5 = 0.51083; the other direction gives 0.36806.
    assert KLToBase().loss(laws([0.5, 0.5], [0.9, 0.1])).item() == pytest.approx(0.51083, abs=1e-5)


def test_k3_equals_the_value_by_hand():
    # r = q/p: .9/.5 = 1.8 and .1/.5 = 0.2; 1.8 - 1 - ln 1.8 = 0.21221, 0.2 - 1 - ln 0.2 = 0.80944; mean 0.51083.
    inputs = SignalInputs(policy_logprobs=torch.tensor([0.5, 0.5]).log(), base_logprobs=torch.tensor([0.9, 0.1]).log())
    values = K3.loss(inputs)
    assert values.tolist() == pytest.approx([0.21221, 0.80944], abs=1e-5)
    assert values.mean().item() == pytest.approx(0.51083, abs=1e-5)


def test_the_exact_kl_equals_that_of_torch():
    policy, base = random_logits()
    expected = kl_divergence(Categorical(logits=policy), Categorical(logits=base))
    torch.testing.assert_close(KLToBase().loss(SignalInputs(policy_logits=policy, base_logits=base)), expected)


def test_the_expectation_of_k3_over_the_vocabulary_is_the_exact_kl():
    policy, base = random_logits()
    expectation = (policy.softmax(-1) * k3_of_every_action(policy, base)).sum(-1)
    torch.testing.assert_close(expectation, KLToBase().loss(SignalInputs(policy_logits=policy, base_logits=base)))


def test_the_expected_gradient_of_k3_is_that_of_the_forward_kl():
    policy, base = random_logits()
    policy.requires_grad_(True)
    expected_loss = (policy.softmax(-1).detach() * k3_of_every_action(policy, base)).sum()
    forward = kl_divergence(Categorical(logits=base), Categorical(logits=policy)).sum()
    reverse = KLToBase().loss(SignalInputs(policy_logits=policy, base_logits=base)).sum()
    of_k3, of_forward, of_reverse = (torch.autograd.grad(x, policy)[0] for x in (expected_loss, forward, reverse))
    torch.testing.assert_close(of_k3, of_forward)
    assert (of_k3 - of_reverse).abs().max() > 0.1


def test_value_and_gradient_are_zero_where_the_policy_is_base():
    law = [0.2, 0.3, 0.5]
    exact = laws(law, law)
    actions = torch.tensor([-0.5, -3.0]).requires_grad_(True)
    for loss, leaf in (
        (KLToBase().loss(exact), exact.policy_logits),
        (K3.loss(SignalInputs(policy_logprobs=actions, base_logprobs=actions.detach())), actions),
    ):
        assert loss.abs().max().item() == pytest.approx(0, abs=1e-7)
        assert torch.autograd.grad(loss.sum(), leaf)[0].abs().max().item() == pytest.approx(0, abs=1e-7)


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=8))
def test_k3_is_never_negative(pairs):
    policy, base = torch.tensor(pairs).unbind(1)
    assert (K3.loss(SignalInputs(policy_logprobs=policy, base_logprobs=base)) >= 0).all()


def test_k3_is_the_penalty_of_trls_grpo():
    # The assignment as it stands in GRPOTrainer._compute_loss.
    source = (Path(find_spec("trl").origin).parent / "trainer/grpo_trainer.py").read_text(encoding="utf-8")
    assignment = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and ast.unparse(node).startswith("per_token_kl = torch.exp(")
    )
    policy, base = (x.log_softmax(-1)[:, 0] for x in random_logits())
    names = {"torch": torch, "per_token_logps": policy, "ref_per_token_logps": base}
    exec(compile(ast.Module([assignment], []), "trl", "exec"), names)
    torch.testing.assert_close(K3.loss(SignalInputs(policy_logprobs=policy, base_logprobs=base)), names["per_token_kl"])


def test_only_the_exact_estimator_compares_laws():
    assert KLToBase().needs == {"policy_logits", "base_logits"}
    assert K3.needs == {"policy_logprobs", "base_logprobs"}


def test_a_missing_input_is_named():
    with pytest.raises(LookupError, match="base_logits"):
        KLToBase().loss(SignalInputs(policy_logits=torch.zeros(1, 2)))
    with pytest.raises(LookupError, match="base_logprobs"):
        K3.loss(SignalInputs(policy_logprobs=torch.zeros(1)))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (0.05, 0.4),  # on target: e = 0
        (0.055, 0.404),  # e = 0.1: 0.4 (1 + 0.1 / 10)
        (5.0, 0.408),  # e = 99, clipped to 0.2: 0.4 (1 + 0.2 / 10)
        (0.0, 0.392),  # e = -1, clipped to -0.2: 0.4 (1 - 0.2 / 10)
    ],
)
def test_the_coefficient_follows_the_target_by_hand(measured, expected):
    assert KLToBase(target=0.05).next_coefficient(0.4, measured) == pytest.approx(expected)


def test_without_a_target_the_coefficient_stays():
    assert KLToBase().next_coefficient(0.4, 7.0) == 0.4


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_coefficient_settles_where_the_measured_kl_is_the_target(start):
    # A policy whose KL is 0.1 / coefficient has the target 0.05 at coefficient 2, from either side.
    term, coefficient = KLToBase(target=0.05), start
    for _ in range(1000):
        coefficient = term.next_coefficient(coefficient, 0.1 / coefficient)
    assert coefficient == pytest.approx(2, rel=1e-6)
