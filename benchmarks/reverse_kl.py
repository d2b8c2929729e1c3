"""Memory and time of the reverse KL over a whole vocabulary, ours and naive: forward and backward through the heads.

    uv run python benchmarks/reverse_kl.py
    uv run python benchmarks/reverse_kl.py --json

Hidden states of student and teacher are random, 2 × 512 states of width 1024, and two heads of 151,936 tokens turn them
into logits. Ours is what `loop.score` does with them; naive holds all logits at once. Every case runs in a process of
its own. Its extra peak is what the process held at most beyond what it held before (VmHWM - VmRSS); beside it stands
the peak of torch's own allocations, as its profiler records them. The loss is the sum over the states, so that their
gradients are compared at full size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from statewise.loop.score import law_loss
from statewise.policy.load import Policy
from statewise.policy.score import Law, chunked_over_laws, states_per_chunk
from statewise.signals import ReverseKL
from statewise.types import SignalInputs

METHODS = ("ours", "naive")
LOGIT_STD = 3.0  # nats; about that of a language model


class HeadOnly(torch.nn.Module):
    """As much of a model as scoring hidden states needs."""

    def __init__(self, hidden: int, vocabulary: int, seed: int, *, is_trained: bool) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(hidden, vocabulary, bias=False)
        torch.nn.init.normal_(
            self.lm_head.weight, std=LOGIT_STD / hidden**0.5, generator=torch.Generator().manual_seed(seed)
        )
        self.requires_grad_(is_trained)

    def get_output_embeddings(self) -> torch.nn.Linear:
        """The head."""
        return self.lm_head


@dataclass(frozen=True)
class Vocabulary:
    """As much of a tokenizer as scoring hidden states needs."""

    size: int

    def get_vocab(self) -> dict[str, int]:
        """Its last token."""
        return {"last": self.size - 1}


def make_policy(name: str, hidden: int, vocabulary: int, *, is_trained: bool = False) -> Policy:
    """A policy that is a head alone, of random weights."""
    model = HeadOnly(hidden, vocabulary, seed=len(name), is_trained=is_trained)
    return Policy(cast(PreTrainedModel, model), cast(PreTrainedTokenizerBase, Vocabulary(vocabulary)), name, 0)


def make_losses(method: str, learner: Policy, teacher: Policy) -> Callable[[Tensor, Tensor], Tensor]:
    """Reverse KL [states] of the hidden states of learner and teacher, as `loop.score` computes it or naively."""
    if method == "ours":
        score = law_loss(ReverseKL().loss, {"teacher": teacher}, temperature=1.0)
        law = Law(learner, 1.0, states_per_chunk(learner))
        return lambda hidden, teacher_hidden: chunked_over_laws(score, law, hidden, teacher_hidden)

    def naive(hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher.model.get_output_embeddings()(teacher_hidden)
        logits = learner.model.get_output_embeddings()(hidden)
        return ReverseKL().loss(SignalInputs(policy_logits=logits, teacher_logits=teacher_logits))

    return naive


def tracked_peak(run: Callable[[], object]) -> int:
    """Bytes that torch's CPU allocator held at most beyond what it held before `run`; temporaries of operators too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return int(np.cumsum([0, *(size for _, size in changes)]).max())


def memory_kb(field: str) -> int:
    """A field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """One case in this process; the gradients are left in `arguments.folder`."""
    torch.set_num_threads(1)
    shape = (arguments.states, arguments.hidden)
    learner = make_policy("learner", arguments.hidden, arguments.vocabulary, is_trained=arguments.case == "trained")
    teacher = make_policy("teacher", arguments.hidden, arguments.vocabulary)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher_hidden = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    losses = make_losses(arguments.method, learner, teacher)
    tracked_peak(lambda: torch.ones(1))  # the profiler's own start-up

    def run() -> float:
        loss = losses(hidden, teacher_hidden).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM starts again at VmRSS
    before, began, began_cpu = memory_kb("VmRSS"), time.perf_counter(), time.process_time()
    tracked = tracked_peak(run)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    extra = (memory_kb("VmHWM") - before) * 1024
    head = learner.model.get_output_embeddings().weight
    np.save(arguments.folder / f"{arguments.method}-hidden.npy", hidden.grad.numpy())
    if head.grad is not None:
        np.save(arguments.folder / f"{arguments.method}-head.npy", head.grad.numpy())
    return {
        "extra_peak_gb": extra / 1e9,
        "tracked_peak_gb": tracked / 1e9,
        "head_gradient_gb": 0.0 if head.grad is None else head.grad.nbytes / 1e9,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def differences(folder: Path) -> dict[str, float]:
    """Largest absolute difference between the two methods' gradients, and the largest gradient."""
    found = {}
    for of in ("hidden", "head"):
        paths = [folder / f"{method}-{of}.npy" for method in METHODS]
        if paths[0].is_file():
            ours, naive = (np.load(path, mmap_mode="r") for path in paths)
            found[f"{of}_difference"] = float(max(np.abs(a - b).max() for a, b in zip(ours, naive, strict=True)))
            found[f"{of}_largest"] = float(max(np.abs(row).max() for row in naive))
    return found


def measure_case(case: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Both methods, each in a process of its own, and how far their gradients are apart."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, object] = {"case": case}
        for method in METHODS:
            command = [
                sys.executable, __file__, "--case", case, "--method", method, "--folder", folder,
                "--states", str(arguments.states), "--vocabulary", str(arguments.vocabulary),
                "--hidden", str(arguments.hidden),
            ]  # fmt: skip
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            results[method] = json.loads(done.stdout)
        return {**results, **differences(Path(folder))}


def print_table(results: list[dict[str, object]]) -> None:
    """One line a case and method."""
    print(f"{'head':8} {'method':6} {'extra peak':>10} {'less head grad':>14} {'allocated':>10} {'wall':>7} {'CPU':>7}")
    for result in results:
        for method in METHODS:
            row = cast(dict[str, float], result[method])
            less = row["extra_peak_gb"] - row["head_gradient_gb"]
            print(
                f"{result['case']:8} {method:6} {row['extra_peak_gb']:7.3f} GB {less:11.3f} GB "
                f"{row['tracked_peak_gb']:7.3f} GB {row['seconds']:5.1f} s {row['cpu_seconds']:5.1f} s"
            )
        for of in ("hidden", "head"):
            if f"{of}_difference" in result:
                print(
                    f"  gradient to the {of}: largest difference {result[f'{of}_difference']:.1e}, "
                    f"largest value {result[f'{of}_largest']:.1e}"
                )


def main() -> None:
    """Measure both cases and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", choices=("frozen", "trained"), help="only this one")
    parser.add_argument("--method", choices=METHODS, help="only this one, in this process")
    parser.add_argument("--folder", type=Path, help="where --method leaves its gradients")
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments)))
        return
    shape = {name: getattr(arguments, name) for name in ("states", "vocabulary", "hidden")}
    cases = [arguments.case] if arguments.case else ["frozen", "trained"]
    results = [measure_case(case, arguments) for case in cases]
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, **shape, "cases": results}, indent=2))
    else:
        print_table(results)


if __name__ == "__main__":
    main()
