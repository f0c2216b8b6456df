"""Text to token ids and back.

:class:`Tokenizer` reads the tokenizer of a `.gguf` file. Rust does the work (`rust/bpe/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, overload

from llmcore import _core

__all__ = ["Tokenizer"]


class Tokenizer(_core.Tokenizer):
    """A tokenizer. Immutable but for :attr:`chat_template`; threads may share it.

    `chat_template` is the Jinja template that the file holds, or None.
    """

    chat_template: str | None

    def __init__(self, path: str | PathLike[str]) -> None:
        self.chat_template = self.embedded_chat_template

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Tokenizer:
        """The tokenizer of a file.

        Raises `FileNotFoundError` if there is no such file, and `ValueError`, which names file, field,
        what was found and what was expected, if it is not what it claims to be.
        """
        return cls(path)

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[True] = True,
        chat_template: str | None = None,
        **variables: object,
    ) -> list[int]: ...
    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[False],
        chat_template: str | None = None,
        **variables: object,
    ) -> str: ...
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        chat_template: str | None = None,
        **variables: object,
    ) -> list[int] | str:
        """The prompt of a conversation, as ids or as text; see :func:`llmcore.chat.apply_chat_template`."""
        from llmcore.chat import apply_chat_template

        return apply_chat_template(
            self,
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=tokenize,
            chat_template=chat_template,
            **variables,
        )
