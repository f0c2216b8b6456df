"""What is trained on, one example at a time: windows of a stream of documents, or documents as they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmcore.training.batch import IGNORED
from llmcore.training.data.corpus import Corpus
from llmcore.training.data.identity import digest

__all__ = ["Dataset", "Documents", "PackedWindows"]


class Dataset(Protocol):
    """Numbered examples. An example is a batch of its own: a dict of lists of sequences of one length or
    several, under the argument names of the model."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each example."""

    @property
    def fingerprint(self) -> str:
        """What the examples and their order are known by."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, list[NDArray[np.int64]]]: ...


class PackedWindows:
    """Windows of `seq_len` tokens, cut from the stream of documents one after the other. Every token is in
    one window; the last window is shorter, and left out if it is a single token, from which nothing follows.

    An example is one sequence, in which attention crosses from one document into the next. With
    `respect_documents` it is a sequence for each part of a document in it, none of which sees another.

    Labels are given only for a corpus of which not all counts.

    Args:
        corpus: The documents.
        seq_len: The tokens of a window, at least 2, and at most the positions of the model.
        respect_documents: Whether a window is cut where a document starts.

    Raises:
        ValueError: `seq_len` is less than 2, or the corpus is of fewer than 2 tokens.
    """

    def __init__(self, corpus: Corpus, seq_len: int, *, respect_documents: bool = False) -> None:
        if seq_len < 2:
            raise ValueError(f"seq_len: found {seq_len}, expected at least 2")
        starts = np.arange(0, len(corpus.ids), seq_len)
        lengths = np.minimum(seq_len, len(corpus.ids) - starts)
        self.lengths: NDArray[np.int64] = lengths[lengths > 1]
        if not len(self.lengths):
            raise ValueError(f"corpus: found {len(corpus.ids)} tokens, expected at least 2")
        self.corpus = corpus
        self.seq_len = seq_len
        self.respect_documents = respect_documents
        self.fingerprint = digest(["windows", corpus.fingerprint, seq_len, respect_documents])

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, list[NDArray[np.int64]]]:
        """The window of a number: `input_ids`, and perhaps `labels`, int64."""
        first = index * self.seq_len
        end = first + int(self.lengths[index])
        cuts = [first, end]
        if self.respect_documents:
            starts = self.corpus.starts
            inner = starts[np.searchsorted(starts, first, "right") : np.searchsorted(starts, end)]
            cuts[1:1] = inner.tolist()
        return _example(self.corpus, cuts)


class Documents:
    """Documents as they are, each a sequence: chats, prompts with completions, or whole texts.

    Args:
        corpus: The documents.
        max_length: Documents of more tokens are cut there. None: none is.

    A document of which nothing counts within `max_length` is left out (`left_out` says how many are).

    Raises:
        ValueError: no document is left.
    """

    left_out: int
    """The documents that are left out."""

    def __init__(self, corpus: Corpus, max_length: int | None = None) -> None:
        starts, lengths = corpus.starts[:-1], np.diff(corpus.starts)
        if max_length is not None:
            lengths = np.minimum(lengths, max_length)
        if corpus.counted is None:
            counted = lengths - 1
        else:
            # Sums of what counts before each place; the first token of a document never does.
            before = np.concatenate(([0], np.cumsum(corpus.counted, dtype=np.int64)))
            counted = before[starts + lengths] - before[starts + 1]
        kept = counted > 0
        self.left_out = int(len(kept) - np.count_nonzero(kept))
        if not kept.any():
            raise ValueError(f"corpus: found {len(corpus)} documents of which nothing counts, expected some")
        self._starts = starts[kept]
        self.lengths: NDArray[np.int64] = lengths[kept]
        self.corpus = corpus
        self.fingerprint = digest(["documents", corpus.fingerprint, max_length])

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, list[NDArray[np.int64]]]:
        """The document of a number: `input_ids`, and `labels` if not all counts, int64."""
        first = int(self._starts[index])
        return _example(self.corpus, [first, first + int(self.lengths[index])])


def _example(corpus: Corpus, cuts: list[int]) -> dict[str, list[NDArray[np.int64]]]:
    """The sequences between cuts of the stream."""
    parts = [slice(first, end) for first, end in pairwise(cuts)]
    example: dict[str, Any] = {"input_ids": [np.array(corpus.ids[part], np.int64) for part in parts]}
    if corpus.counted is not None:
        counted = [corpus.counted[part] for part in parts]
        example["labels"] = [
            np.where(which, ids, IGNORED) for which, ids in zip(counted, example["input_ids"], strict=True)
        ]
    return example
