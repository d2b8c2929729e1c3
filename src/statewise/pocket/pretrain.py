"""Pretrain the pocket model from nothing: tokenizer, corpus, weights, benchmarks, model card.

A Qwen3 of 0.9 M parameters is trained on fresh documents of the pocket world, packed to blocks, in two stages (`world`
says why), each until its learning rate has decayed to nothing, so that what follows starts from a converged base. This
is the one place with a second update loop: a base model is what the arms of a study share, not an arm, and needs no
states, signals or teachers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from statewise.errors import naming
from statewise.pocket.world import BROAD, CORPORA, World, write_benchmarks
from statewise.storage import records

END_OF_TEXT = "<|endoftext|>"
DOCUMENTS_FOR_TOKENIZER = 20_000


@dataclass(frozen=True)
class Stage:
    """One pass over a corpus, from a fresh optimiser to a rate of zero.

    The rate is constant after warm-up and decays linearly to zero over the last `decay_share` of the updates.
    """

    corpus: str
    num_tokens: int
    lr: float
    decay_share: float


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe of the pocket model; the tokens and the widths are smaller in the smoke size.

    Units: lengths in tokens, `lr` the peak of AdamW, `warmup_share` a share 0..1 of the updates of a stage.
    """

    world_seed: int = 0
    num_threads: int = 1
    stages: tuple[Stage, ...] = (Stage("broad", 7_000_000, 4e-3, 0.4), Stage("kept", 4_200_000, 3e-3, 0.5))
    block_length: int = 256
    blocks_per_update: int = 32
    warmup_share: float = 0.02
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    vocab_size: int = 1024
    hidden_size: int = 128
    num_layers: int = 4
    intermediate_size: int = 384
    num_heads: int = 4
    num_kv_heads: int = 2

    def num_updates(self, stage: Stage) -> int:
        return max(1, stage.num_tokens // (self.block_length * self.blocks_per_update))


SIZES = {
    "full": PretrainConfig(),
    "smoke": PretrainConfig(
        stages=(Stage("broad", 12_288, 4e-3, 0.4), Stage("kept", 12_288, 3e-3, 0.5)),
        block_length=192,
        blocks_per_update=8,
        vocab_size=400,
        hidden_size=32,
        num_layers=2,
        intermediate_size=64,
        num_heads=2,
        num_kv_heads=1,
    ),
}


def train_tokenizer(world: World, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z]+|\s+|[^\sA-Za-z\d]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(world.documents(BROAD), DOCUMENTS_FOR_TOKENIZER), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def blocks(documents: Iterator[str], tokenizer: PreTrainedTokenizerFast, length: int) -> Iterator[np.ndarray]:
    """A corpus as blocks of `length` token ids: documents, each closed by end-of-text, one after the other."""
    pending: list[int] = []
    while True:
        for ids in tokenizer(list(itertools.islice(documents, 512)))["input_ids"]:
            pending.extend(ids)
            pending.append(tokenizer.eos_token_id)
        whole = len(pending) // length
        yield from np.asarray(pending[: whole * length]).reshape(whole, length)
        pending = pending[whole * length :]


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A freshly initialised Qwen3; the generator of torch is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.world_seed)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.hidden_size // config.num_heads,
                max_position_embeddings=config.block_length,
                rope_theta=10_000.0,
                tie_word_embeddings=True,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
                attn_implementation="sdpa",
            )
        )


def lr_at(config: PretrainConfig, stage: Stage, step: int) -> float:
    """Learning rate of update `step` (0-based) of `stage`: linear warm-up, constant, linear decay to zero."""
    num_updates = config.num_updates(stage)
    warmup = max(1, math.ceil(config.warmup_share * num_updates))
    decay = max(1, math.ceil(stage.decay_share * num_updates))
    return stage.lr * min(1.0, (step + 1) / warmup, (num_updates - step) / decay)


