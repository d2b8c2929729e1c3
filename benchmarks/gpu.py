"""What a GPU does with statewise: speed and memory beside transformers and TRL, and whether its numbers hold there.

    uv run python tools/random_model.py /tmp/qwen3-0.6b
    uv run python benchmarks/gpu.py /tmp/qwen3-0.6b --device cuda --table table.md > gpu.jsonl
    uv run python benchmarks/gpu.py /tmp/tiny --rows 4 --tokens 32 --sampler-rows 8 --new-tokens 8    # small, on a CPU

One line of JSON a measure, in sections (`--sections`); what fails is a line with its error, and the rest goes on.
Needs neither hub nor network. On a CPU a shortage of memory is simulated; speeds mean little there.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import random_prompts, sampler_runs
from updates import device_name, make_arm, now, peak_gb, take_update, update_options

from statewise.assets import POCKET_MODEL
from statewise.batch import States, Trajectory, collate
from statewise.config.study import UpdateSection
from statewise.locality.adapter import Full
from statewise.loop import update
from statewise.loop.build import Material, Recipe, Setup, build
from statewise.loop.update import Updater
from statewise.policy import sampler
from statewise.policy.act import label_logprobs
from statewise.policy.load import Policy, load_policy
from statewise.policy.sampler import Sampling, sample
from statewise.policy.score import micro_batches
from statewise.policy.texts import encode_prompt
from statewise.signals import SIGNALS, WeightedSignal
from statewise.states import SOURCES
from statewise.tasks.load import load_task
from statewise.types import Rollout

H200_BYTES_PER_S = 4.8e12  # NVIDIA H200 data sheet: memory bandwidth
LARGE_CACHE = 60e9  # bytes of keys and values, ten times the sampler's own limit
MEMORY_SHARE = 0.4  # of what an update took beyond what was there before it
Line = dict[str, Any]


def free(device: str) -> None:
    """Give back what is no longer used, and measure peaks from here."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def option(arguments: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    """The arguments with some changed."""
    return argparse.Namespace(**{**vars(arguments), **changes})


def load(arguments: argparse.Namespace, dtype: str = "bfloat16") -> Policy:
    """The benchmark's model."""
    return load_policy(arguments.model, "learner", dtype=getattr(torch, dtype), device=arguments.device)


def cache_bytes(policy: Policy) -> int:
    """Keys and values of one token."""
    config = policy.model.config.get_text_config()
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * policy.model.dtype.itemsize


