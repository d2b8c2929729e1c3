import math

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import PADDED_VOCAB
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from statewise.batch import Trajectory, collate
from statewise.errors import OutOfMemoryError, UsageError
from statewise.policy import sampler
from statewise.policy.load import Policy, copy_policy
from statewise.policy.sampler import Sampling, draw, sample
from statewise.policy.score import action_logprobs, batch_tensors, state_hidden
from statewise.policy.texts import decode
from statewise.seeding import derive_key

GREEDY = Sampling(temperature=0.0, max_new_tokens=30)


def random_prompts(num_rows, seed=0, low=1, high=40):
    rng = np.random.default_rng(seed)
    return [tuple(int(t) for t in rng.integers(0, 256, length)) for length in rng.integers(low, high, num_rows)]


def keys_for(num_rows):
    return [derive_key("test", row) for row in range(num_rows)]


@pytest.fixture(scope="module")
def ending_policy(toy_policy):
    """The toy policy with an end-of-text that is drawn about once in 15 tokens."""
    policy = copy_policy(toy_policy, "ending")
    policy.model.lm_head.bias = torch.nn.Parameter(torch.zeros(PADDED_VOCAB))
    policy.model.lm_head.weight.requires_grad_(False).mul_(0.25)
    policy.model.lm_head.bias.requires_grad_(False)[policy.end_token_id] = 3.0
    return policy


def generate(policy, prompt, max_new_tokens):
    """transformers' own greedy continuation of one prompt, padding logits excluded."""
    ids = torch.tensor([prompt])
    output = policy.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=policy.end_token_id,
        pad_token_id=policy.end_token_id,
        suppress_tokens=list(range(257, PADDED_VOCAB)),
    )
    return tuple(output[0, len(prompt) :].tolist())


