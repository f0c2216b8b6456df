"""A file of text to a file of ids: what `Tokenizer.encode_file` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llmcore import _core
from llmcore.npy import npy_written
from llmcore.progress import byte_bar

__all__ = ["Documents", "Encoder", "encode_file", "smallest_dtype"]

Documents: TypeAlias = Literal["file", "lines", "jsonl"]

_PART = 1 << 22
"""Bytes that are read and encoded together: enough for all threads."""

_Ids: TypeAlias = NDArray[np.unsignedinteger[Any]]


def encode_file(
    tokenizer: _core.Tokenizer,
    path: str | PathLike[str],
    out: str | PathLike[str] | None,
    *,
    documents: Documents,
    separator: int | None,
    dtype: DTypeLike | None,
    add_special_tokens: bool,
    allowed_special: str | Iterable[str] | None,
    progress: bool,
) -> _Ids:
    """See `Tokenizer.encode_file`."""
    path = Path(path)
    out = path.with_name(f"{path.name}.npy") if out is None else Path(out)
    if out.exists() and out.samefile(path):
        raise ValueError(f"out: found {out}, the file to encode, expected another")
    kind = _dtype(tokenizer.vocab_size, dtype)
    if separator is not None and not 0 <= separator < tokenizer.vocab_size:
        expected = f"an id from 0 to {tokenizer.vocab_size - 1}, or None"
        raise ValueError(f"separator: found {separator}, expected {expected}")
    encoder = Encoder(tokenizer, separator, add_special_tokens, allowed_special)
    bar = byte_bar(f"Encoding {path.name}", path.stat().st_size, progress and sys.stderr.isatty())
    with path.open("rb") as file, bar as report, npy_written(out, kind) as sink:
        for part in encoder.file(path, file, documents):
            sink.write(part)
            report(file.tell())
    ids: _Ids = np.load(out, mmap_mode="r")
    return ids


class Encoder:
    """The ids of documents, with what stands around and after each; see `Tokenizer.encode_file`."""

    def __init__(
        self,
        tokenizer: _core.Tokenizer,
        separator: int | None,
        add_special_tokens: bool,
        allowed_special: str | Iterable[str] | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.separator = [] if separator is None else [separator]
        self.add_special_tokens = add_special_tokens
        self.allowed = allowed_special
        if not (allowed_special is None or isinstance(allowed_special, str)):
            self.allowed = list(allowed_special)  # every call reads it

    def file(self, path: Path, file: BinaryIO, documents: Documents, field: str = "text") -> Iterator[_Ids]:
        """The ids of the documents of a file, part by part. `field`: the key of a document in an object of
        JSON; `path` serves the errors."""
        if documents == "file":
            return self.document(file)
        if documents == "lines":
            return (self.documents([line for line in lines if line]) for lines in _lines(file))
        if documents == "jsonl":
            return (self.documents(texts) for texts in _texts(path, _lines(file), field))
        raise ValueError(f'documents: found {documents!r}, expected "file", "lines" or "jsonl"')

    def documents(self, texts: list[bytes] | list[str]) -> _Ids:
        """The ids of whole documents."""
        ids, starts = self.tokenizer.encode_batch(
            texts, add_special_tokens=self.add_special_tokens, allowed_special=self.allowed, flat=True
        )
        return np.insert(ids, starts[1:], self.separator[0]) if self.separator else ids

    def document(self, file: BinaryIO) -> Iterator[_Ids]:
        """The ids of one document, part by part."""
        yield np.array(self.tokenizer.prefix_ids * self.add_special_tokens, np.uint32)
        unread = b""
        while block := file.read(max(_PART, len(unread))):
            unread += block
            seam = self.tokenizer.last_seam(unread) or 0
            yield self._part(unread[:seam])
            unread = unread[seam:]
        yield self._part(unread)
        yield np.array(self.tokenizer.suffix_ids * self.add_special_tokens + self.separator, np.uint32)

    def _part(self, text: bytes) -> _Ids:
        return self.tokenizer.encode_array(text, add_special_tokens=False, allowed_special=self.allowed)


def _lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of a file, without their ends, many at a time."""
    unread = b""
    while block := file.read(max(_PART, len(unread))):
        lines = (unread + block).split(b"\n")
        unread = lines.pop()
        yield [line.removesuffix(b"\r") for line in lines]
    yield [unread]


def _texts(path: Path, batches: Iterator[list[bytes]], field: str) -> Iterator[list[str]]:
    """The texts of lines of JSON."""
    done = 0
    for lines in batches:
        # Rust reads what it is sure of, and only of one field.
        read = _core.json_texts(lines) if field == "text" else [None] * len(lines)
        texts = []
        for i, (line, text) in enumerate(zip(lines, read, strict=True)):
            if text is not None:
                texts.append(text)
            elif line.strip():
                texts.append(_text(path, done + i + 1, line, field))
        done += len(lines)
        yield texts


def _text(path: Path, number: int, line: bytes, field: str) -> str:
    expected = f'an object with a string "{field}"'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: line {number}: found {error}, expected {expected}") from None
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{path}: line {number}: found {value!r:.80}, expected {expected}")
    return text


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smaller of uint16 and uint32 that holds every id, in one order of bytes on every machine."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _dtype(vocab_size: int, dtype: DTypeLike | None) -> np.dtype[Any]:
    smallest = smallest_dtype(vocab_size)
    if dtype is None:
        return smallest
    kind = np.dtype(dtype).newbyteorder("<")
    if kind in (smallest, np.dtype("<u4")):
        return kind
    expected = "uint16 or uint32" if smallest.itemsize == 2 else f"uint32, for {vocab_size} ids"
    raise ValueError(f"dtype: found {np.dtype(dtype)}, expected {expected}")
