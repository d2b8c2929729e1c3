"""A policy: a causal language model with its tokenizer, loaded from and saved to a folder of open formats.

Learner, teacher and base are all a `Policy`. Weights are safetensors only and no code of a model is ever run (that of
the tasks beside it: `tasks.task_file`).
What other rooms rely on is checked here, once: an end-of-text token, and what `policy.check` asks of a model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from statewise.errors import UsageError
from statewise.policy.find import DECODER, count_parameters, read_header, weight_files
from statewise.policy.rope import context_length
from statewise.storage.records import replacing_folder

NO_ADAPTER = ""
LOADING_NOTES = ("is_local", "local_files_only")  # transformers saves how a tokenizer was loaded as if it were its own
# What transformers and safetensors raise on a folder that they cannot read; each of them is about what is in it.
LOADING_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError)
NOT_LOADED = "transformers cannot load it (its own code is never run)"
NAMED_TOKENS = 12  # in an error; some tokenizers have hundreds of special tokens


@dataclass(frozen=True)
class Policy:
    """A causal language model, its tokenizer and the tokens that end a text.

    `name` is what records call it as the writer of tokens, e.g. "learner". `end_token_id` is written at the end of gold
    text; a rollout stops at it or at one of `other_end_ids`, with which the checkpoint may end a text as well.
    `vocab_size` is the tokenizer's: models pad theirs to round sizes, and logits beyond it belong to no token.
    `adapter` names the adapter that makes this policy of a model that carries several (`policy.lora`): "" for none of
    them, None for the one it rests in.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    end_token_id: int
    other_end_ids: tuple[int, ...] = ()
    adapter: str | None = None

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token at which a rollout stops; the first is the one of gold text."""
        return (self.end_token_id, *self.other_end_ids)

    @cached_property
    def vocab_size(self) -> int:
        return 1 + max(int(token) for token in self.tokenizer.get_vocab().values())

    @cached_property
    def begin_token_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of a text by itself: begin-of-text in some families, nothing in most."""
        plain = self.tokenizer.encode("a", add_special_tokens=False)
        whole = self.tokenizer.encode("a", add_special_tokens=True)
        start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return tuple(whole[:start])

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a prompt: begin-of-text where the tokenizer has it, as in HFLM."""
        begin = self.tokenizer.bos_token_id
        return self.end_token_id if begin is None else int(begin)

    @property
    def context_length(self) -> int:
        """Tokens of the longest text that has one law from start to end."""
        return context_length(self.model.config.get_text_config())

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)


@contextmanager
def eval_mode(policy: Policy) -> Iterator[None]:
    """Dropout off inside; afterwards every module is in the mode it was in (a frozen part may differ from the rest)."""
    modes = [(module, module.training) for module in policy.model.modules()]
    policy.model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def load_policy(
    folder: Path | str,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    end_of_text: str | None = None,
) -> Policy:
    """Load a model folder in evaluation mode, offline, without running any code of it.

    Args:
        folder: a folder with `config.json`, `*.safetensors` and a tokenizer.
        name: the writer's name in records.
        dtype: of the weights in memory.
        device: where they go.
        end_of_text: the token that ends gold text, where it is not the tokenizer's own (for a base model that shall
            learn from an instruct model, e.g. "<|im_end|>"). A model saved later keeps it.

    Raises:
        UsageError: folder, configuration, weights or tokenizer missing or unusable; the message says which and why.
    """
    folder = Path(folder)
    check_folder(folder)
    count_parameters(folder)  # refuses files that are not whole, in words of their own
    try:
        # A tokenizer that merely names itself is no reason to run code either, so both loads refuse remote code.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        raise UsageError(f"model folder {folder}: {NOT_LOADED}: {one_line(error)}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise UsageError(
            f"model folder {folder}: the weights lack {len(report['missing_keys'])} tensors that config.json asks for "
            f"({missing}); they would be random. Use the checkpoint that belongs to this config.json."
        )
    for key in LOADING_NOTES:
        tokenizer.init_kwargs.pop(key, None)
    end, *others = _find_ends(folder, tokenizer, model.generation_config.eos_token_id, end_of_text)
    if end_of_text is not None:
        tokenizer.eos_token = end_of_text
    model.eval().to(device)
    policy = Policy(model, tokenizer, name, end, tuple(others))
    from statewise.policy.check import check_model  # it samples and scores, which is built on this file

    check_model(policy, folder)
    return policy


def load_without_weights(folder: Path, name: str, end_of_text: str | None = None) -> Policy:
    """A policy that encodes and decodes texts and knows its context, with a model that holds no numbers.

    Its parameters are on torch's meta device: a plan is checked with the code that a run uses, in a second and without
    the weights' memory.

    Raises:
        UsageError: configuration or tokenizer missing, unusable or not understood (`policy.check`).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except LOADING_ERRORS as error:
        raise UsageError(f"model folder {folder}: {NOT_LOADED}: {one_line(error)}") from error
    end, *others = _find_ends(folder, tokenizer, model.generation_config.eos_token_id, end_of_text)
    policy = Policy(model, tokenizer, name, end, tuple(others))
    from statewise.policy.check import check_config  # it samples and scores, which is built on this file

    check_config(policy, folder)
    check_shapes(policy.model, folder)
    return policy