def least_bytes(policy: Policy, prompt: int, lengths: list[int]) -> int:
    """What must be read from memory to write rows of `lengths` tokens side by side, each after a prompt.

    steps × weights + Σ_rows Σ_{t < length} (prompt + t) × bytes of a token's keys and values, steps = the longest row.
    """
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())  # tied embeddings once
    return max(lengths) * weights + cache_bytes(policy) * sum(n * prompt + n * (n - 1) // 2 for n in lengths)


def sampling(arguments: argparse.Namespace) -> Iterator[Line]:
    """Tokens a second of three samplers, and their share of the bandwidth roofline."""
    policy = load(arguments)
    prompts = random_prompts(policy, arguments.prompt_tokens, arguments.sampler_rows)
    runs = sampler_runs(policy, prompts)
    own = runs["statewise own"]

    def with_large_cache(new_tokens: int) -> list[int]:
        before, sampler.CACHE_BYTES = sampler.CACHE_BYTES, LARGE_CACHE
        try:
            return own(new_tokens)
        finally:
            sampler.CACHE_BYTES = before

    runs[f"statewise own, cache of {LARGE_CACHE / 1e9:g} GB"] = with_large_cache
    for name, run in runs.items():
        yield from guarded(name, lambda run=run: [sampling_line(policy, prompts, run, arguments)])
    if arguments.device.startswith("cuda"):
        yield from guarded("profile of the own sampler", lambda: [profile(lambda: own(16))])


def sampling_line(
    policy: Policy, prompts: list[list[int]], run: Callable[[int], list[int]], arguments: argparse.Namespace
) -> Line:
    """One measure after a short warm-up."""
    run(min(4, arguments.new_tokens))
    free(arguments.device)
    began = now(arguments.device)
    lengths = run(arguments.new_tokens)
    seconds = now(arguments.device) - began
    longest = max(len(prompt) for prompt in prompts)
    ideal_s = least_bytes(policy, longest, lengths) / H200_BYTES_PER_S
    return {
        "rows": len(prompts), "tokens": sum(lengths), "run_s": round(seconds, 3),
        "tokens_per_s": round(sum(lengths) / seconds, 1), "ms_per_step": round(1e3 * seconds / max(lengths), 2),
        "roofline_share": round(ideal_s / seconds, 4), "peak_gb": peak_gb(arguments.device),
    }  # fmt: skip


def profile(run: Callable[[], object]) -> Line:
    """The kernels and the calls that take most of a run's time."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = sorted(events, key=lambda event: -event.self_device_time_total)[:12]
    calls = sorted(events, key=lambda event: -event.self_cpu_time_total)[:8]
    return {
        "device_ms": {event.key[:60]: [round(event.self_device_time_total / 1e3, 2), event.count] for event in kernels},
        "cpu_ms": {event.key[:60]: [round(event.self_cpu_time_total / 1e3, 2), event.count] for event in calls},
        "all_device_ms": round(sum(event.self_device_time_total for event in events) / 1e3, 1),
        "all_cpu_ms": round(sum(event.self_cpu_time_total for event in events) / 1e3, 1),
    }


def updates(arguments: argparse.Namespace) -> Iterator[Line]:
    """Updates of each cell, the second of two, and TRL's step on the same states."""
    for cell, adapter in (("sft", "lora"), ("sft", "full"), ("opd", "lora"), ("rl", "lora")):
        kept: list[States] = []
        yield from guarded(f"{cell}, {adapter}", lambda c=cell, a=adapter, k=kept: [our_update(c, a, arguments, k)])
        for is_mixed in (False, True) if adapter == "full" and arguments.device.startswith("cuda") else (False,):
            name = f"{cell}, {adapter}, TRL" + (" in bfloat16 autocast" if is_mixed else "")
            for states in kept:
                yield from guarded(
                    name, lambda c=cell, a=adapter, s=states, m=is_mixed: [trl_update(c, a, s, m, arguments)]
                )


def our_update(cell: str, adapter: str, arguments: argparse.Namespace, kept: list[States]) -> Line:
    """Seconds and peak of the second update; its states go into `kept`."""
    setup = make_arm(cell, option(arguments, adapter=adapter))
    updater = Updater(setup)
    free(arguments.device)
    for step in range(2):
        terms, result, seconds = take_update(setup, updater, step)
    states = terms[0].states
    kept.append(states)
    return {
        "rows": len(states.lengths), "tokens": int(states.lengths.sum()), "states": states.num_states, **seconds,
        "micro_batches": result.num_micro_batches, "peak_gb": peak_gb(arguments.device),
        "loss_nats": round(result.loss, 5), "sampler_mismatch_nats": result.sampler_mismatch,
    }  # fmt: skip


def trl_update(cell: str, adapter: str, states: States, is_mixed: bool, arguments: argparse.Namespace) -> Line:
    """Seconds and peak of TRL's second step."""
    from trl_steps import trl_step  # half a minute

    rank = arguments.rank if adapter == "lora" else None
    step = trl_step(cell, load(arguments, arguments.dtype), states, arguments.model, rank=rank, is_mixed=is_mixed)
    free(arguments.device)
    step()
    began = now(arguments.device)
    loss = step()
    seconds = now(arguments.device) - began
    return {
        "rows": len(states.lengths), "tokens": int(states.lengths.sum()), "update_s": round(seconds, 3),
        "peak_gb": peak_gb(arguments.device), "loss_nats": round(loss, 5),
    }  # fmt: skip


def precision(arguments: argparse.Namespace) -> Iterator[Line]:
    """|log π - log μ| of the sampler's own tokens, scored by the loop, in both precisions."""
    for folder in (arguments.model, POCKET_MODEL):
        for dtype in ("float32", "bfloat16"):
            for top_p in (1.0, 0.9):
                name = f"{Path(folder).name}, {dtype}, top_p {top_p:g}"
                yield from guarded(name, lambda f=folder, d=dtype, p=top_p: [mismatch(f, d, p, arguments)])


def mismatch(folder: Path, dtype: str, top_p: float, arguments: argparse.Namespace) -> Line:
    """Mean and largest difference; under top-p the loop scores the whole law, so both laws are compared at top_p 1."""
    policy = load(option(arguments, model=folder), dtype)
    prompts = random_prompts(policy, min(arguments.prompt_tokens, 30), arguments.rows)
    new_tokens = min(arguments.new_tokens, 128)
    rollouts = sample(policy, prompts, range(len(prompts)), Sampling(top_p=top_p, max_new_tokens=new_tokens))
    states = collate([as_trajectory(rollout) for rollout in rollouts])
    scored = label_logprobs(policy, states, micro_batches(states, arguments.max_tokens))[states.action_mask]
    gaps = scored - states.behavior_logprobs[states.action_mask]
    sizes = np.abs(gaps) if top_p == 1 else np.maximum(gaps, 0)  # the cut law is nowhere below the whole one
    return {"states": len(gaps), "mean_nats": float(sizes.mean()), "max_nats": float(sizes.max())}


def as_trajectory(rollout: Rollout) -> Trajectory:
    """A rollout as a row of states."""
    ids, length = rollout.prompt_ids + rollout.token_ids, len(rollout.prompt_ids)
    return Trajectory(ids, length, 0, "rollout", "learner", rollout.logprobs, rollout.is_finished)


def memory(arguments: argparse.Namespace) -> Iterator[Line]:
    """An update that does not fit at once: how often it is halved, and whether its gradient is the same."""
    whole = option(arguments, max_tokens=2 * arguments.rows * arguments.tokens)
    for adapter in ("lora", "full"):
        yield from guarded(f"sft, {adapter}", lambda a=adapter: [halved(option(whole, adapter=a))])


def halved(arguments: argparse.Namespace) -> Line:
    """The same update with all memory and with `MEMORY_SHARE` of what it took."""
    is_cuda = arguments.device.startswith("cuda")
    setup = make_arm("sft", arguments)
    updater = Updater(setup)
    free(arguments.device)
    _, result, _ = take_update(setup, updater, 0)
    peak, expected = peak_gb(arguments.device), trained(setup)
    del setup, updater
    free(arguments.device)
    setup = make_arm("sft", arguments)
    updater, splits = Updater(setup), []
    split = updater._split
    updater._split = lambda *asked: splits.append(asked[1]) or split(*asked)  # type: ignore[method-assign]
    free(arguments.device)
    held = torch.cuda.memory_allocated() / 1e9 if is_cuda else 0.0
    limit_gb = held + MEMORY_SHARE * (peak - held)
    with limited(limit_gb, arguments):
        _, small, seconds = take_update(setup, updater, 0)
    return {
        "held_gb": round(held, 2), "peak_gb": peak, "limit_gb": round(limit_gb, 2),
        "peak_limited_gb": peak_gb(arguments.device), "tried_tokens": splits, "num_halved": len(splits) - 1,
        "micro_batches": [result.num_micro_batches, small.num_micro_batches],
        **seconds, "loss_nats": [result.loss, small.loss], **differences(trained(setup), expected),
    }  # fmt: skip


@contextmanager
def limited(limit_gb: float, arguments: argparse.Namespace) -> Iterator[None]:
    """At most `limit_gb` of a GPU's memory inside; on a CPU micro-batches above a third of the rows are refused."""
    if arguments.device.startswith("cuda"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit_gb * 1e9 / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    score = update.score_terms

    def small_device(setup: Setup, micro: Any) -> Any:
        if len(micro[0].states.lengths) > max(1, arguments.rows // 3):
            raise torch.OutOfMemoryError("simulated")
        return score(setup, micro)

    update.score_terms = small_device
    try:
        yield
    finally:
        update.score_terms = score


def trained(setup: Setup) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients (clipped) and weights after an update, on the CPU."""
    return {
        "gradient": {name: p.grad.detach().cpu().clone() for name, p in setup.trainable.items() if p.grad is not None},
        "weights": {name: p.detach().cpu().clone() for name, p in setup.trainable.items()},
    }


def largest_of(tensors: list[tuple[float, float]]) -> float:
    """The largest entry, of norms and largest entries."""
    return max(entry for _, entry in tensors)


def differences(ours: dict[str, dict[str, torch.Tensor]], theirs: dict[str, dict[str, torch.Tensor]]) -> Line:
    """|a - b| / |b| over all tensors together (2-norm), the largest entry's, and whether all bytes are equal."""
    told: Line = {}
    for kind, tensors in theirs.items():
        pairs = [(ours[kind][name], tensor) for name, tensor in tensors.items()]
        gaps, sizes = (
            [(float(of(pair).norm()), float(of(pair).abs().max())) for pair in pairs]
            for of in (lambda pair: pair[0] - pair[1], lambda pair: pair[1])
        )
        for what, reduced in (("relative", lambda c: sum(norm**2 for norm, _ in c) ** 0.5), ("largest", largest_of)):
            told[f"{kind}_{what}"] = reduced(gaps) / max(reduced(sizes), 1e-300)
        told[f"{kind}_equal"] = all(torch.equal(*pair) for pair in pairs)
    return told


def pocket_arm(cell: str, device: str, teacher_noise: float = 0.1) -> Setup:
    """The pocket model on its own task, in float32: sft or opd on gold states, the teacher another model."""
    learner = load_policy(POCKET_MODEL, "learner", device=device)
    other = replace(learner, name="teacher", model=copy.deepcopy(learner.model))
    generator = torch.Generator().manual_seed(0)  # on the CPU: the same teacher on every device
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += teacher_noise * parameter.std() * torch.randn(parameter.shape, generator=generator).to(device)
    signal = SIGNALS["imitate" if cell == "sft" else "reverse_kl"]()
    section = UpdateSection(num_updates=4, lr=1e-3)
    source = SOURCES["dataset"](num_trajectories=32)  # type: ignore[call-arg]
    recipe = Recipe(source, (WeightedSignal(signal=signal),), Full(), section, key=0)
    return build(recipe, learner, {"teacher": other}, Material(pocket_task()))


def pocket_task() -> Any:
    """The arithmetic of the pocket world."""
    return load_task("pocket_math", task_folder=POCKET_MODEL / "tasks")


def devices(arguments: argparse.Namespace) -> Iterator[Line]:
    """The pocket model on the CPU and on the device: rollouts of the same keys, and updates, in float32."""
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        yield from guarded(f"64 rollouts, {name}", lambda t=temperature: [same_rollouts(t, arguments.device)])
    for cell in ("sft", "opd"):
        yield from guarded(f"{cell} update", lambda c=cell: [same_update(c, arguments.device)])


def same_rollouts(temperature: float, device: str) -> Line:
    """Share of equal texts, and the largest difference of log-probabilities up to where two texts part."""
    texts = pocket_task().examples("train")[:64]
    written = []
    for place in ("cpu", device):
        policy = load_policy(POCKET_MODEL, "learner", device=place)
        prompts = [encode_prompt(policy, text.prompt) for text in texts]
        written.append(sample(policy, prompts, range(len(prompts)), Sampling(temperature, max_new_tokens=72)))
    gaps, num_equal = [0.0], 0
    for here, there in zip(*written, strict=True):
        num_equal += here.token_ids == there.token_ids
        for ours, theirs, a, b in zip(here.token_ids, there.token_ids, here.logprobs, there.logprobs, strict=False):
            if ours != theirs:
                break
            gaps.append(abs(a - b))
    return {"equal_texts": num_equal / len(texts), "tokens": len(gaps) - 1, "max_nats": max(gaps)}


def same_update(cell: str, device: str) -> Line:
    """The first update, by the CPU and by the device."""
    results = []
    for place in ("cpu", device):
        setup = pocket_arm(cell, place)
        _, result, seconds = take_update(setup, Updater(setup), 0)
        results.append((trained(setup), result.loss, seconds["update_s"]))
    (expected, loss, cpu_s), (found, other_loss, device_s) = results
    return {"loss_nats": [loss, other_loss], "seconds": [cpu_s, device_s], **differences(found, expected)}


def repeats(arguments: argparse.Namespace) -> Iterator[Line]:
    """The same update and the same rollouts twice: equal bytes or not, also with torch's deterministic algorithms."""
    for name, make in {
        "pocket sft, float32": lambda: pocket_arm("sft", arguments.device),
        "pocket opd, float32": lambda: pocket_arm("opd", arguments.device),
        "sft, lora, bfloat16": lambda: make_arm("sft", option(arguments, adapter="lora")),
        "sft, full, float32": lambda: make_arm("sft", option(arguments, adapter="full")),
    }.items():
        for is_forced in (False, True) if "full" not in name else (False,):
            what = f"{name}{', deterministic algorithms' if is_forced else ''}"
            yield from guarded(what, lambda m=make, f=is_forced: [same_twice(m, f)])
    yield from guarded("rollouts", lambda: [same_rollouts_twice(arguments)])


def same_twice(make: Callable[[], Setup], is_forced: bool) -> Line:
    """Two updates of a fresh arm, made twice."""
    found, took = [], []
    torch.use_deterministic_algorithms(is_forced)
    try:
        for _ in range(2):
            setup = make()
            updater = Updater(setup)
            for step in range(2):
                _, _, seconds = take_update(setup, updater, step)
            found.append(trained(setup))
            took.append(seconds["update_s"])
    finally:
        torch.use_deterministic_algorithms(False)
    return {"update_s": took, **differences(*found)}


def same_rollouts_twice(arguments: argparse.Namespace) -> Line:
    """Texts and log-probabilities, with all rows and with half of them."""
    policy = load(arguments)
    prompts = random_prompts(policy, arguments.prompt_tokens, arguments.rows)
    asked = Sampling(max_new_tokens=min(arguments.new_tokens, 64))
    first, again = (sample(policy, prompts, range(len(prompts)), asked) for _ in range(2))
    half = sample(policy, prompts[::2], range(0, len(prompts), 2), asked)
    return {
        "equal": first == again,
        "equal_texts": equal_share(first, again),
        "equal_texts_in_half_the_batch": equal_share(first[::2], half),
    }


def equal_share(ours: list[Rollout], theirs: list[Rollout]) -> float:
    """Share of rows with the same tokens."""
    return sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True)) / len(ours)


SECTIONS = {
    "devices": devices, "repeats": repeats, "memory": memory, "precision": precision, "sampling": sampling,
    "updates": updates,
}  # fmt: skip


def guarded(name: str, run: Callable[[], list[Line]]) -> Iterator[Line]:
    """The lines of a measure, each with its name and seconds; or one with its error, so that the others go on."""
    began = time.perf_counter()
    try:
        lines = run()
    except Exception as error:  # noqa: BLE001  (whatever a device does wrong is a result)
        traceback.print_exc()
        lines = [{"error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}]
    for line in lines:
        yield {"what": name, **line, "seconds": round(time.perf_counter() - began, 2)}


def table(lines: list[Line]) -> str:
    """The lines as one markdown table a section; a number that is not there is left out."""
    parts = []
    for section in dict.fromkeys(line["section"] for line in lines):
        rows = [{k: v for k, v in line.items() if k != "section"} for line in lines if line["section"] == section]
        rows = [row for row in rows if "device_ms" not in row]
        heads = list(dict.fromkeys(key for row in rows for key in row))
        shown = [
            [str(row.get(head, "")) if not isinstance(row.get(head), float) else f"{row[head]:.4g}" for head in heads]
            for row in rows
        ]
        bars = [f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *shown]]
        parts.append(f"**{section}**\n\n" + "\n".join(bars) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Measure, section by section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    update_options(parser)
    parser.set_defaults(rows=32, tokens=512, max_tokens=16_384)
    parser.add_argument("--sampler-rows", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    lines = []
    for section in arguments.sections.split(","):
        for line in SECTIONS[section](arguments):
            lines.append({"section": section, **line})
            print(json.dumps(lines[-1], default=float), flush=True)
        free(arguments.device)
    print(json.dumps({**settings, "device": device_name(arguments), "torch": torch.__version__}), flush=True)
    if arguments.table:
        arguments.table.write_text(table(lines), encoding="utf-8")
    if any("error" in line for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
