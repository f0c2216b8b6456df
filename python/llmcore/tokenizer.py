"""Text to token ids and back.

:class:`Tokenizer` reads `tokenizer.json`, `vocab.json` with `merges.txt`, `.tiktoken`, and the metadata
of `.gguf`. Rust does the work (`rust/bpe/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

from llmcore import _core
from llmcore.tokenizer_folder import TokenizerFolder, special_token
from llmcore.tokenizer_origin import Origin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from llmcore.tokenizer_files import Documents
    from llmcore.tokenizer_training import Source

__all__ = ["Tokenizer"]


class Tokenizer(_core.Tokenizer):
    """A tokenizer. Immutable but for :attr:`chat_template`; threads may share it.

    Made by :meth:`from_file`, :meth:`from_folder` or :meth:`train`.
    """

    chat_template: str | None
    """The Jinja template that turns messages into a prompt, if the files hold one."""

    def __init__(self, path: str | PathLike[str], *_: Any, **settings: Any) -> None:
        self.chat_template = self.embedded_chat_template
        self._origin = Origin(path, settings)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | Iterable[str] | None = None,
    ) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`, a `vocab.json` (`merges.txt` beside it), a `.tiktoken` or a
        `.gguf`.

        BPE is encoded here. For a `tokenizer.json` of WordPiece, Unigram or WordLevel the package
        `tokenizers` does it (`pip install 'llmcore-cpu[tokenizers]'`; `ModuleNotFoundError` without it).

        `pattern` is the pre-tokenisation of a `.tiktoken` or a `vocab.json`: `"gpt2"` (the default of
        the latter), `"cl100k"`, `"o200k"`, `"llama3"`, `"qwen2"`, or a regular expression.
        `special_tokens` are added to those of the file, with ids or with those of the vocabulary (or
        the next free ones).

        Raises `FileNotFoundError` if there is no such file, and `ValueError`, which names file, field,
        what was found and what was expected, if it is not what it claims to be.
        """
        named = dict(special_tokens) if isinstance(special_tokens, Mapping) else special_tokens or ()
        ids = named if isinstance(named, dict) else dict.fromkeys(named)
        added = [special_token(token, id) for token, id in ids.items()]
        return cls._open(path, pattern=pattern, added_tokens=added)

    @classmethod
    def from_folder(cls, folder: str | PathLike[str]) -> Tokenizer:
        """The tokenizer of a folder in the Hugging Face layout.

        `tokenizer.json`, or else `vocab.json` and `merges.txt`; `tokenizer_config.json`,
        `special_tokens_map.json`, `added_tokens.json`, `config.json` and `chat_template.jinja` are
        honoured. A padding token that the vocabulary lacks is added to it. Raises as :meth:`from_file` does.
        """
        files = TokenizerFolder(folder)
        with files.named_in_errors():
            tokenizer = cls._open(files.path, **files.settings())
        tokenizer.chat_template = files.chat_template()
        return tokenizer

    @classmethod
    def _open(cls, path: str | PathLike[str], **settings: Any) -> Tokenizer:
        try:
            return cls(path, **settings)
        except ValueError:
            from llmcore import tokenizer_package

            if (file := tokenizer_package.read(path)) is None:
                raise
            return tokenizer_package.PackageTokenizer(path, file, **settings)

    @classmethod
    def train(
        cls,
        source: Source,
        vocab_size: int,
        *,
        pattern: str = "gpt2",
        special_tokens: Iterable[str] = (),
        min_frequency: int = 0,
        min_piece_count: int = 1,
        max_memory: int | None = None,
        progress: bool = True,
    ) -> Tokenizer:
        """Trains a byte-level tokenizer.

        `source` is a file (a `Path`), or an iterable of texts (`str`) and files. A text is a document;
        in a file of UTF-8 each line is one, its line break included. `vocab_size` counts the special
        tokens, which come first, and the 256 bytes; fewer tokens come of a source that has no more
        pairs. A pair that occurs less than `min_frequency` times is not merged. `pattern`: as in
        :meth:`from_file`. `progress`: bars on standard error, if that is a terminal.

        The merges are those of `tokenizers`' `BpeTrainer(initial_alphabet=ByteLevel.alphabet())` over
        `Split(pattern, "isolated")` and `ByteLevel(add_prefix_space=False, use_regex=False)`, as long as
        no count reaches 2³¹, which is more than that library can count. They do not depend on the
        number of threads.

        `min_piece_count` above 1 gives up being exact: a piece of the pre-tokenisation that occurs less often
        is left out, which takes less memory; a `UserWarning` says how many were.

        `max_memory`, in bytes; None: any. Counts of pieces that would take more are written to a temporary
        file (in `$TMPDIR`; it has no name, and nothing is left of it) and added up there, exactly. Merging
        then holds the different pieces: 8 times their bytes, 10 times from 65,535 tokens on, and what is
        known of pairs. Where that is too much, a `ValueError` says what would do. The texts read at a time,
        about 16 MB, are not counted.

        Raises `ValueError` for an argument out of its range or a file that is not UTF-8, `OSError` for a file
        that cannot be read, or the temporary one if it cannot be written.
        """
        from llmcore import tokenizer_training

        json = tokenizer_training.train(
            source,
            vocab_size,
            pattern=pattern,
            special_tokens=special_tokens,
            min_frequency=min_frequency,
            min_piece_count=min_piece_count,
            max_memory=max_memory,
            progress=progress,
        )
        return cls("tokenizer.json", json=json)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the tokenizer was made of: the content of its files (of a `.gguf`, what it says
        of the tokenizer), the settings beside them, and the version of llmcore. Tokenizers of one fingerprint
        give the same ids; those of two may do so, too.

        Raises `ValueError` if a file has changed since it was read, `OSError` if it is gone.
        """
        return self._origin.fingerprint()

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a tokenizer that was trained, as `tokenizer.json` (which `tokenizers` and Transformers
        read) or `.tiktoken`, by the end of `path`.

        A `.tiktoken` holds neither the pattern nor the special tokens, nor a token that is a special one and
        the result of merges as well; but for the last, `tiktoken` finds the same ids with it.

        Raises `ValueError` for a tokenizer that was not trained, or another ending of `path`.
        """
        from llmcore import tokenizer_training

        tokenizer_training.save(self, self.json, path)

    def encode_file(
        self,
        path: str | PathLike[str],
        out: str | PathLike[str] | None = None,
        *,
        documents: Documents = "file",
        separator: int | None = None,
        dtype: DTypeLike | None = None,
        add_special_tokens: bool = True,
        allowed_special: str | Iterable[str] | None = None,
        progress: bool = True,
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Encodes a file of text into a file of ids, and returns them, mapped from it: an array of one
        dimension. `np.load(out, mmap_mode="r")` maps it again.

        `documents`: the file is one (`"file"`), each line of it is one, without the end of the line
        (`"lines"`), or each line is a JSON object whose `"text"` is one (`"jsonl"`); blank lines are none.
        The ids of a document are those of `encode`, and bytes that are not UTF-8 are what they are
        there; after each document follows the id `separator`, if given. `out`: an .npy file; by default
        the file's name with ".npy" at its end. `dtype`: uint16 or uint32; by default the smaller one that
        holds every id of the vocabulary. `progress`: a bar on standard error, if that is a terminal.

        A file of any size takes some 100 MB of memory, or five times its longest line. One document is
        read in parts as far as the tokenizer can cut a text (:meth:`last_seam`); others, as those of
        SentencePiece, need it whole. `out` is written under another name and renamed when it is on the disk:
        a full disk or Ctrl-C leaves nothing behind.

        Raises `OSError` for a file that cannot be read or written, and `ValueError` for a line that is not
        what it should be, a dtype that cannot hold the ids, or another argument out of its range.
        """
        from llmcore import tokenizer_files

        return tokenizer_files.encode_file(
            self,
            path,
            out,
            documents=documents,
            separator=separator,
            dtype=dtype,
            add_special_tokens=add_special_tokens,
            allowed_special=allowed_special,
            progress=progress,
        )

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
