"""Conversations to prompts, by the chat template of a checkpoint.

A message's content never becomes a control token. The template is rendered with the origin of every
character known (`trust.py`, `template.py`), and special tokens are looked for only in text that comes
from the template itself, from the tokenizer's own special tokens, or from the name of a known role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from llmcore.trust import Tracked, spans, trusted

__all__ = ["apply_chat_template", "render_chat"]

# The roles of published templates. Some spell a role's control token with its name, as in
# `'<|' + message['role'] + '|>'`; only these names may do so, else the role "end" would forge `<|end|>`.
_ROLES = frozenset(["system", "developer", "user", "assistant", "model", "tool", "function", "ipython"])

_Plain = None | bool | int | float | str | list["_Plain"] | dict[str, "_Plain"]


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja source, if the checkpoint has one."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def unk_token_id(self) -> int | None: ...
    def id_to_token(self, id: int, /) -> str | None:
        """The text of a token."""

    def encode_spans(self, spans: Sequence[tuple[str, bool]]) -> list[int]:
        """The ids of the joined texts, with special tokens only in those marked True."""


def apply_chat_template(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, object]],
    *,
    add_generation_prompt: bool = False,
    tokenize: bool = True,
    chat_template: str | None = None,
    **variables: object,
) -> list[int] | str:
    """The prompt of a conversation, as ids or as text.

    `messages` are dicts with a `role` and mostly a `content`; what else they hold (`tool_calls`, `name`) is
    the template's to use. `add_generation_prompt` ends the prompt with the opening of the assistant's
    answer. `chat_template` is Jinja source that replaces the checkpoint's.
    `variables` (`tools`, `documents`, `enable_thinking`, …) go to the template as they are.

    The text alone (`tokenize=False`) no longer tells control tokens from the same characters in a message;
    encode it as plain text, or ask for the ids.

    Raises:
        ValueError: there is no template, it does not run, or it refuses the conversation.
        TypeError: a message or variable holds something else than plain data.
    """
    text = render_chat(
        tokenizer,
        messages,
        add_generation_prompt=add_generation_prompt,
        chat_template=chat_template,
        **variables,
    )
    return tokenizer.encode_spans(spans(text)) if tokenize else str.__str__(text)


def render_chat(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, object]],
    *,
    add_generation_prompt: bool = False,
    chat_template: str | None = None,
    **variables: object,
) -> Tracked:
    """The text of `apply_chat_template`, which knows what of it the template wrote (:func:`spans`), and what
    the template marked as the assistant's (:func:`marks`). Raises as that does."""
    from llmcore import template

    source = chat_template or tokenizer.chat_template
    if not source:
        raise ValueError(
            "this model has no chat template; pass one as chat_template=, or write the prompt yourself"
        )
    context: dict[str, object] = {"tools": None, "documents": None}
    context |= _special_tokens(tokenizer)
    context |= {name: _plain(value, name) for name, value in variables.items()}
    context["messages"] = _conversation(messages)
    context["add_generation_prompt"] = bool(add_generation_prompt)
    return template.render(source, context)


def _special_tokens(tokenizer: ChatTokenizer) -> dict[str, str]:
    """`bos_token` and its like, as templates call them: the checkpoint's own text, and so trusted."""
    ids = {
        "bos_token": tokenizer.bos_token_id,
        "eos_token": tokenizer.eos_token_id,
        "pad_token": tokenizer.pad_token_id,
        "unk_token": tokenizer.unk_token_id,
    }
    tokens = {name: tokenizer.id_to_token(id) for name, id in ids.items() if id is not None}
    return {name: trusted(token) for name, token in tokens.items() if token is not None}


def _conversation(messages: Sequence[Mapping[str, object]]) -> list[_Plain]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: found {type(messages).__name__}, expected a list of dicts")
    conversation: list[_Plain] = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{index}]: found {type(message).__name__}, expected a dict")
        role = message.get("role")
        if not isinstance(role, str):
            raise ValueError(f"messages[{index}]: found {role!r} as the role, expected a string")
        plain = _plain(message, f"messages[{index}]")
        assert isinstance(plain, dict)
        if role in _ROLES:
            plain["role"] = trusted(role)
        conversation.append(plain)
    return conversation


def _plain(value: object, where: str) -> _Plain:
    """A copy of JSON-like data in exact types: no trust, and no methods that the sandbox does not know."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {
            str.__str__(key) if isinstance(key, str) else str(key): _plain(item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where}: found {type(value).__name__}, expected text, numbers, lists or dicts")