def pretrain(config: PretrainConfig, folder: Path, report: Callable[[str], None]) -> None:
    """Train the pocket model of `config` and write model, tokenizer, benchmarks, log, card and SHA-256 into `folder`.

    Args:
        report: gets one line of progress about every 50 updates.
    """
    # Sums of one and of two threads differ in the last bit: the count is part of the recipe.
    torch.set_num_threads(config.num_threads)
    transformers_logging.disable_progress_bar()
    world = World.from_seed(config.world_seed)
    tokenizer = train_tokenizer(world, config.vocab_size)
    model = build_model(config, tokenizer)
    log: list[dict[str, Any]] = []
    for stage in config.stages:
        source = blocks(world.documents(CORPORA[stage.corpus]), tokenizer, config.block_length)
        log.extend(_train(config, stage, (model, source), report))
    _write(config, folder, model, tokenizer, world, log)


def _train(
    config: PretrainConfig,
    stage: Stage,
    learner: tuple[Qwen3ForCausalLM, Iterator[np.ndarray]],
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Train `learner`, a model and its blocks, through `stage`; yields a row of the log about every 50 updates."""
    model, source = learner
    num_updates = config.num_updates(stage)
    optimizer = torch.optim.AdamW(_decay_groups(model, config.weight_decay), lr=stage.lr, betas=(0.9, 0.98))
    start = time.monotonic()
    recent: list[float] = []
    for step in range(num_updates):
        batch = torch.from_numpy(np.stack(list(itertools.islice(source, config.blocks_per_update))))
        for group in optimizer.param_groups:
            group["lr"] = lr_at(config, stage, step)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == num_updates:
            num_tokens = (step + 1) * batch.numel()
            row = {
                "stage": stage.corpus,
                "update": step + 1,
                "tokens": num_tokens,
                "loss_nats": round(sum(recent) / len(recent), 4),
                "lr": lr_at(config, stage, step),
            }
            recent = []
            seconds = time.monotonic() - start
            pace = f"{num_tokens / seconds:,.0f} tokens/s · {seconds:.0f} s"
            report(f"{stage.corpus} · update {step + 1}/{num_updates} · loss {row['loss_nats']:.4f} nats · {pace}")
            yield row


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, vectors (norms) do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _card(config: PretrainConfig, model: Qwen3ForCausalLM, log: list[dict[str, Any]]) -> str:
    num_parameters = sum(p.numel() for p in model.parameters())
    return f"""---
license: apache-2.0
library_name: transformers
tags: [statewise, pocket]
---
# The pocket model of statewise, world {config.world_seed}

A Qwen3 of {num_parameters:,} parameters ({config.num_layers} layers of {config.hidden_size}, vocabulary
{config.vocab_size}, context {config.block_length}), trained by `statewise pretrain --world-seed {config.world_seed}` on
{sum(stage.num_tokens for stage in config.stages):,} tokens of two generated corpora; last training loss
{log[-1]["loss_nats"]:.4f} nats a token. It knows word problems, facts and misconceptions of an invented world and
nothing else. It is made for comparing training methods on a CPU; it is of no use as an assistant, and what it says
about its world is true nowhere.

`pretrain.json` is the recipe, `pretrain_log.jsonl` the training log, `tasks/` its three benchmarks as lm-eval tasks,
`SHA256SUMS` the digest of every file. No data from people or from the web was used.
"""


def _write(
    config: PretrainConfig,
    folder: Path,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    log: list[dict[str, Any]],
) -> None:
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_benchmarks(world, folder / "tasks")
    records.write_bytes(folder / "README.md", _card(config, model, log).encode())
    records.write_json(folder / "pretrain.json", asdict(config))
    lines = "".join(json.dumps(row) + "\n" for row in log)
    records.write_bytes(folder / "pretrain_log.jsonl", lines.encode())
    write_digests(folder)


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of every file in `folder` into its `SHA256SUMS`."""
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "SHA256SUMS"
    }
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    records.write_bytes(folder / "SHA256SUMS", lines.encode())
