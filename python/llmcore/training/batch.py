"""A batch: sequences of unequal lengths, under the argument names of the reference.

`input_ids` is a list of 1-D integer arrays (or one 2-D array); `labels`, of the same shapes, says which
token each position is to be: −100 does not count, and where there are none, the ids themselves are the
labels. The model compares the logits after token t with the label of token t + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

__all__ = ["IGNORED", "Batch", "count_labels"]

Batch: TypeAlias = Mapping[str, Any]
"""`input_ids`, and where they apply `labels` and what else the model takes."""

IGNORED = -100
"""The label that does not count."""


def count_labels(batch: Batch) -> int:
    """How many labels of a batch the loss counts: those that are not −100, but for the first of each
    sequence, which no logits predict."""
    labels = batch.get("labels")
    if labels is None:
        return sum(max(len(ids) - 1, 0) for ids in batch["input_ids"])
    return sum(int(np.count_nonzero(np.asarray(row)[1:] != IGNORED)) for row in labels)
