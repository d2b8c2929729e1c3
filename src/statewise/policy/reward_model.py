"""A reward model: a sequence-classification checkpoint that reads a prompt and its answer and says a number in 0..1.

It reads text, by its own tokenizer and chat template, so it may be of any family. What is silently wrong elsewhere is
refused or avoided here: a head that would be random, a label that nobody chose, texts that are cut, and decoders, which
take the score at the last token that is not padding, batched without a padding token or with another than their own.
Departs from TRL's GRPOTrainer in the map to 0..1, in the special tokens of plain text ([CLS], begin-of-text), which
TRL leaves out, and in a padding token that the checkpoint lacks: TRL takes the end of text, and then scores a text that
ends with it one token early.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from statewise.errors import UsageError, unknown
from statewise.policy.check import CALL_ERRORS, HALF_TOLERANCE, TOLERANCES
from statewise.policy.device import choose_device, choose_dtype
from statewise.policy.find import REWARDER, count_parameters, read_header, weight_files
from statewise.policy.load import LOADING_ERRORS, NAMED_TOKENS, NOT_LOADED, check_folder, check_shapes, one_line
from statewise.policy.lora import num_parameters
from statewise.policy.rope import context_length
from statewise.tasks.conversations import ASSISTANT, USER, left_out_by, plain_text
from statewise.tasks.rewards import Asked

BATCH_TOKENS = 8192  # padding included
PROBE_LENGTHS = (7, 2, 4)
PROBE = "An answer."


@dataclass(frozen=True)
class Reading:
    """What a reward model is given and how its logits become a reward.

    `label`: the one that is rewarded; None where there is one alone. `span`: the logits that are reward 0 and 1; None
    for the label's probability. `is_chat`: prompt and answer are turns of its chat template, if it has one. `delimiter`
    stands between them where it has none; outside of a chat the answer brings it along.
    """

    label: str | None = None
    span: tuple[float, float] | None = None
    is_chat: bool = False
    delimiter: str = " "


@dataclass(frozen=True, eq=False)
class RewardModel:
    """The checkpoint in `folder`, which the study calls `name`; its weights are loaded when it is first asked.

    `device`, `dtype`: those of the study. `digest` of its files, by which a report tells models of one name apart.
    """

    name: str
    folder: Path
    reading: Reading = Reading()
    device: str = "auto"
    dtype: str = "auto"
    digest: str = ""

    def check(self) -> str:
        """Refuse what can be known to be wrong without the weights' numbers; returns what a reader must know of it.

        Raises:
            UsageError: no such checkpoint, one of another architecture or with code of its own, a head that is not
                stored, several labels and none chosen, or no context length; says which.
        """
        _check_files(self)
        if self._has_turns and PROBE not in self._text("?", PROBE):
            raise UsageError(f"reward model {self.name}: its chat template leaves out or changes the answer")
        return f"Reward model {self.name} ({type(self.shell).__name__}): {self._told_map}; it reads {self._told_text}"

    @property
    def told(self) -> str:
        """How its logits become a reward, in a few words, and which model it is."""
        return self._told_map + f" (sha256 {self.digest[:12]})" * bool(self.digest)

    @property
    def _told_map(self) -> str:
        rewarded = self.labels[self.place]  # of a single one, too: a label that is given must be there
        label = f"label {rewarded!r} of {self.name}" if len(self.labels) > 1 else self.name
        if self.reading.span:
            low, high = self.reading.span
            return f"the logit of {label}, {low:g} being 0 and {high:g} being 1, cut to 0..1"
        return f"{'sigmoid' if self._is_sigmoid else 'softmax'} of the logit of {label}"

    def score_all(self, asked: Sequence[tuple[Asked, str]]) -> tuple[list[float], float]:
        """The reward 0..1 of answers.

        Args:
            asked: prompts, or the turns of conversations, and an answer to each.

        Returns:
            A number each, which does not depend on the others; nan where the text is longer than its context or its
            logits are not finite. And the FLOPs of the forward passes.
        """
        rows = self.encode(asked)
        rewards = [math.nan] * len(rows)
        fitting = sorted((i for i, row in enumerate(rows) if len(row) <= self.context), key=lambda i: len(rows[i]))
        for batch in _batches(fitting, rows):
            logits = score_rows(self.model, self.pad_id, [rows[i] for i in batch])
            for i, reward in zip(batch, self.reward_of(logits).tolist(), strict=True):
                rewards[i] = reward
        num_tokens = sum(len(rows[i]) for i in fitting)
        return rewards, 2.0 * num_parameters(self.model) * num_tokens if num_tokens else 0.0

    def lengths(self, asked: Sequence[tuple[Asked, str]]) -> list[int]:
        """Tokens of each prompt with its answer."""
        return [len(row) for row in self.encode(asked)]

    def encode(self, asked: Sequence[tuple[Asked, str]]) -> list[list[int]]:
        """The tokens that it reads of prompts and answers, never cut."""
        if not asked:
            return []
        # A template writes special tokens itself.
        encoded = self.tokenizer(
            [self._text(*pair) for pair in asked], add_special_tokens=not self._has_turns, truncation=False,
            padding=False, verbose=False,
        )  # fmt: skip
        return [list(ids) for ids in encoded["input_ids"]]

    def reward_of(self, logits: Tensor) -> Tensor:
        """Logits [batch, labels] as rewards [batch], float64."""
        logits = logits.double()
        chosen = logits[:, self.place]
        if self.reading.span:
            low, high = self.reading.span
            return ((chosen - low) / (high - low)).clamp(0, 1)
        return chosen.sigmoid() if self._is_sigmoid else logits.softmax(-1)[:, self.place]

    @cached_property
    def tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except LOADING_ERRORS as error:
            raise UsageError(f"model folder {self.folder}: {NOT_LOADED}: {one_line(error)}") from error

    @cached_property
    def shell(self) -> PreTrainedModel:
        """The model without numbers."""
        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        except LOADING_ERRORS as error:
            raise UsageError(f"model folder {self.folder}: {NOT_LOADED}: {one_line(error)}") from error
        return model

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model with its weights, tried out."""
        self.check()
        device = choose_device(self.device)
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                self.folder, dtype=choose_dtype(self.dtype, device, self.folder), use_safetensors=True,
                local_files_only=True, trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
        except LOADING_ERRORS as error:
            raise UsageError(f"model folder {self.folder}: {NOT_LOADED}: {one_line(error)}") from error
        _refuse_missing(self.folder, report["missing_keys"])
        model.config.get_text_config().use_cache = False
        model.eval().requires_grad_(False).to(device)
        _check_batching(self, model)
        loaded: PreTrainedModel = model
        return loaded

    @cached_property
    def labels(self) -> list[str]:
        named = self.shell.config.id2label
        return [str(named.get(i, i)) for i in range(self.shell.config.num_labels)]

    @cached_property
    def place(self) -> int:
        """Of the rewarded label."""
        label, known = self.reading.label, self.labels
        if label is None and len(known) == 1:
            return 0
        told = f"[models.{self.name}]"
        if label is None:
            names = ", ".join(known[:NAMED_TOKENS]) + ", …" * (len(known) > NAMED_TOKENS)
            raise UsageError(f"{told}: the model has {len(known)} labels ({names}); say which is rewarded: label = …")
        if label not in known:
            raise unknown("label", label, known, told)
        if known.count(label) > 1:
            raise UsageError(
                f"{told}: the model has {known.count(label)} labels {label!r}; name them in its config.json"
            )
        return known.index(label)

    @cached_property
    def pad_id(self) -> int | None:
        """Of the checkpoint, at which its head looks; a negative one is none."""
        pad = self.shell.config.get_text_config().pad_token_id
        return None if pad is None or pad < 0 else int(pad)

    @cached_property
    def context(self) -> int:
        """Tokens of the longest text that it can read."""
        config = self.shell.config.get_text_config()
        if not isinstance(getattr(config, "max_position_embeddings", None), int):
            raise UsageError(
                f"model folder {self.folder}: config.json has no max_position_embeddings (the context length)"
            )
        # RoBERTa and its kin count positions from behind that of the padding.
        tables = [table for name, table in self.shell.named_modules() if name.endswith(".position_embeddings")]
        paddings = [table.padding_idx for table in tables if isinstance(table, torch.nn.Embedding)]
        taken = max((padding + 1 for padding in paddings if padding is not None), default=0)
        return min(context_length(config) - taken, int(self.tokenizer.model_max_length))

    @property
    def _is_sigmoid(self) -> bool:
        """As transformers' pipeline; the labels of a regression are no probabilities."""
        kind = self.shell.config.problem_type
        if kind == "regression" and len(self.labels) > 1:
            raise UsageError(
                f"[models.{self.name}]: its labels are those of a regression; say range = [logit of 0, of 1]"
            )
        return len(self.labels) == 1 or kind == "multi_label_classification"

    @property
    def _has_turns(self) -> bool:
        return self.reading.is_chat and bool(self.tokenizer.chat_template)

    @property
    def _told_text(self) -> str:
        if self._has_turns:
            return "the turns of a chat, through its own template"
        if self.reading.is_chat:
            return "prompt, delimiter and answer as plain text, since it has no chat template"
        has = "; its chat template is not used, since the study is no chat (shared.chat)"
        return "prompt and answer as plain text" + has * bool(self.tokenizer.chat_template)

    def _text(self, asked: Asked, answer: str) -> str:
        turns = [{"role": USER, "content": asked}] if isinstance(asked, str) else [*asked]
        if not self._has_turns:
            return plain_text(turns) + self.reading.delimiter * self.reading.is_chat + answer
        whole = [*turns, {"role": ASSISTANT, "content": answer}]
        try:
            rendered = str(self.tokenizer.apply_chat_template(whole, tokenize=False))
        except TemplateError as error:
            raise UsageError(f"reward model {self.name}: its chat template fails: {one_line(error)}") from error
        if turn := left_out_by(turns, rendered):
            left = f"{turn['role']}'s {turn['content'][:60]!r}"
            raise UsageError(f"reward model {self.name}: its chat template leaves out or changes the {left}")
        return rendered


