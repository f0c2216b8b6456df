"""A batch: sequences of unequal lengths, under the argument names of the reference.

`input_ids` is a list of 1-D integer arrays (or one 2-D array); `labels`, of the same shapes, says which
token each position is to be: −100 does not count, and where there are none, the ids themselves are the
labels. The model compares the logits after token t with the label of token t + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llmcore.ids import token_ids

__all__ = ["IGNORED", "Batch", "Rows", "count_labels", "flat_rows"]

Batch: TypeAlias = Mapping[str, Any]
"""`input_ids`, and where they apply `labels` and what else the model takes."""

IGNORED = -100
"""The label that does not count."""


def count_labels(batch: Batch) -> int:
    """How many labels of a batch the loss counts: those that are not −100, but for the first of each
    sequence, which no logits predict.

    Raises:
        ValueError: as `flat_rows`.
    """
    return flat_rows(batch).count


@dataclass(frozen=True)
class Rows:
    """A batch as the kernels take it: sequences one after the other, without padding.

    Attributes:
        tokens: `[rows]`, uint32: the sequences, one after the other.
        lengths: The rows of each sequence.
        targets: `[rows]`, int32: the label of the next position, -100 where none counts.
    """

    tokens: npt.NDArray[np.uint32]
    lengths: list[int]
    targets: npt.NDArray[np.int32]

    @property
    def count(self) -> int:
        """How many labels count."""
        return int(np.count_nonzero(self.targets != IGNORED))


def flat_rows(batch: Batch) -> Rows:
    """Lays out a batch, and shifts its labels: the logits after a token are compared with the next label.

    Args:
        batch: `input_ids`, a list of 1-D arrays or a 2-D array; `labels`, of the same shape, the ids
            themselves unless given; `attention_mask`, of the same shape, 0 where a sequence is padded on its
            right.

    Raises:
        ValueError: no `input_ids`, an argument that is not known, shapes that differ, padding elsewhere, or
            an empty sequence.
    """
    if unknown := set(batch) - {"input_ids", "labels", "attention_mask"}:
        names = "input_ids, labels and attention_mask"
        raise ValueError(f"batch: found {', '.join(sorted(map(repr, unknown)))}, expected {names}")
    if batch.get("input_ids") is None:
        raise ValueError("batch: found no input_ids, expected sequences of ids")
    ids = [token_ids(row, f"input_ids[{i}]") for i, row in enumerate(_rows(batch["input_ids"], "input_ids"))]
    lengths = [len(row) for row in ids]
    labels = [_labels(row, f"labels[{i}]") for i, row in enumerate(_like(batch, "labels", ids))]
    if batch.get("attention_mask") is not None:
        masks = _like(batch, "attention_mask", ids)
        lengths = [_unpadded(row, f"attention_mask[{i}]") for i, row in enumerate(masks)]
    if 0 in lengths:
        raise ValueError(f"input_ids[{lengths.index(0)}]: found no tokens, expected at least one")
    targets = [
        np.append(row[1:length], np.int32(IGNORED)) for row, length in zip(labels, lengths, strict=True)
    ]
    tokens = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    return Rows(
        np.concatenate([*tokens, np.empty(0, np.uint32)]),
        lengths,
        np.concatenate([*targets, np.empty(0, np.int32)]).astype(np.int32),
    )


def _rows(value: Any, name: str) -> Sequence[Any]:
    """The rows of a 2-D array, or of a list of 1-D ones."""
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes):
        raise ValueError(f"{name}: found {type(value).__name__}, expected a list of sequences of ids")
    return value if isinstance(value, Sequence) else list(value)


def _like(batch: Batch, name: str, ids: Sequence[Any]) -> Sequence[Any]:
    """The rows of an argument that has the shape of `input_ids`, or those themselves."""
    if batch.get(name) is None:
        return ids
    rows = _rows(batch[name], name)
    found, expected = [np.size(row) for row in rows], [len(row) for row in ids]
    if found != expected:
        raise ValueError(f"{name}: found rows of {found}, expected those of input_ids, {expected}")
    return rows


def _labels(row: Any, name: str) -> npt.NDArray[np.int32]:
    array = np.asarray(row)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: found {array.dtype} of shape {array.shape}, expected ids in one dimension")
    if array.size and not (array.min() >= IGNORED and array.max() < 1 << 31):
        raise ValueError(f"{name}: found {array.min()} to {array.max()}, expected ids, or {IGNORED}")
    return array.astype(np.int32)


def _unpadded(row: Any, name: str) -> int:
    """How many positions a mask keeps, which are the first ones."""
    mask = np.asarray(row).astype(bool)
    length = int(np.count_nonzero(mask))
    if not mask[:length].all():
        raise ValueError(f"{name}: found {row}, expected ones and then zeros: padding on the right")
    return length
