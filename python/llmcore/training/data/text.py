"""Text to a corpus: every document followed by the end-of-text token."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.progress import byte_bar
from llmcore.tokenizer import Tokenizer
from llmcore.tokenizer_files import Documents, Encoder, smallest_dtype
from llmcore.training.data.corpus import Corpus, CorpusWriter, cached
from llmcore.training.data.identity import source_identity
from llmcore.training.data.sources import OpenSource, Row, Source, cache_of, is_json_lines, open_source

__all__ = ["end_of_text", "tokenize_text"]

_CHARACTERS = 1 << 22
"""Texts of so many characters are encoded together: enough for all threads."""


def tokenize_text(
    source: Source,
    tokenizer: Tokenizer,
    *,
    cache: str | PathLike[str] | None = None,
    field: str = "text",
    documents: Documents = "file",
    separator: int | None = None,
    add_special_tokens: bool = True,
    allowed_special: str | Iterable[str] = "none",
    progress: bool = True,
) -> Corpus:
    """The documents of a source as ids, mapped from a file. They are tokenised once: if the content of the
    files or rows, the tokenizer and the options are those of an earlier call, its arrays are found again.

    Args:
        source: Files, a folder, or rows; see `llmcore.training.data.sources`.
        tokenizer: Encodes the documents.
        cache: The folder for arrays; what is in it can be deleted at any time. By default `NAME.tokens`
            beside the one file or folder that is the source.
        field: The key of the text in a row that is a dict.
        documents: What a document is in a file that is not `.jsonl`: the file (`"file"`), or each line that
            is not empty, without its end (`"lines"`).
        separator: The end-of-text token, which follows each document (once, if the tokenizer puts it there
            itself). By default the tokenizer's end token. A document ends wherever this id stands.
        add_special_tokens: Whether a document also has what the tokenizer puts around a text.
        allowed_special: The special tokens that a text may spell; see `Tokenizer.encode`. Of a file that
            spells the end-of-text token between its documents, name that.
        progress: A bar on standard error, if that is a terminal.

    Raises:
        ValueError: a row is not what it should be (file, line and field are named), a file holds a NUL byte
            and so is no text, or changes while it is read; there is no row, no end token, or no `cache`.
        OSError: a file cannot be read, or the cache not written.
    """
    separator, add_separator = end_of_text(tokenizer, separator, add_special_tokens)
    allowed = allowed_special if isinstance(allowed_special, str) else sorted(allowed_special)
    cache = cache_of(source, cache)
    opened = open_source(source)
    files = opened.files or []
    kinds: list[Documents] = ["jsonl" if is_json_lines(path) else documents for path in files]
    encoder = Encoder(tokenizer, separator if add_separator else None, add_special_tokens, allowed)

    def write(corpus: CorpusWriter) -> None:
        if files:
            parts = _encoded_files(encoder, files, kinds, field, progress)
        else:
            parts = _encoded_rows(encoder, _texts(opened, field))
        for ids in parts:
            corpus.write(ids, np.flatnonzero(ids == separator) + 1)

    return cached(
        cache,
        lambda: source_identity(opened, cache, _texts(opened, field)),
        {
            "kind": "text", "documents": kinds, "field": field, "tokenizer": tokenizer.fingerprint,
            "separator": separator, "add_special_tokens": add_special_tokens, "allowed_special": allowed,
        },
        smallest_dtype(tokenizer.vocab_size),
        write,
        counts_all=True,
    )  # fmt: skip


def end_of_text(tokenizer: Tokenizer, separator: int | None, add_special_tokens: bool) -> tuple[int, bool]:
    """The end-of-text token, and whether it is to be added to what the tokenizer puts after a text."""
    if separator is None:
        separator = tokenizer.eos_token_id
    if separator is None or not 0 <= separator < tokenizer.vocab_size:
        expected = f"an id from 0 to {tokenizer.vocab_size - 1}, to follow each document"
        raise ValueError(f"separator: found {separator}, expected {expected}")
    return separator, not (add_special_tokens and tokenizer.suffix_ids[-1:] == [separator])


def _texts(source: OpenSource, field: str) -> Iterator[Row]:
    """The texts of rows."""
    expected = f'a text, or an object with a string "{field}"'
    for where, value in source.rows(expected):
        text = value.get(field) if isinstance(value, Mapping) else value
        if not isinstance(text, str):
            raise ValueError(f"{where}: found {value!r:.80}, expected {expected}")
        yield Row(where, text)


def _encoded_rows(encoder: Encoder, texts: Iterable[Row]) -> Iterator[NDArray[Any]]:
    batch: list[str] = []
    size = 0
    for row in texts:
        batch.append(row.value)
        size += len(row.value)
        if size >= _CHARACTERS:
            yield encoder.documents(batch)
            batch, size = [], 0
    yield encoder.documents(batch)


def _encoded_files(
    encoder: Encoder, files: list[Path], kinds: list[Documents], field: str, progress: bool
) -> Iterator[NDArray[Any]]:
    title = f"Encoding {files[0].name}" if len(files) == 1 else f"Encoding {len(files)} files"
    sizes = [path.stat().st_size for path in files]
    with byte_bar(title, sum(sizes), progress and sys.stderr.isatty()) as report:
        done = 0
        for path, documents, size in zip(files, kinds, sizes, strict=True):
            with path.open("rb") as file:
                if b"\0" in file.peek():
                    raise ValueError(f"{path}: found a NUL byte, expected text")
                for ids in encoder.file(path, file, documents, field):
                    yield ids
                    report(done + file.tell())
            done += size