def check_shapes(model: PreTrainedModel, folder: Path) -> None:
    """Refuse stored weights of other shapes than config.json asks for, without reading them."""
    wanted = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    for path in weight_files(folder) if any(folder.glob("*.safetensors")) else []:
        for name, tensor in read_header(path).items():
            if wanted.get(name, tensor["shape"]) != tensor["shape"]:
                raise UsageError(
                    f"{path}: {name} has the shape {tensor['shape']}, config.json asks for {wanted[name]}; use the "
                    "config.json that belongs to these weights"
                )


def one_line(error: BaseException) -> str:
    """An error of a library's, as a part of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _find_ends(
    folder: Path, tokenizer: PreTrainedTokenizerBase, named: int | list[int] | None, end_of_text: str | None
) -> list[int]:
    """The tokens that end a text: `end_of_text` or the tokenizer's own first, then all at which `generate` stops.

    `named` is what transformers made of generation_config.json or, where there is none, of config.json.
    """
    vocabulary = tokenizer.get_vocab()
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if end_of_text is not None:
        if end_of_text not in vocabulary:
            raise UsageError(
                f"model folder {folder}: end_of_text {end_of_text!r} is not a single token of its vocabulary; its "
                f"special tokens are {', '.join(tokenizer.all_special_tokens[:NAMED_TOKENS])}"
            )
        ends.insert(0, int(vocabulary[end_of_text]))
    if not ends:
        raise UsageError(
            f"model folder {folder}: the tokenizer has no end-of-text token, so a rollout could never stop by itself; "
            'set "eos_token" in tokenizer_config.json, or end_of_text, to the token that ends the training documents'
        )
    ends += [int(end) for end in (named if isinstance(named, list) else [named]) if end is not None]
    # An id that is no token's (some configurations keep the default of another family) cannot be drawn.
    tokens = set(vocabulary.values())
    return [end for end in dict.fromkeys(ends) if end in tokens]


def check_folder(folder: Path, auto_class: str = DECODER.auto_class) -> None:
    """Refuse a folder without config.json or safetensors; `auto_class`: of transformers, which could write them."""
    if not folder.is_dir():
        raise UsageError(
            f"model folder {folder} does not exist; give the path of a downloaded model "
            "(a folder with config.json, *.safetensors and a tokenizer)"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"model folder {folder} has no config.json, so it is not a model; give the folder that holds it"
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    found = f"only {', '.join(pickles)}, and pickle is never read (loading it can run any code). " if pickles else ""
    raise UsageError(
        f"model folder {folder} has no *.safetensors: {found}Use a copy of the model that has them, or convert this "
        f"one where you trust it: {auto_class}.from_pretrained(folder).save_pretrained(new_folder)"
    )


def check_same_tokenizer(student: Policy, teacher: Policy) -> None:
    """Refuse a pair whose tokens do not mean the same. Vocabularies may be padded to different sizes.

    Raises:
        UsageError: the vocabularies differ, or the teacher ends texts with a token that does not end the student's.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        raise UsageError(
            f"{student.name!r} and {teacher.name!r} have different tokenizers ({len(ours)} and {len(theirs)} tokens; "
            f"{len(differing)} differ, e.g. {differing[0]!r}), so their token laws cannot be compared; "
            "use a teacher of the same model family"
        )
    strange = [end for end in teacher.end_token_ids if end not in student.end_token_ids]
    if strange:
        token = student.tokenizer.convert_ids_to_tokens(strange[0])
        known = ", ".join(student.tokenizer.convert_ids_to_tokens(list(student.end_token_ids)))
        raise UsageError(
            f"{teacher.name!r} may end a text with token {strange[0]} ({token}), {student.name!r} stops at {known} "
            f"alone: it would learn to write {token} and go on, never to stop. Set end_of_text = {token!r} for "
            f"{student.name!r}, or use a teacher that ends its texts as the student does"
        )


def copy_policy(policy: Policy, name: str) -> Policy:
    """A policy of its own weights (equal now, independent later), e.g. a teacher frozen at the start."""
    return replace(policy, model=copy.deepcopy(policy.model), name=name)


def save_weights(policy: Policy, folder: Path | str) -> None:
    """Write `folder` (config, tokenizer, safetensors) as a whole, replacing an earlier one; same weights, same bytes.

    Raises:
        UsageError: the model carries an unmerged adapter, whose weights a plain model folder cannot hold.
    """
    folder = Path(folder)
    if any(".base_layer." in key for key, _ in policy.model.named_parameters()):
        raise UsageError(f"cannot write {folder}: {policy.name!r} carries an adapter; merge it into the weights first")
    # Whoever loads the folder, transformers' own `generate` included, stops where this policy stops.
    ends = list(policy.end_token_ids)
    policy.model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    with replacing_folder(folder) as written:
        policy.model.save_pretrained(written)
        policy.tokenizer.save_pretrained(written)
