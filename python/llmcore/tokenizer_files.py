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
from llmcore.files import written_whole
from llmcore.progress import byte_bar

__all__ = ["Documents", "encode_file"]

Documents: TypeAlias = Literal["file", "lines", "jsonl"]

_PART = 1 << 22
"""Bytes that are read and encoded together: enough for all threads."""

_HEADER = 128
"""Bytes of the header of an .npy file, which is written last, when the number of ids is known."""

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
    encoder = _Encoder(tokenizer, separator, add_special_tokens, allowed_special)
    bar = byte_bar(f"Encoding {path.name}", path.stat().st_size, progress and sys.stderr.isatty())
    with path.open("rb") as file, bar as report, written_whole(out) as sink:
        if documents == "file":
            parts = encoder.document(file)
        elif documents == "lines":
            parts = (encoder.documents([line for line in lines if line]) for lines in _lines(file))
        elif documents == "jsonl":
            parts = (encoder.documents(texts) for texts in _texts(path, _lines(file)))
        else:
            raise ValueError(f'documents: found {documents!r}, expected "file", "lines" or "jsonl"')
        sink.write(bytes(_HEADER))
        for part in parts:
            sink.write(part.astype(kind, copy=False).data)
            report(file.tell())
        length = (sink.tell() - _HEADER) // kind.itemsize
        sink.seek(0)
        sink.write(_header(kind, length))
    ids: _Ids = np.load(out, mmap_mode="r")
    return ids


class _Encoder:
    """The ids of documents, with what stands around and after each."""

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


def _texts(path: Path, batches: Iterator[list[bytes]]) -> Iterator[list[str]]:
    """The texts of lines of JSON."""
    done = 0
    for lines in batches:
        texts = []
        for i, (line, text) in enumerate(zip(lines, _core.json_texts(lines), strict=True)):
            if text is not None:
                texts.append(text)
            elif line.strip():
                texts.append(_text(path, done + i + 1, line))
        done += len(lines)
        yield texts


def _text(path: Path, number: int, line: bytes) -> str:
    expected = 'an object with a string "text"'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: line {number}: found {error}, expected {expected}") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{path}: line {number}: found {value!r:.80}, expected {expected}")
    return text


def _dtype(vocab_size: int, dtype: DTypeLike | None) -> np.dtype[Any]:
    """uint16 or uint32 in the order of bytes of .npy files on every machine."""
    fits = vocab_size <= 1 << 16
    if dtype is None:
        return np.dtype("<u2" if fits else "<u4")
    kind = np.dtype(dtype).newbyteorder("<")
    if kind == np.dtype("<u4") or (kind == np.dtype("<u2") and fits):
        return kind
    expected = "uint16 or uint32" if fits else f"uint32, for {vocab_size} ids"
    raise ValueError(f"dtype: found {np.dtype(dtype)}, expected {expected}")


def _header(kind: np.dtype[Any], length: int) -> bytes:
    """The header of an .npy file, version 1.0 (`numpy.lib.format`)."""
    start = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    fields = f"{{'descr': '{kind.str}', 'fortran_order': False, 'shape': ({length},), }}"
    return start + fields.encode().ljust(_HEADER - len(start) - 1) + b"\n"
