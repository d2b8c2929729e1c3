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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import GenerationConfig
from updates import RandomTexts, device_name, make_arm, now

from statewise.loop.train import supervise
from statewise.loop.update import Updater
from statewise.policy.engine import ENGINES
from statewise.policy.load import Policy, load_policy
from statewise.policy.sampler import Sampling
from statewise.policy.texts import encode_prompt


def transformers_generate(policy: Policy, prompts: list[list[int]], new_tokens: int) -> list[int]:
    """`generate` on left-padded prompts; returns the tokens that each row has up to its end."""
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
    return ((ends == 0) | ((written == pad) & (ends == 1))).sum(-1).tolist()


def sampler_runs(policy: Policy, prompts: list[list[int]]) -> dict[str, Callable[[int], list[int]]]:
    """Each sampler as a function of the most new tokens, which writes one batch and returns each row's tokens."""
    keys = list(range(len(prompts)))
    # `generate_batch` draws padded tokens too, which random weights do not avoid; here only their number counts.
    padded = replace(policy)
    padded.__dict__["vocab_size"] = policy.model.config.vocab_size

    def with_engine(name: str, policy: Policy) -> Callable[[int], list[int]]:
        engine = ENGINES[name]()
        return lambda n: [len(r.token_ids) for r in engine.sample(policy, prompts, keys, Sampling(max_new_tokens=n))]

    return {
        "statewise own": with_engine("own", policy),
        "transformers generate": lambda new_tokens: transformers_generate(policy, prompts, new_tokens),
        "transformers generate_batch": with_engine("generate_batch", padded),
    }


def random_prompts(policy: Policy, num_tokens: int, count: int) -> list[list[int]]:
    """Prompts of about so many tokens."""
    texts = RandomTexts(policy, 2 * num_tokens).examples("train")
    return [list(encode_prompt(policy, texts[i % len(texts)].prompt)) for i in range(count)]


def sft_runs(arguments: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """One SFT update of all weights on the same documents, ours and TRL's; each returns its tokens."""
    sizes = {"rows": arguments.sft_rows, "tokens": arguments.sft_tokens, "adapter": "full"}
    options = {**vars(arguments), **sizes, "max_tokens": 2 * arguments.sft_rows * arguments.sft_tokens}
    setup = make_arm("sft", argparse.Namespace(**options))
    updater = Updater(setup)
    states = setup.recipe.source.sample(setup.context, 0)

    def ours() -> int:
        updater.apply(supervise(setup, states, 0), 0)
        return int(states.lengths.sum())

    def theirs() -> int:
        if not steps:
            from trl_steps import trl_step  # half a minute

            policy = load_policy(arguments.model, "learner", dtype=setup.learner.model.dtype, device=arguments.device)
            steps.append(trl_step("sft", policy, states, arguments.model))
        steps[0]()
        return int(states.lengths.sum())

    steps: list[Callable[[], float]] = []
    return {"SFT update, statewise": ours, "SFT update, TRL": theirs}


def measure(name: str, run: Callable[[], int], arguments: argparse.Namespace) -> None:
    """Print one line of JSON: tokens a second of every repeat, and the peak memory of a GPU."""
    is_cuda = arguments.device.startswith("cuda")
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    run()
    rates, rows = [], []
    for _ in range(arguments.repeats):
        began = now(arguments.device)
        num_tokens = run()
        seconds = now(arguments.device) - began
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
    parser.set_defaults(rank=0, recompute=False)  # of `make_arm`, for adapters and for long texts
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps({**settings, "device": device_name(arguments), "torch": torch.__version__}))
    policy = load_policy(arguments.model, "learner", dtype=getattr(torch, arguments.dtype), device=arguments.device)
    prompts = random_prompts(policy, arguments.prompt_tokens, arguments.rows)
    for name, run in sampler_runs(policy, prompts).items():
        measure(name, lambda run=run: sum(run(arguments.new_tokens)), arguments)
    del policy
    for name, run in sft_runs(arguments).items():
        measure(name, run, arguments)


if __name__ == "__main__":
    main()
