"""Texts of a policy: into tokens as training and evaluation need them, back, and through its chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jinja2 import TemplateError

from statewise.errors import UsageError
from statewise.policy.load import Policy


def encode(policy: Policy, text: str) -> tuple[int, ...]:
    """The tokens of `text`; no special token is added."""
    return encode_all(policy, [text])[0]


def encode_all(policy: Policy, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """`encode` of many texts at once."""
    if not texts:
        return []
    encoded = policy.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    return [tuple(ids) for ids in encoded["input_ids"]]


def encode_start(policy: Policy, text: str) -> tuple[int, ...]:
    """The tokens of a text that stands at the start of a sequence; () if it has none.

    As lm-eval's HFLM: begin-of-text comes first where the tokenizer adds one (Llama, Gemma; not Qwen, SmolLM), unless
    `text` brings it along, as a chat template does. What a tokenizer would add at the end is left out.
    """
    return encode_starts(policy, [text])[0]


def encode_starts(policy: Policy, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """`encode_start` of many texts at once."""
    begin = policy.begin_token_ids
    rows = encode_all(policy, texts)
    return [ids if ids[: len(begin)] == begin else (*begin, *ids) for ids in rows]


def encode_prompt(policy: Policy, text: str) -> tuple[int, ...]:
    """The tokens that an answer to `text` is sampled from, in training and in evaluation alike; never ()."""
    return encode_start(policy, text) or (policy.prefix_token_id,)


def tokens_after(policy: Policy, start: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens of a text as they stand in the joined text, after those of its prompt.

    Tokenizers that put a space before every text (Llama 1 and 2, Mistral) or join letters into words give other tokens
    to the text alone. As lm-eval's `_encode_pair`, save that spaces at the end of a prompt, which lm-eval counts to the
    text, stay with the prompt: sampling starts behind them.

    Args:
        policy: whose tokenizer it is.
        start: `encode_start` of the prompt.
        whole: `encode_start` of prompt and text.

    Raises:
        UsageError: a token lies across the border, so that no answer to the prompt could be written in these tokens.
    """
    if whole[: len(start)] == start:
        return whole[len(start) :]
    place = next(i for i, token in enumerate(start) if whole[i : i + 1] != (token,))
    alone, joined = (policy.tokenizer.decode(list(ids)) for ids in (start[place:], whole[place : place + 1]))
    raise UsageError(
        f"{alone!r} at the end of the prompt is one token with the text that follows ({joined!r}), so nothing that is "
        "sampled from the prompt has the tokens of the joined text; end doc_to_text before it and begin "
        "target_delimiter with it"
    )


def chat_of(policy: Policy) -> Callable[..., str]:
    """The tokenizer's chat template, called as lm-eval calls it: `(messages, add_generation_prompt=True) -> text`.

    As in HFLM, a template that knows no system role gets the messages without it; with `drops_system=False`, none does.

    Raises:
        UsageError: the tokenizer has no chat template; from what is returned, one that refuses the messages.
    """
    if not policy.tokenizer.chat_template:
        raise UsageError(
            f"{policy.name!r} has no chat template: it is a base model, or its folder lacks chat_template.jinja; "
            "leave out --chat (shared.chat), or use the instruct model"
        )

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True, *, drops_system: bool = True) -> str:
        settings = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(policy.tokenizer.apply_chat_template(messages, **settings))
        except TemplateError as error:
            if not drops_system:
                raise UsageError(f"the chat template of {policy.name!r} refuses the turns: {error}") from None
            kept = [message for message in messages if message["role"] != "system"]
            return str(policy.tokenizer.apply_chat_template(kept, **settings))

    return render


def check_chat_end(policy: Policy) -> None:
    """Refuse a policy whose gold texts would not end as its chat template ends a turn: it would never learn to stop.

    Raises:
        UsageError: the template closes the assistant's turn with another token than `end_token_id`.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "zq"}]
    closing = str(policy.tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("zq")[2].lstrip()
    first = encode(policy, closing)[:1]
    if first and first[0] in policy.tokenizer.all_special_ids and first[0] != policy.end_token_id:
        token = policy.tokenizer.convert_ids_to_tokens(first[0])
        raise UsageError(
            f"the chat template of {policy.name!r} ends a turn with {token}, gold texts would end with "
            f"{policy.tokenizer.convert_ids_to_tokens(policy.end_token_id)}; set shared.end_of_text = {token!r}"
        )


def decode(policy: Policy, ids: Sequence[int]) -> str:
    """The text of `ids`, without end-of-text tokens; other special tokens are shown and spaces left as they are."""
    return decode_all(policy, [ids])[0]


def decode_all(policy: Policy, rows: Sequence[Sequence[int]]) -> list[str]:
    """`decode` of many rows at once."""
    ends = set(policy.end_token_ids)
    kept = [[int(token) for token in ids if int(token) not in ends] for ids in rows]
    texts: list[str] = policy.tokenizer.batch_decode(kept, clean_up_tokenization_spaces=False)
    return texts