def _check_files(reward: RewardModel) -> None:
    """Refuse a folder by its files: what it is called, what is stored, and of which shape."""
    folder, model = reward.folder, reward.shell
    if any(folder.glob("*.safetensors")):  # those of a plan that is only shown may be elsewhere
        check_folder(folder, REWARDER.auto_class)
        count_parameters(folder)  # refuses files that are not whole
    config, own = model.config, type(model).__name__
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"model folder {folder}: has an adapter beside it; merge it into the model first")
    if own not in (config.architectures or ()) or REWARDER.auto_class in (getattr(config, "auto_map", None) or {}):
        named = ", ".join(config.architectures or ["no architecture"])
        raise UsageError(
            f"model folder {folder}: is a {named} of its own code, which is never run; transformers has {own}"
        )
    if config.is_encoder_decoder:
        raise UsageError(f"model folder {folder}: {own} is an encoder-decoder, which is not understood; use another")
    stored = {name for path in weight_files(folder) for name in read_header(path)}
    head = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    _refuse_missing(folder, [name for name in head if stored and name not in stored])
    check_shapes(model, folder)


def _refuse_missing(folder: Path, names: Sequence[str]) -> None:
    if names:
        told = ", ".join(sorted(names)[:NAMED_TOKENS])
        raise UsageError(
            f"model folder {folder}: the weights lack {told}, which would be random; use a trained classifier"
        )


