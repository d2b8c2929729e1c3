"""Low-rank adapters (LoRA, arXiv:2106.09685) through peft: several policies on one set of base weights.

A model can carry adapters of several names; each policy says which one is its own, and `active` switches to it for the
time of a forward pass. A learner that trains an adapter, its teacher (another adapter) and the base model (none) thus
share the large weights. Adapters are stored in peft's own format, without being merged, since merging into bfloat16
weights would round most of what was learned away.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from statewise.errors import UsageError
from statewise.policy.load import NO_ADAPTER, Policy
from statewise.storage import records
from statewise.storage.parsing import parse_json
from statewise.storage.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from peft import LoraConfig  # two seconds, which only an adapter should cost
    from peft.tuners.lora import LoraLayer

STORED_PREFIX = "base_model.model."  # what peft puts before a parameter's name in adapter_model.safetensors


def lora_layers(model: PreTrainedModel) -> list[LoraLayer]:
    """The layers of `model` that carry adapters."""
    return list(_adapted(model).values())


def _adapted(model: PreTrainedModel) -> dict[str, LoraLayer]:
    """By full name; a model that carries adapters has them from peft, so that without peft there are none."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def num_parameters(model: PreTrainedModel) -> int:
    """Parameters of the model itself, whatever adapters it carries."""
    return sum(p.numel() for name, p in model.named_parameters() if ".lora_A." not in name and ".lora_B." not in name)


@contextmanager
def active(policy: Policy) -> Iterator[None]:
    """The policy's own adapter, and no other, is on inside; a policy that names none runs as its model rests."""
    layers = lora_layers(policy.model) if policy.adapter is not None else []
    before = [layer.active_adapters for layer in layers]
    names = [] if policy.adapter == NO_ADAPTER else [policy.adapter]
    for layer in layers:
        _switch(layer, names)
    try:
        yield
    finally:
        for layer, rested in zip(layers, before, strict=True):
            _switch(layer, rested)


def _switch(layer: Any, names: list[Any]) -> None:
    # Not peft's set_adapter: that one also decides which weights get gradients, and takes no empty list.
    layer._active_adapter = names


def add_adapter(model: PreTrainedModel, name: str, rank: int, alpha: float, seed: int) -> dict[str, torch.nn.Parameter]:
    """Add an adapter to every linear layer of the decoder, in place; the model computes what it did.

    A is random from `seed`, B zero. The adapter is float32 whatever the model is: updates of a well-chosen size would
    vanish in bfloat16. It becomes the one the model rests in, and its weights the only ones with gradients.

    Returns:
        Its parameters by name.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(_linear_names(model)), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)  # the CPU's alone: `torch.manual_seed` seeds a GPU's as well
        _inject(config, model, name)
    added = _parameters(model, name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in added.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return added


def _inject(config: LoraConfig, model: PreTrainedModel, name: str) -> None:
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        # peft warns of tied embeddings even where no embedding is a target, of a second adapter, which is wanted, and
        # of `Conv1D` (GPT-2), whose transposed weights it then reads as it should.
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        inject_adapter_in_model(config, model, adapter_name=name)


def _parameters(model: PreTrainedModel, adapter: str) -> dict[str, torch.nn.Parameter]:
    return {
        name: p
        for name, p in model.named_parameters()
        if f".lora_A.{adapter}." in name or f".lora_B.{adapter}." in name
    }


def _without_name(key: str, adapter: str) -> str:
    """A parameter's name as peft stores it, without the adapter's."""
    return key.replace(f".lora_A.{adapter}.", ".lora_A.").replace(f".lora_B.{adapter}.", ".lora_B.")


def _linear_names(model: PreTrainedModel) -> set[str]:
    """Full names of the decoder's linear layers (GPT-2: `Conv1D`); without the head, as in peft's "all-linear"."""
    carried = {id(layer.get_base_layer()): name for name, layer in _adapted(model).items()}
    inside = tuple(f"{name}." for name in carried.values())
    head = model.get_output_embeddings()
    plain = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head and not name.startswith(inside)
    }
    return plain | set(carried.values())


def save_adapter(policy: Policy, name: str, folder: Path, base: str) -> Path:
    """Write adapter `name` of the policy's model to `folder` as peft stores it; same weights, same bytes.

    Args:
        policy: whose model carries the adapter.
        name: of the adapter.
        folder: replaced as a whole.
        base: name or folder of the base model, which the adapter is nothing without.

    Returns:
        The file of the weights.
    """
    config: dict[str, Any] = policy.model.peft_config[name].to_dict()
    config |= {
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }
    tensors = {
        STORED_PREFIX + _without_name(key, name): p.detach().contiguous().cpu()
        for key, p in _parameters(policy.model, name).items()
    }
    with records.replacing_folder(folder) as written:
        save_file(tensors, written / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        records.write_json(written / ADAPTER_CONFIG, config)
        policy.tokenizer.save_pretrained(written)
    return folder / ADAPTER_WEIGHTS


def load_adapter(model: PreTrainedModel, folder: Path, name: str) -> None:
    """Add the stored adapter of `folder` to `model` under `name`, in place, without gradients.

    Raises:
        UsageError: the folder holds no adapter, or one that was not made for this model.
    """
    from peft import LoraConfig

    try:
        config = parse_json((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        wanted = LoraConfig(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=config["target_modules"])
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise UsageError(f"adapter folder {folder}: cannot be read ({type(error).__name__}: {error})") from error
    base = config.get("base_model_name_or_path")
    try:
        _inject(wanted, model, name)
    except ValueError as error:
        raise UsageError(
            f"adapter folder {folder}: no adapter of this model ({error}); its base model is {base}"
        ) from error
    parameters = _parameters(model, name)
    stored = {_without_name(key, name): key for key in parameters}
    fits = {STORED_PREFIX + key: parameters[full].shape for key, full in stored.items()}
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if fits != found:
        key = min(key for key in fits.keys() | found.keys() if fits.get(key) != found.get(key))
        raise UsageError(
            f"adapter folder {folder}: its weights are not those that its r and target_modules make on this model "
            f"({key}: {_shape(found.get(key))} stored, {_shape(fits.get(key))} expected); its base model is {base}, "
            "and only linear layers are adapted"
        )
    for key, full in stored.items():
        parameters[full].data = tensors[STORED_PREFIX + key].float().to(model.device)
        parameters[full].requires_grad_(False)


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def merge_adapters(model: PreTrainedModel) -> None:
    """Make `model`, in place, a plain float32 one: B A · alpha / rank of its active adapter is added to its weights."""
    model.float()
    layers: dict[str, Any] = {**_adapted(model)}
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
