"""Seconds and peak memory of one SFT, one OPD and one RL update of a model, each in a process of its own.

    uv run python tools/random_model.py /tmp/qwen3-0.6b
    uv run python benchmarks/updates.py /tmp/qwen3-0.6b --threads 2
    uv run python benchmarks/updates.py /tmp/qwen3-0.6b --device cuda --rows 32 --tokens 512

The arms are real ones (source, signal, LoRA adapter, loop), on texts of random words; the teacher of OPD is a second
adapter on the same base weights. It needs neither a hub nor a network.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from statewise.config.study import UpdateSection
from statewise.locality.adapter import ADAPTERS
from statewise.loop.build import Material, Recipe, Setup, build
from statewise.loop.score import Term
from statewise.loop.train import supervise
from statewise.loop.update import Updater, UpdateResult
from statewise.policy.load import Policy, load_policy
from statewise.policy.lora import add_adapter
from statewise.policy.texts import encode
from statewise.signals import SIGNALS, WeightedSignal
from statewise.states import SOURCES
from statewise.types import Example

CELLS = {"sft": ("dataset", "imitate"), "opd": ("rollout", "reverse_kl"), "rl": ("rollout", "reward")}
GROUP = 4
WORDS = ("one", "two", "three", "seven", "apples", "pears", "boxes", "gives", "takes", "has", "left", "then", "now")


@dataclass(frozen=True)
class RandomTexts:
    """Documents of random words; half of the answers are right."""

    policy: Policy
    num_tokens: int
    name: str = "random texts"

    def examples(self, split: str, chat: object = None) -> tuple[Example, ...]:
        """64 documents of about `num_tokens` tokens, half of them prompt."""
        generator = np.random.Generator(np.random.Philox(key=0))
        drawn = [" ".join(generator.choice(WORDS, self.num_tokens).tolist()) for _ in range(64)]
        # As many characters as make `num_tokens` tokens, end-of-text included.
        sizes = range(1, len(drawn[0]))
        length = bisect_left(sizes, self.num_tokens, key=lambda size: len(encode(self.policy, drawn[0][:size])))
        # Cut where a word begins: a token across the border could not be sampled from the prompt.
        halves = [text.rindex(" ", 0, length // 2 + 1) for text in drawn]
        return tuple(
            Example(i, text[:half], text[half:length]) for i, (text, half) in enumerate(zip(drawn, halves, strict=True))
        )

    def rewards(self, indices: Sequence[int], texts: Sequence[str]) -> tuple[list[float], float]:
        """0 or 1, by the length of the answer."""
        return [float(len(text) % 2) for text in texts], 0.0


def make_arm(cell: str, arguments: argparse.Namespace) -> Setup:
    """The arm of a cell; rollouts have as many new tokens as half a document."""
    learner = load_policy(arguments.model, "learner", dtype=getattr(torch, arguments.dtype), device=arguments.device)
    others = {}
    if cell == "opd":
        added = add_adapter(learner.model, "teacher", rank=8, alpha=16.0, seed=1)
        for parameter in added.values():
            torch.nn.init.normal_(parameter, std=0.02)  # another law than the base's
        others["teacher"] = replace(learner, name="teacher", adapter="teacher")
    source_kind, signal_kind = CELLS[cell]
    if source_kind == "dataset":
        source = SOURCES["dataset"](num_trajectories=arguments.rows)  # type: ignore[call-arg]
    else:
        group = GROUP if cell == "rl" else 1
        source = SOURCES["rollout"](  # type: ignore[call-arg]
            num_prompts=max(1, arguments.rows // group), samples_per_prompt=group, max_new_tokens=arguments.tokens // 2
        )
    update = UpdateSection(
        num_updates=10, lr=1e-4, max_tokens=arguments.max_tokens, activation_checkpointing=arguments.recompute
    )
    adapter = ADAPTERS[arguments.adapter](rank=arguments.rank, alpha=2.0 * arguments.rank)  # type: ignore[call-arg]
    recipe = Recipe(source, (WeightedSignal(signal=SIGNALS[signal_kind]()),), adapter, update, key=0)
    return build(recipe, learner, others, Material(RandomTexts(learner, arguments.tokens)))  # type: ignore[arg-type]


def take_update(setup: Setup, updater: Updater, step: int) -> tuple[Sequence[Term], UpdateResult, dict[str, float]]:
    """One update: what it was made of, what it did, and the seconds of its parts."""
    device = setup.learner.device
    marks = [now(device)]
    visited = setup.recipe.source.sample(setup.context, step)
    marks.append(now(device))
    terms = supervise(setup, visited, step)
    result = updater.apply(terms, step)
    marks.append(now(device))
    return terms, result, {"sample_s": round(marks[1] - marks[0], 3), "update_s": round(marks[2] - marks[1], 3)}


def measure(cell: str, arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """Seconds of each part of the last of `repeats` updates, and the peak memory of the process."""
    setup = make_arm(cell, arguments)
    updater = Updater(setup)
    for step in range(arguments.repeats):
        terms, result, seconds = take_update(setup, updater, step)
    states = terms[0].states
    return {
        "cell": cell,
        "adapter": arguments.adapter,
        "trajectories": len(states.lengths),
        "tokens": int(states.lengths.sum()),
        "states": states.num_states,
        "vocabulary": setup.learner.vocab_size,
        **seconds,
        "micro_batches": result.num_micro_batches,
        "peak_gb": peak_gb(arguments.device),
        "loss_nats": round(result.loss, 4),
        "device": device_name(arguments),
    }


def peak_gb(device: str) -> float:
    """Most memory that torch held on a GPU since the last reset; else the process's resident memory at its highest."""
    is_cuda = device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if is_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return round(peak / 1e9, 2)


def device_name(arguments: argparse.Namespace) -> str:
    """Where it ran."""
    is_cuda = arguments.device.startswith("cuda")
    return torch.cuda.get_device_name() if is_cuda else f"cpu, {arguments.threads} threads"


def now(device: torch.device | str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def update_options(parser: argparse.ArgumentParser) -> None:
    """The options that `make_arm` reads."""
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--adapter", choices=sorted(ADAPTERS), default="lora")
    parser.add_argument("--rows", type=int, default=2, help="trajectories an update")
    parser.add_argument("--tokens", type=int, default=256, help="tokens a trajectory, half of them prompt")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens a micro-batch")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing")
    parser.add_argument("--threads", type=int, default=1)


def main() -> None:
    """Measure every cell in a process of its own, one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    update_options(parser)
    parser.add_argument("--cell", choices=sorted(CELLS), help="only this one, in this process")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.cell:
        print(json.dumps(measure(arguments.cell, arguments)))
        return
    for cell in CELLS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--cell", cell], check=True)


if __name__ == "__main__":
    main()