def other_family(config_class, model_class, **options):
    def build(toy):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            config = config_class(
                vocab_size=PADDED_VOCAB, initializer_range=0.3, bos_token_id=256, eos_token_id=256, **options
            )
            config._attn_implementation = "sdpa"
            return Policy(model_class(config).eval(), toy.tokenizer, model_class.__name__, 256)

    return build


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip
FAMILIES = {
    "gpt2": other_family(GPT2Config, GPT2LMHeadModel, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "llama": other_family(LlamaConfig, LlamaForCausalLM, **SMALL),
    "qwen3 with a window": other_family(
        Qwen3Config,
        Qwen3ForCausalLM,
        **SMALL,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


def test_greedy_is_the_greedy_of_transformers(toy_policy):
    ending_policy = copy_policy(toy_policy, "ending")
    ending_policy.model.lm_head.weight.requires_grad_(False)[256] *= (
        1.5  # now the arg-max in some states, not in others
    )
    prompts = random_prompts(24)
    prompts += prompts[:8]  # some prompts twice: read once
    rollouts = sample(ending_policy, prompts, keys_for(32), GREEDY)
    assert [r.token_ids for r in rollouts] == [generate(ending_policy, prompt, 30) for prompt in prompts]
    assert [r.prompt_ids for r in rollouts] == prompts
    assert [r.is_finished for r in rollouts] == [r.token_ids[-1] == 256 for r in rollouts]
    assert 4 < sum(r.is_finished for r in rollouts) < 32


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_that_of_transformers_in_other_families(toy_policy, family):
    policy = FAMILIES[family](toy_policy)
    prompts = random_prompts(10)
    rollouts = sample(policy, prompts, keys_for(10), Sampling(temperature=0.0, max_new_tokens=20))
    assert [r.token_ids for r in rollouts] == [generate(policy, prompt, 20) for prompt in prompts]


def test_dropping_rows_leaves_the_others_as_they_are(ending_policy, monkeypatch):
    prompts, results, calls = random_prompts(30), [], []
    take_rows = sampler.BlockCache.take_rows
    monkeypatch.setattr(
        sampler.BlockCache, "take_rows", lambda cache, rows: (calls.append(len(rows)), take_rows(cache, rows))
    )
    for share in (0.0, 0.5, 1.0):  # never, sometimes, at every step in which a row ends
        monkeypatch.setattr(sampler, "COMPACT_BELOW", share)
        calls.clear()
        results.append(sample(ending_policy, prompts, keys_for(30), Sampling(max_new_tokens=60)))
        assert (share == 0.0) == (not calls)
    for other in results[1:]:
        assert [r.token_ids for r in other] == [r.token_ids for r in results[0]]


@pytest.mark.parametrize("prefill_tokens", [1, 60])
def test_prompts_read_in_parts_give_the_same_texts(ending_policy, monkeypatch, prefill_tokens):
    prompts = random_prompts(12) * 2
    whole = sample(ending_policy, prompts, keys_for(24), Sampling())
    monkeypatch.setattr(sampler, "PREFILL_TOKENS", prefill_tokens)
    assert [r.token_ids for r in sample(ending_policy, prompts, keys_for(24), Sampling())] == [
        r.token_ids for r in whole
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_that_scoring_gives(ending_policy, temperature):
    rollouts = sample(ending_policy, random_prompts(20), keys_for(20), Sampling(temperature=temperature))
    states = collate(
        [Trajectory(r.prompt_ids + r.token_ids, len(r.prompt_ids), i, "rollout", "toy", r.logprobs)
         for i, r in enumerate(rollouts)],
        temperature,
    )  # fmt: skip
    tensors = batch_tensors(states)
    with torch.no_grad():
        scored = action_logprobs(ending_policy, state_hidden(ending_policy, states), tensors.labels, temperature)
    torch.testing.assert_close(tensors.inputs.behavior_logprobs, scored, atol=1e-4, rtol=0)


def test_greedy_logprobs_are_those_at_temperature_one(ending_policy):
    (rollout,) = sample(ending_policy, [(1, 2, 3)], [0], Sampling(temperature=0.0, max_new_tokens=1))
    with torch.no_grad():
        law = ending_policy.model(torch.tensor([[1, 2, 3]])).logits[0, -1, :257].log_softmax(-1)
    assert rollout.logprobs[0] == pytest.approx(law.max().item(), abs=1e-5)


def test_a_text_depends_on_its_prompt_and_key_alone(ending_policy):
    prompts, keys = random_prompts(40), keys_for(40)
    texts = [r.token_ids for r in sample(ending_policy, prompts, keys, Sampling())]
    order = np.random.default_rng(0).permutation(40)
    shuffled = sample(ending_policy, [prompts[i] for i in order], [keys[i] for i in order], Sampling())
    assert [r.token_ids for r in shuffled] == [texts[i] for i in order]
    assert [r.token_ids for r in sample(ending_policy, prompts, keys, Sampling(max_rows=3))] == texts
    assert [r.token_ids for r in sample(ending_policy, prompts[:5], keys[:5], Sampling())] == texts[:5]
    cut = sample(ending_policy, prompts, keys, Sampling(max_new_tokens=9))
    assert [r.token_ids for r in cut] == [text[:9] for text in texts]


def test_other_keys_give_other_texts_and_greedy_ignores_keys(ending_policy):
    prompts = [(5, 6, 7)] * 20
    assert (
        len({r.token_ids for r in sample(ending_policy, prompts, keys_for(20), Sampling())}) > 15
    )  # two short texts may be equal
    assert len({r.token_ids for r in sample(ending_policy, prompts, [3] * 20, Sampling())}) == 1
    assert len({r.token_ids for r in sample(ending_policy, prompts, keys_for(20), GREEDY)}) == 1


def law_and_counts(policy, sampling, num_draws=4000):
    """The law of the first token, by softmax alone, and how often each token was drawn."""
    rollouts = sample(policy, [(9, 8, 7)] * num_draws, keys_for(num_draws), sampling)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[9, 8, 7]])).logits[0, -1, :257].double()
    counts = np.bincount([r.token_ids[0] for r in rollouts], minlength=257)
    return (logits / sampling.temperature).softmax(-1).numpy(), counts, rollouts


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_by_the_softmax_at_the_temperature(ending_policy, temperature):
    sampling = Sampling(temperature=temperature, max_new_tokens=1, max_rows=4000)
    law, counts, rollouts = law_and_counts(ending_policy, sampling)
    common = law * 4000 >= 5  # the usual condition of the chi-square test; the rest is one class
    expected, observed = law[common] * 4000, counts[common]
    if not common.all():
        expected, observed = np.append(expected, 4000 - expected.sum()), np.append(observed, 4000 - observed.sum())
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.001
    for rollout in rollouts[:20]:
        assert rollout.logprobs[0] == pytest.approx(math.log(law[rollout.token_ids[0]]), abs=1e-4)


def test_top_p_keeps_the_smallest_set_with_that_probability(ending_policy):
    sampling = Sampling(top_p=0.5, max_new_tokens=1, max_rows=4000)
    law, counts, rollouts = law_and_counts(ending_policy, sampling)
    order = np.argsort(-law)
    kept = order[: int(np.searchsorted(np.cumsum(law[order]), 0.5)) + 1]
    assert set(np.nonzero(counts)[0]) <= set(kept)
    mass = law[kept].sum()
    assert scipy.stats.chisquare(counts[kept], law[kept] / mass * 4000).pvalue > 0.001
    for rollout in rollouts[:20]:
        assert rollout.logprobs[0] == pytest.approx(math.log(law[rollout.token_ids[0]] / mass), abs=1e-4)


def test_the_largest_uniform_never_draws_a_token_outside_top_p(ending_policy):
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    uniforms = torch.full((50,), np.nextafter(1.0, 0.0), dtype=torch.float64)
    with torch.no_grad():
        actions, logprobs = draw(ending_policy, hidden, uniforms, Sampling(top_p=0.01))
        law = ending_policy.model.lm_head(hidden)[:, :257]
    assert torch.equal(actions, law.argmax(-1))
    torch.testing.assert_close(logprobs, torch.zeros(50))  # the only token left has probability 1


def test_a_prompt_that_does_not_fit_is_refused_with_its_place(toy_policy):
    with pytest.raises(UsageError, match=r"prompt 1 has 128 tokens, but 'toy' has a context of 128"):
        sample(toy_policy, [(1,), (2,) * 128], [0, 1], Sampling())


def test_generation_ends_where_the_context_ends(toy_policy):
    prompts = [(1,) * 127, (1,) * 120, (1, 2)]
    rollouts = sample(toy_policy, prompts, [0, 1, 2], Sampling(temperature=0.0, max_new_tokens=20))
    lengths = [len(r.token_ids) for r in rollouts]
    assert lengths[0] == 1
    assert lengths[1] <= 8
    assert [r.token_ids for r in rollouts] == [
        generate(toy_policy, prompt, cap) for prompt, cap in zip(prompts, (1, 8, 20), strict=True)
    ]


def test_an_empty_prompt_and_missing_keys_are_refused(toy_policy):
    with pytest.raises(UsageError, match="prompt 0 is empty"):
        sample(toy_policy, [()], [0], Sampling())
    with pytest.raises(UsageError, match="1 keys for 2 prompts"):
        sample(toy_policy, [(1,), (2,)], [0], Sampling())


def test_no_prompts_give_no_rollouts(toy_policy):
    assert sample(toy_policy, [], [], Sampling()) == []


def first_cut(policy, tokens, stop):
    """The first prefix, one token after another, whose text contains `stop`; the whole if none does."""
    return next((tokens[:n] for n in range(1, len(tokens) + 1) if stop in decode(policy, tokens[:n])), tokens)


@pytest.mark.parametrize("first_check", [1, 8, 1000])
def test_a_stop_string_ends_a_text_whenever_it_is_looked_for(ending_policy, monkeypatch, first_check):
    monkeypatch.setattr(sampler, "FIRST_STOP_CHECK", first_check)
    prompts, keys = random_prompts(40), keys_for(40)
    free = sample(ending_policy, prompts, keys, Sampling())
    # A stop string of two characters that really occurs, inside a text.
    stop = next(
        text[5:7]
        for text in (decode(ending_policy, r.token_ids) for r in free)
        if text[5:7].isascii() and len(text) > 9
    )
    stopped = sample(ending_policy, prompts, keys, Sampling(stop_strings=(stop, "never said")))
    assert [r.token_ids for r in stopped] == [first_cut(ending_policy, r.token_ids, stop) for r in free]
    for rollout, before in zip(stopped, free, strict=True):
        assert len(rollout.logprobs) == len(rollout.token_ids)
        assert rollout.is_finished == (before.is_finished or stop in decode(ending_policy, rollout.token_ids))
    assert any(len(r.token_ids) < len(before.token_ids) for r, before in zip(stopped, free, strict=True))


def test_sampling_leaves_generators_modes_and_gradients_alone(toy_policy):
    policy = copy_policy(toy_policy, "learner")
    policy.model.train()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    sample(policy, random_prompts(4), keys_for(4), Sampling())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert policy.model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"top_p": 0.0}, r"top_p 0\.0 is not in \(0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_rows": 0}, "max_rows 0"),
        ({"stop_strings": ("",)}, "end every text at once"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Sampling(**options)


def short_of_memory(monkeypatch, most_rows):
    """A device that holds `most_rows` rows; returns the numbers of rows that were tried."""
    real, tried = sampler._sample_group, []

    def limited(policy, prompts, keys, sampling):
        tried.append(len(prompts))
        if len(prompts) > most_rows:
            raise torch.OutOfMemoryError("no memory")
        return real(policy, prompts, keys, sampling)

    monkeypatch.setattr(sampler, "_sample_group", limited)
    return tried


def test_rows_that_do_not_fit_the_memory_are_halved_and_the_texts_are_the_same(ending_policy, monkeypatch):
    prompts, keys = random_prompts(11), keys_for(11)
    whole = sample(ending_policy, prompts, keys, Sampling())
    tried = short_of_memory(monkeypatch, 3)
    assert [r.token_ids for r in sample(ending_policy, prompts, keys, Sampling())] == [r.token_ids for r in whole]
    assert tried == [11, 5, 2, 2, 2, 2, 2, 1]


def test_a_single_row_that_does_not_fit_the_memory_is_told(ending_policy, monkeypatch):
    short_of_memory(monkeypatch, 0)
    with pytest.raises(OutOfMemoryError, match=r"one text of 3 \+ 7 tokens does not fit .*lower max_new_tokens"):
        sample(ending_policy, [(1, 2, 3)], [0], Sampling(max_new_tokens=7))