def _batches(order: Sequence[int], rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """`order`, shortest rows first, in parts of at most BATCH_TOKENS when they are padded, or of one row."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(rows[i]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_rows(model: PreTrainedModel, pad_id: int | None, rows: Sequence[Sequence[int]]) -> Tensor:
    """The logits [rows, labels] of texts, float32 on the CPU, padded on the right and masked.

    A head that looks for the last token that is no padding finds it by the checkpoint's own `pad_id`. Of one without
    (None) padding is a token that no text has, for this batch: so each text ends where it ends.
    """
    if pad_id is None:
        used = {token for row in rows for token in row}
        pad = next(token for token in range(len(used) + 1) if token not in used)
        if pad >= model.get_input_embeddings().weight.shape[0] and len(rows) > 1:
            return torch.cat([score_rows(model, None, [row]) for row in rows])
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    else:
        pad = pad_id
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    return logits.float().cpu()


def _check_batching(reward: RewardModel, model: PreTrainedModel) -> None:
    """Refuse a model of which a text has another score beside others than alone, or none at all."""
    size = int(model.get_input_embeddings().weight.shape[0])
    spread = [int(at) for at in torch.linspace(0, size - 1, sum(PROBE_LENGTHS) + 2)[1:-1]]
    rows = [[spread.pop() for _ in range(length)] for length in PROBE_LENGTHS]
    what = f"model folder {reward.folder}"
    try:
        together = score_rows(model, reward.pad_id, rows)
        alone = torch.cat([score_rows(model, reward.pad_id, [row]) for row in rows])
    except CALL_ERRORS as error:
        raise UsageError(f"{what}: {type(model).__name__} cannot be called: {one_line(error)}") from error
    if not bool(alone.isfinite().all()):
        raise UsageError(f"{what}: its logits are not numbers; the weights are damaged")
    bound = TOLERANCES.get(model.dtype, HALF_TOLERANCE) * (1 + alone.abs().max().item())
    if (off := (together - alone).abs().max().item()) > bound:
        raise UsageError(
            f"{what}: {type(model).__name__} scores a text otherwise beside others than alone ({off:.2g} off)"
        )
