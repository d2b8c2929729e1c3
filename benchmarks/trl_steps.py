"""One optimiser step of TRL's trainers on states that statewise made: what `side_by_side` and `gpu` compare with.

A trainer is built as for a training, but its batch is given: for GRPO and distillation, which would write rollouts of
their own, the rollouts of the statewise arm. Its loss, backward pass, clip and AdamW are TRL's and transformers'.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from statewise.batch import States
from statewise.policy.load import Policy

GROUP = 4


def trl_step(
    cell: str, policy: Policy, states: States, folder: Path, *, rank: int | None = None, is_mixed: bool = False
) -> Callable[[], float]:
    """A function that takes one step of `cell` (sft, opd, rl) on all rows at once and returns the loss, nats.

    Args:
        cell: which trainer.
        policy: fresh from its folder; changed in place. All weights are trained in float32, as in statewise.
        states: the batch.
        folder: of the model, from which the teacher of opd is loaded.
        rank: of a LoRA on every linear layer; None: all weights.
        is_mixed: bfloat16 autocast over float32 weights, TRL's default on a GPU.
    """
    model, device = policy.model, policy.device
    lora = None if rank is None else LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    if lora is None:
        model.float()
    settings = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": len(states.lengths), "max_steps": 10_000,
        "lr_scheduler_type": "constant", "learning_rate": 1e-5, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "report_to": [], "save_strategy": "no", "logging_strategy": "no", "activation_checkpointing": False,
        "bf16": is_mixed, "use_cpu": device.type == "cpu", "disable_tqdm": True,
    }  # fmt: skip
    common = {"model": model, "processing_class": policy.tokenizer, "peft_config": lora}
    prompts = datasets.Dataset.from_list([{"prompt": str(row)} for row in range(len(states.lengths))])
    if cell == "sft":
        rows = [
            {"input_ids": row[:length].tolist()} for row, length in zip(states.token_ids, states.lengths, strict=True)
        ]
        config = SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(**common, args=config, train_dataset=datasets.Dataset.from_list(rows))
        batch = _documents(states, device)
    elif cell == "rl":
        config = GRPOConfig(**settings, num_generations=GROUP, beta=0.0, loss_type="grpo", temperature=1.0)
        trainer = GRPOTrainer(**common, reward_funcs=lambda **_: [], args=config, train_dataset=prompts)
        batch = _rollouts(states, policy.end_token_id, device)
    else:
        teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, local_files_only=True).to(device)
        config = DistillationConfig(**settings, beta=1.0, temperature=1.0)
        trainer = DistillationTrainer(**common, teacher_model=teacher, args=config, train_dataset=prompts)
        batch = _rollouts(states, policy.end_token_id, device)
    trainer._prepare_inputs = lambda inputs: inputs  # it would move the batch, or write rollouts
    trainer.current_gradient_accumulation_steps = 1  # `train` would set it
    trainer.model = trainer.accelerator.prepare_model(trainer.model)
    trainer.create_optimizer()
    num_items = torch.tensor(states.num_states, device=device)

    def step() -> float:
        loss = trainer.training_step(trainer.model, dict(batch), num_items)
        torch.nn.utils.clip_grad_norm_([p for p in trainer.model.parameters() if p.requires_grad], 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return float(loss)

    return step


def _documents(states: States, device: torch.device) -> dict[str, torch.Tensor]:
    """Right-padded rows with the labels of the trained states, as TRL's collator makes them."""
    columns = np.arange(states.token_ids.shape[1])
    tensors = {
        "input_ids": states.token_ids,
        "attention_mask": (columns < states.lengths[:, None]).astype(np.int64),
        "labels": np.where(states.action_mask, states.token_ids, -100),
    }
    return {name: torch.from_numpy(values).to(device) for name, values in tensors.items()}


def _rollouts(states: States, pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right."""
    prompts, answers = [], []
    for row, (length, prompt_length) in enumerate(zip(states.lengths, states.prompt_lengths, strict=True)):
        ids = torch.from_numpy(states.token_ids[row, :length])
        prompts.append(ids[:prompt_length])
        answers.append(ids[prompt_length:])

    def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        pad_all = torch.nn.utils.rnn.pad_sequence
        ids = pad_all(rows, batch_first=True, padding_value=pad, padding_side=side)
        mask = pad_all([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        return ids.to(device), mask.to(device)

    prompt_ids, prompt_mask = padded(prompts, "left")
    completion_ids, completion_mask = padded(answers, "right")
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
        "completion_ids": completion_ids, "completion_mask": completion_mask,
        "advantages": torch.from_numpy(np.nan_to_num(states.advantages)).to(device),
        "num_items_in_batch": torch.tensor(float(states.num_states), device=device),
    }  # fmt: skip
