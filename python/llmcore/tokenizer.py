"""Text to token ids and back.

:class:`Tokenizer` reads the tokenizer of a `.gguf` file. Rust does the work (`rust/bpe/`).
"""

from __future__ import annotations

from os import PathLike

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
