"""One update of TRL's real SFTTrainer and GRPOTrainer on the pocket model, in a process of its own.

    python tests/trl_fixture.py FOLDER

writes for every case `<case>.safetensors` (weights after the update), `<case>-gradient.safetensors` (what AdamW was
given, clipped) and, for the GRPO cases, the old log-probabilities; `logged.json` has TRL's loss and gradient norm.
Importing TRL takes half a minute and changes transformers' classes, hence the process.

GRPO gets its completions by TRL's own `rollout_func`; the old log-probabilities, which it would take from its own
model, are put into what `_generate_and_score_completions` returns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

POCKET = Path(__file__).parents[1] / "src" / "statewise" / "assets" / "pocket"
GROUP = 4
MAX_COMPLETION = 64  # the constant length of dr_grpo
# So large a decay tells after one update which weights it spares: a gain of 1 would lose lr · 20 = 2e-3.
SETTINGS = {"lr": 1e-4, "betas": (0.8, 0.95), "weight_decay": 20.0, "clip_norm": 0.5}
EPSILON = 0.2  # of the clipped ratio
LOSS_TYPES = ("grpo", "dr_grpo")

# Prompts of one length: TRL pads them on the left, and rotary angles of shifted positions would be rounded otherwise.
TEXTS = (
    (
        "Question: Tom has 8 boxes with 14 pens each. How many pens does Tom have now?\nAnswer:",
        (
            " He has 8*14=<<8*14=112>>112 pens.\nHe has 112 pens.\n#### 112",
            " He has 8*14=<<8*14=102>>102 pens.\n#### 102",
            " He has 28 pens.\n#### 28",
            " 36",
        ),
    ),
    (
        "Question: Ida has 5 boxes with 25 pens each. How many pens does Ida have now?\nAnswer:",
        (
            " She has 5*25=<<5*25=125>>125 pens.\n#### 125",
            " She has 5+25=<<5+25=30>>30 pens.\n#### 30",
            " She has 25 pens.\nShe has 5 boxes.\n#### 5",
            " She has 125 pens.\n#### 125",
        ),
    ),
)


def make_rows():
    """(prompt ids, completion ids), groups of four answers of unequal lengths to one prompt each."""
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    return [
        (tokenizer.encode(prompt).ids, tokenizer.encode(completion).ids)
        for prompt, completions in TEXTS
        for completion in completions
    ]


def reward(completion_ids):
    """The share of even tokens."""
    return sum(int(token) % 2 == 0 for token in completion_ids) / len(completion_ids)


def plain_logprobs(model, prompt, completion):
    """Log-probabilities of the completion by the plain model, one row alone."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


def main(folder):
    import datasets
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    rows = make_rows()
    logged = {}

    def load_model():
        return AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)

    noise = torch.Generator().manual_seed(0)
    model = load_model().eval()
    old = [plain_logprobs(model, *row) for row in rows]
    old = [logprobs + 0.3 * torch.randn(len(logprobs), generator=noise) for logprobs in old]
    save_file({str(i): logprobs for i, logprobs in enumerate(old)}, folder / "old_logprobs.safetensors")
    old = torch.nn.utils.rnn.pad_sequence(old, batch_first=True)

    class KeepGradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            self.gradient = {name: p.grad.clone() for name, p in model.named_parameters()}

    def update(case, trainer):
        keep = KeepGradient()
        trainer.add_callback(keep)
        trainer.train()
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        save_file(weights, folder / f"{case}.safetensors")
        save_file(keep.gradient, folder / f"{case}-gradient.safetensors")
        logged[case] = {key: trainer.state.log_history[0][key] for key in ("loss", "grad_norm")}

    common = {
        "output_dir": str(folder / "trainer"), "per_device_train_batch_size": len(rows), "max_steps": 1,
        "learning_rate": SETTINGS["lr"], "lr_scheduler_type": "constant", "optim": "adamw_torch",
        "adam_beta1": SETTINGS["betas"][0], "adam_beta2": SETTINGS["betas"][1], "adam_epsilon": 1e-8,
        "weight_decay": SETTINGS["weight_decay"], "max_grad_norm": SETTINGS["clip_norm"], "use_cpu": True,
        "report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "bf16": False,
        "activation_checkpointing": False,
    }  # fmt: skip

    documents = [
        {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}
        for prompt, completion in rows
    ]
    config = SFTConfig(**common, completion_only_loss=True, max_length=None)
    data = datasets.Dataset.from_list(documents)
    update("sft", SFTTrainer(model=load_model(), args=config, train_dataset=data, processing_class=tokenizer))

    class FixedOldLogprobs(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            assert "old_per_token_logps" not in output
            return {**output, "old_per_token_logps": old}

    def roll_out(prompts, trainer):
        assert prompts == [str(i // GROUP) for i in range(len(rows))]
        return {
            "prompt_ids": [prompt for prompt, _ in rows],
            "completion_ids": [completion for _, completion in rows],
            "logprobs": old.tolist(),
        }

    def rewards(completion_ids, **kwargs):
        return [reward(ids) for ids in completion_ids]

    for loss_type in LOSS_TYPES:
        config = GRPOConfig(
            **common, num_generations=GROUP, max_completion_length=MAX_COMPLETION, shuffle_dataset=False, beta=0.0,
            loss_type=loss_type, scale_rewards="group" if loss_type == "grpo" else "none", epsilon=EPSILON,
            temperature=1.0,
        )  # fmt: skip
        data = datasets.Dataset.from_list([{"prompt": str(i)} for i in range(len(rows) // GROUP)])
        update(loss_type, FixedOldLogprobs(
            model=load_model(), reward_funcs=rewards, args=config, train_dataset=data, processing_class=tokenizer,
            rollout_func=roll_out,
        ))  # fmt: skip
    (folder / "logged.json").write_text(json.dumps(logged), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
