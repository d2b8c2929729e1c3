"""Small sequence classifiers of any family that transformers knows, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import byte_tokenizer
from families_fixture import GPT, LLAMA
from transformers import AutoConfig, AutoModelForSequenceClassification

BERT = {
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 96,
}  # fmt: skip
FAMILIES = {
    "llama": ("llama", LLAMA),
    "llama-padded-with-its-end": ("llama", LLAMA | {"pad_token_id": 256}),
    "llama-padded-with-nothing": ("llama", LLAMA | {"pad_token_id": -1}),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 8}),
    "gpt2": ("gpt2", GPT),
    "bert": ("bert", BERT | {"pad_token_id": 0}),
    "roberta": ("roberta", BERT | {"pad_token_id": 1}),
}


def build_classifier(folder: Path, family: str = "qwen3", num_labels: int = 1, tokenizer=None, **options) -> Path:
    kind, settings = FAMILIES[family]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **settings, num_labels=num_labels, **options)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder
