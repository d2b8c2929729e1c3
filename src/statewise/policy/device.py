"""Where a model computes and in which precision. A setting that this machine cannot keep is refused, never replaced."""

from __future__ import annotations

from pathlib import Path

import torch

from statewise.errors import UsageError, unknown
from statewise.policy.find import count_parameters

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16")
HALF = ("BF16", "F16")
# Below it, float32 costs less than a GB, and a CPU is faster at it.
LARGE_PARAMETERS = 200e6


def choose_device(setting: str) -> torch.device:
    """The device of a setting; "auto": a GPU where there is one.

    Raises:
        UsageError: an unknown setting, or "cuda" where torch sees no GPU.
    """
    if setting not in DEVICES:
        raise unknown("device", setting, DEVICES)
    has_gpu = torch.cuda.is_available()
    if setting == "cuda" and not has_gpu:
        raise UsageError(
            'device "cuda": torch sees no GPU on this machine (none there, no driver, or a torch built for the CPU); '
            'use "cpu", or "auto" to take a GPU where there is one'
        )
    return torch.device("cuda" if has_gpu and setting != "cpu" else "cpu")


def choose_dtype(setting: str, device: torch.device, folder: Path) -> torch.dtype:
    """The precision of weights and activations; log-probabilities and losses are float32 in any case.

    "auto" never adds precision that a checkpoint does not have, nor takes any away: bfloat16 for a checkpoint in half
    precision, on a GPU that computes in it, or on a CPU from 200 M parameters on; float32 else.

    Args:
        setting: "auto", "float32" or "bfloat16".
        device: where the model goes.
        folder: of the model, whose weights say their size and precision.

    Raises:
        UsageError: an unknown setting, or "bfloat16" on a GPU that does not compute in it.
    """
    if setting not in DTYPES:
        raise unknown("dtype", setting, DTYPES)
    is_supported = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "bfloat16" and not is_supported:
        raise UsageError('dtype "bfloat16": this GPU does not compute in it; use "float32"')
    if setting != "auto":
        return torch.bfloat16 if setting == "bfloat16" else torch.float32
    counts = count_parameters(folder)
    num_parameters = sum(counts.values())
    is_half = sum(counts.get(kind, 0) for kind in HALF) > num_parameters / 2
    is_large = device.type == "cuda" or num_parameters >= LARGE_PARAMETERS
    return torch.bfloat16 if is_half and is_large and is_supported else torch.float32
