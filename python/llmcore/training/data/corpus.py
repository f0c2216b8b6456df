"""Documents as ids: arrays mapped from files, which are written once.

A corpus in a cache is a folder named by the hash of all that it was made of (the data, the tokenizer, the
options), with

    ids.npy       uint16 or uint32 [tokens], the documents one after the other
    starts.npy    int64 [documents + 1], where each document starts in ids, and the last ends
    counted.npy   bool [tokens], where the loss counts; only where it does not count everywhere
    corpus.json   what it was made of, and a hash of the arrays

and is there whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.files import replaced_folder, restore_folder
from llmcore.npy import NpyWriter, npy_written
from llmcore.training.data.identity import digest, digest_of_parts

__all__ = ["Corpus", "CorpusWriter", "cached"]

_FORMAT = 1

_PART = 1 << 20
"""Elements that are hashed together."""


class Corpus:
    """Documents of tokens.

    Args:
        ids: The ids of all documents, one after the other: 1-D, of any integer type.
        starts: Where each document starts in `ids`, and the last ends: int64 [documents + 1]. No document is
            empty.
        counted: Which tokens the loss counts: bool [tokens]. None: all.
        fingerprint: A hash of the arrays, by which a training that is resumed asks for the same data. By
            default it is computed.

    Raises:
        ValueError: `starts` or `counted` does not fit `ids`.
    """

    def __init__(
        self,
        ids: NDArray[np.integer[Any]],
        starts: NDArray[np.int64],
        counted: NDArray[np.bool_] | None = None,
        *,
        fingerprint: str | None = None,
    ) -> None:
        starts = np.asarray(starts, np.int64)
        if starts.ndim != 1 or not len(starts) or starts[0] != 0 or starts[-1] != len(ids):
            raise ValueError(f"starts: found {starts!r:.80}, expected places from 0 to {len(ids)}")
        if np.any(starts[1:] <= starts[:-1]):
            raise ValueError("starts: found a document without tokens, expected ascending places")
        if counted is not None and counted.shape != ids.shape:
            raise ValueError(f"counted: found the shape {counted.shape}, expected {ids.shape}")
        self.ids = ids
        self.starts = starts
        self.counted = counted
        self.fingerprint = fingerprint or _hash(ids, starts, counted)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.starts) - 1

    def __repr__(self) -> str:
        return f"<Corpus of {len(self.ids):,} tokens in {len(self):,} documents>"

    def split(self, tail: float) -> tuple[Corpus, Corpus]:
        """What to train on, and what to hold out: at most the share `tail` of the tokens, at the end.

        The held-out part begins with the first document that lies wholly in that share. If none does, it is
        that share of the last document; but for a corpus that does not count all its tokens, whose documents
        are examples.

        Raises:
            ValueError: `tail` is not between 0 and 1, or leaves nothing to train on or to hold out.
        """
        if not 0 < tail < 1:
            raise ValueError(f"tail: found {tail}, expected a share between 0 and 1")
        cut = len(self.ids) - int(len(self.ids) * tail)
        document = int(np.searchsorted(self.starts, cut))
        if document < len(self):
            cut = int(self.starts[document])
        elif self.counted is not None:
            raise ValueError(f"tail: found {tail}, less than the last of {len(self)} examples, expected more")
        if not 0 < cut < len(self.ids):
            raise ValueError(f"tail: found {tail} of {len(self.ids)} tokens, expected two parts")
        return self._part(0, cut), self._part(cut, len(self.ids))

    def _part(self, first: int, end: int) -> Corpus:
        inner = self.starts[(first < self.starts) & (self.starts < end)]
        starts = np.concatenate(([first], inner, [end]))
        counted = None if self.counted is None else self.counted[first:end]
        fingerprint = digest([self.fingerprint, first, end])
        return Corpus(self.ids[first:end], starts - first, counted, fingerprint=fingerprint)


class CorpusWriter:
    """What a corpus that is being written is handed to."""

    def __init__(self, ids: NpyWriter, starts: NpyWriter, counted: NpyWriter | None = None) -> None:
        self._ids = ids
        self._starts = starts
        self._counted = counted

    def write(
        self, ids: NDArray[Any], ends: NDArray[np.int64], counted: NDArray[np.bool_] | None = None
    ) -> None:
        """Appends ids; `ends`, the places in them after which a document ends; and which of them count."""
        self._starts.write(ends + self._ids.length)
        self._ids.write(ids)
        if self._counted is not None:
            assert counted is not None
            self._counted.write(counted)


def cached(
    cache: Path,
    identity: Callable[[], Any],
    options: dict[str, Any],
    dtype: np.dtype[Any],
    write: Callable[[CorpusWriter], None],
    *,
    counts_all: bool,
) -> Corpus:
    """The corpus in the folder `cache` that was made of the same, or a new one, which `write` writes.

    `identity` says what the data is known by, and `options` what else decides what is written; both are what
    JSON can say. Raises what `write` raises, which then leaves no corpus, `ValueError` if the data is another
    when all is written, and `OSError` if the cache cannot be written, or another process writes the same.
    """
    made_of = {"format": _FORMAT, "data": identity(), **options}
    folder = cache / digest(made_of)[:20]
    names = ["ids.npy", "starts.npy"] + ["counted.npy"] * (not counts_all)
    restore_folder(folder)
    if not folder.exists():
        with replaced_folder(folder, [*names, "corpus.json"]) as unfinished:
            _write(unfinished, names, dtype, write)
            if identity() != made_of["data"]:
                raise ValueError("source: found data that changed while it was read, expected the same twice")
            description = {"arrays": _hash(*_mapped(unfinished, names)), "made_of": made_of}
            (unfinished / "corpus.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    description = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return Corpus(*_mapped(folder, names), fingerprint=description["arrays"])


def _mapped(folder: Path, names: list[str]) -> list[NDArray[Any]]:
    return [np.load(folder / name, mmap_mode="r") for name in names]


def _hash(*arrays: NDArray[Any] | None) -> str:
    """What arrays are known by: their types and elements."""
    found = [digest_of_parts(_parts(array)) for array in arrays if array is not None]
    return digest(found)


def _parts(array: NDArray[Any]) -> Iterator[bytes]:
    yield array.dtype.str.encode()
    for start in range(0, len(array), _PART):
        yield array[start : start + _PART].tobytes()


def _write(
    folder: Path, names: list[str], dtype: np.dtype[Any], write: Callable[[CorpusWriter], None]
) -> None:
    dtypes = (dtype, np.dtype("<i8"), np.dtype(np.bool_))
    with ExitStack() as stack:
        ids, starts, *counted = (
            stack.enter_context(npy_written(folder / name, kind))
            for name, kind in zip(names, dtypes, strict=False)
        )
        starts.write(np.zeros(1, np.int64))
        write(CorpusWriter(ids, starts, *counted))
        if not ids.length:
            raise ValueError("source: found no rows, expected at least one")
