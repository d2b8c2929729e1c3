"""A toy policy for all tests: two layers of random weights over bytes, made in milliseconds, no files, no network."""

from __future__ import annotations

import os
import signal
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from statewise import cli
from statewise.console.interruption import ASKING
from statewise.policy.load import Policy

pytest.register_assert_rewrite("pocket_fixture", "report_fixture")

END_OF_TEXT = "<|endoftext|>"
PADDED_VOCAB = 264  # 256 bytes and the end of text, padded as real models do


def byte_tokenizer(end_of_text: str = END_OF_TEXT) -> PreTrainedTokenizerFast:
    """One token a byte, then the end-of-text token with id 256."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(bytes_)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end_of_text, pad_token=end_of_text)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """In parallel, tests of a file stay together, for its fixtures; those of the contract are many and share none."""
    for item in items:
        if item.path.stem != "test_loop_contract":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # thread counts change sums, and the test machine shares its cores


@pytest.fixture(scope="session")
def toy_policy() -> Policy:
    """A Qwen3 of 2 layers and width 32, context 128, with peaked laws. Not to be changed: `copy_policy` first."""
    config = Qwen3Config(
        vocab_size=PADDED_VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    model.config._attn_implementation = "sdpa"
    return Policy(model.eval(), byte_tokenizer(), "toy", 256)


@pytest.fixture
def heard_signals():
    """Whoever runs the tests in the background, or in parallel, may ignore Ctrl-C, and so would they."""
    before = {number: signal.getsignal(number) for number in ASKING}
    for number in ASKING:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Call `statewise <arguments>` in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call_with(*arguments):
        monkeypatch.setattr(sys, "argv", ["statewise", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return call_with
