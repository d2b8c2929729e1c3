"""Write a model folder of random weights in the shape of a published model, for benchmarks and tests of size.

    uv run python tools/random_model.py OUT [--architecture qwen3-0.6b]

Shapes and data types are those of the published checkpoint; the weights mean nothing. The tokenizer is the pocket
model's, so most of the vocabulary belongs to no token, as padding does: memory and time are those of the real model,
lengths of texts in tokens are not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from statewise.assets import POCKET_MODEL

# config.json of Qwen/Qwen3-0.6B-Base, and a model of the same family that takes a second.
QWEN3_06B = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
ARCHITECTURES = {
    "qwen3-0.6b": QWEN3_06B,
    "qwen3-tiny": {**QWEN3_06B, "vocab_size": 4_096, "hidden_size": 64, "intermediate_size": 128,
                   "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
}  # fmt: skip


def write_random_model(architecture: str, out: Path, seed: int = 0) -> int:
    """Write the folder; returns the number of parameters."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL, local_files_only=True, trust_remote_code=False)
    special = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(**ARCHITECTURES[architecture], **special, dtype="bfloat16")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Qwen3ForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return int(model.num_parameters())


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="qwen3-0.6b")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists; choose another folder")
    count = write_random_model(arguments.architecture, arguments.out, arguments.seed)
    print(f"{arguments.out}: {arguments.architecture}, {count / 1e6:.1f} M random parameters in bfloat16")


if __name__ == "__main__":
    main()
