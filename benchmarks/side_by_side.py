"""Rollouts a second of three samplers, and trained tokens a second beside TRL's SFTTrainer, on one model and one batch.

    uv run python tools/random_model.py /tmp/qwen3-0.6b
    uv run python benchmarks/side_by_side.py /tmp/qwen3-0.6b --device cuda --rows 256 --new-tokens 256
    uv run python benchmarks/side_by_side.py MODEL --rows 8 --new-tokens 16 --sft-rows 4    # small, on a CPU

Needs neither hub nor network: texts are random words. Every measure is taken `--repeats` times after one warm-up, and
all are printed, so that their spread is seen. Ratios are within one run of this script.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from transformers import GenerationConfig
from trl import SFTConfig, SFTTrainer
from updates import RandomTexts

from statewise.config.study import UpdateSection
from statewise.locality.adapter import Full
from statewise.loop.build import Material, Recipe, build
from statewise.loop.train import supervise
from statewise.loop.update import Updater
from statewise.policy.engine import ENGINES
from statewise.policy.load import Policy, load_policy
from statewise.policy.sampler import Sampling
from statewise.policy.texts import encode_prompt
from statewise.signals import SIGNALS, WeightedSignal
from statewise.states import SOURCES


def transformers_generate(policy: Policy, prompts: list[list[int]], new_tokens: int) -> int:
    """`generate` on left-padded prompts; returns the tokens written up to each row's end."""
    longest = max(map(len, prompts))
    pad = policy.end_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new_tokens, pad_token_id=pad,
        eos_token_id=list(policy.end_token_ids),
    )  # fmt: skip
    with torch.no_grad():
        written = policy.model.generate(ids, attention_mask=mask, generation_config=settings)[:, longest:]
    ends = (written == pad).int().cumsum(-1)
    return int(((ends == 0) | ((written == pad) & (ends == 1))).sum())


def sampler_runs(policy: Policy, arguments: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Each sampler as a function that writes one batch and returns its tokens."""
    texts = RandomTexts(policy, arguments.prompt_tokens * 2).examples("train")
    prompts = [list(encode_prompt(policy, texts[i % len(texts)].prompt)) for i in range(arguments.rows)]
    sampling, keys = Sampling(max_new_tokens=arguments.new_tokens), list(range(len(prompts)))

    def with_engine(name: str) -> Callable[[], int]:
        return lambda: sum(len(r.token_ids) for r in ENGINES[name]().sample(policy, prompts, keys, sampling))

    return {
        "statewise own": with_engine("own"),
        "transformers generate": lambda: transformers_generate(policy, prompts, arguments.new_tokens),
        "transformers generate_batch": with_engine("generate_batch"),
    }


def statewise_sft(arguments: argparse.Namespace, dtype: torch.dtype) -> Callable[[], int]:
    """One SFT update of all weights on the first documents; returns its tokens."""
    policy = load_policy(arguments.model, "learner", dtype=dtype, device=arguments.device)
    update = UpdateSection(num_updates=100, lr=1e-5, max_tokens=arguments.sft_rows * arguments.sft_tokens * 2)
    source = SOURCES["dataset"](num_trajectories=arguments.sft_rows, num_examples=arguments.sft_rows)  # type: ignore[call-arg]
    recipe = Recipe(source, (WeightedSignal(signal=SIGNALS["imitate"]()),), Full(), update, key=0)
    setup = build(recipe, policy, {}, Material(RandomTexts(policy, arguments.sft_tokens)))  # type: ignore[arg-type]
    updater = Updater(setup)

    def run() -> int:
        states = setup.recipe.source.sample(setup.context, 0)
        updater.apply(supervise(setup, states, 0), 0)
        return int(states.lengths.sum())

    return run


def trl_sft(arguments: argparse.Namespace, dtype: torch.dtype) -> Callable[[], int]:
    """One step of TRL's SFTTrainer on the same documents, batch and optimiser; returns its tokens."""
    policy = load_policy(arguments.model, "learner", dtype=dtype, device=arguments.device)
    policy.model.float()  # what statewise trains in
    texts = RandomTexts(policy, arguments.sft_tokens).examples("train")[: arguments.sft_rows]
    rows = [
        {"input_ids": [*policy.tokenizer.encode(t.prompt + t.gold, add_special_tokens=False), policy.end_token_id]}
        for t in texts
    ]
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=arguments.sft_rows, max_steps=10_000,
        lr_scheduler_type="constant", learning_rate=1e-5, weight_decay=0.0, max_grad_norm=1.0, report_to=[],
        save_strategy="no", logging_strategy="no", activation_checkpointing=False, bf16=False, max_length=None,
        use_cpu=not arguments.device.startswith("cuda"), disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer = SFTTrainer(
        model=policy.model, args=config, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # `train` would set it
    batch = next(iter(trainer.get_train_dataloader()))
    num_tokens = sum(len(row["input_ids"]) for row in rows)

    def run() -> int:
        trainer.training_step(trainer.model, trainer._prepare_inputs(dict(batch)))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return num_tokens

    return run


def measure(name: str, run: Callable[[], int], arguments: argparse.Namespace) -> None:
    """Print one line of JSON: tokens a second of every repeat, and the peak memory of a GPU."""
    is_cuda = arguments.device.startswith("cuda")
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    rates, rows = [], []
    for repeat in range(arguments.repeats + 1):
        began = time.perf_counter()
        num_tokens = run()
        if is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if repeat > 0:
            rates.append(round(num_tokens / seconds, 1))
            rows.append(round(seconds, 3))
    peak = {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if is_cuda else {}
    print(json.dumps({"what": name, "tokens_per_s": rates, "seconds": rows, "tokens": num_tokens, **peak}), flush=True)


def main() -> None:
    """Measure all, each on a fresh model where it trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the samplers")
    parser.add_argument("--rows", type=int, default=64, help="rollouts side by side")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--sft-rows", type=int, default=16)
    parser.add_argument("--sft-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    is_cuda = arguments.device.startswith("cuda")
    device = torch.cuda.get_device_name() if is_cuda else f"cpu, {arguments.threads} threads"
    print(json.dumps({"device": device, "torch": torch.__version__, **{k: str(v) for k, v in vars(arguments).items()}}))
    dtype = torch.bfloat16 if arguments.dtype == "bfloat16" else torch.float32
    policy = load_policy(arguments.model, "learner", dtype=dtype, device=arguments.device)
    for name, run in sampler_runs(policy, arguments).items():
        measure(name, run, arguments)
    del policy
    measure("SFT update, statewise", statewise_sft(arguments, dtype), arguments)
    measure("SFT update, TRL", trl_sft(arguments, dtype), arguments)


if __name__ == "__main__":
    main()
