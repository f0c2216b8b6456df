"""Training a tokenizer: what `Tokenizer.train` and `Tokenizer.save` do. Rust does the work
(`rust/bpe/train/`).
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from llmcore import _core
from llmcore.files import written_whole
from llmcore.progress import Report, bars

__all__ = ["Source", "save", "train"]

Source: TypeAlias = "PathLike[str] | Iterable[str | PathLike[str]]"
"""A file, or texts and files (`str` are texts, `Path` are files)."""

_BATCH_CHARACTERS = 1 << 23
"""Texts are handed to Rust together, so that all threads have work."""
_BATCH_TEXTS = 1 << 16


def train(
    source: Source,
    vocab_size: int,
    *,
    pattern: str,
    special_tokens: Iterable[str],
    min_frequency: int,
    min_piece_count: int,
    max_memory: int | None,
    progress: bool,
) -> str:
    """The text of the tokenizer.json that was trained; see `Tokenizer.train`."""
    if isinstance(source, str | bytes):
        raise TypeError(
            f"source: found {type(source).__name__}, expected a Path, or an iterable of texts and Paths"
        )
    if isinstance(special_tokens, str):
        raise TypeError("special_tokens: found str, expected an iterable of tokens")
    trainer = _core.BpeTrainer(
        vocab_size,
        pattern,
        special_tokens=list(special_tokens),
        min_frequency=min_frequency,
        min_piece_count=min_piece_count,
        max_memory=max_memory,
    )
    sources = [source] if isinstance(source, PathLike) else source
    total = _size(sources) if isinstance(sources, list | tuple) else None
    with bars(progress) as bar:
        _count(trainer, sources, bar("Counting pieces", total))
        json, dropped = trainer.finish(bar("Merging pairs", vocab_size))
    pieces, occurrences, all_pieces, all_occurrences = dropped
    if pieces:
        warnings.warn(
            f"min_piece_count={min_piece_count} left out {pieces:,} of {all_pieces:,} different pieces, "
            f"which are {occurrences:,} of {all_occurrences:,} pieces of the source",
            stacklevel=3,
        )
    return json


def _count(trainer: _core.BpeTrainer, source: Iterable[str | PathLike[str]], report: Report | None) -> None:
    batch: list[str] = []
    characters = done = 0
    for item in source:
        if isinstance(item, str):
            batch.append(item)
            characters += len(item)
            if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_TEXTS:
                trainer.add_texts(batch)
                done += characters
                batch, characters = [], 0
                if report:
                    report(done)
        elif isinstance(item, PathLike):
            trainer.add_file(item, report and partial(_report_more, report, done))
            done += Path(item).stat().st_size
        else:
            found = type(item).__name__
            raise TypeError(f"source: found an item of type {found}, expected str (a text) or Path (a file)")
    trainer.add_texts(batch)


def _report_more(report: Report, before: int, more: int) -> None:
    report(before + more)


def _size(sources: Sequence[str | PathLike[str]]) -> int | None:
    """Bytes of sources that are all files."""
    paths = [Path(item) for item in sources if isinstance(item, PathLike)]
    return sum(path.stat().st_size for path in paths) if len(paths) == len(sources) else None


def save(tokenizer: _core.Tokenizer, json: str | None, path: str | PathLike[str]) -> None:
    """Writes a tokenizer that was trained, of which `json` is the tokenizer.json; see `Tokenizer.save`."""
    path = Path(path)
    if json is None:
        raise ValueError(f"{path}: found a tokenizer of a file, expected one that was trained; copy its file")
    if path.suffix == ".json":
        content = json.encode()
    elif path.suffix == ".tiktoken":
        special = set(tokenizer.special_ids)
        ranks = (id for id in range(tokenizer.vocab_size) if id not in special)
        content = b"".join(b"%s %d\n" % (base64.b64encode(tokenizer.token_bytes(id)), id) for id in ranks)
    else:
        raise ValueError(f"path: found {path.name!r}, expected a name that ends in .json or .tiktoken")
    with written_whole(path) as file:
        file.write(content)
