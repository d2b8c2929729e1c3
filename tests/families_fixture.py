"""Small models of any family that transformers knows, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

ENDS = {"eos_token_id": 256, "bos_token_id": 256, "pad_token_id": None}
LLAMA = {
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "tie_word_embeddings": False, **ENDS,
}  # fmt: skip
GPT = {"vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, **ENDS}


def build_model(folder: Path, kind: str, options: dict[str, object]) -> Path:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
