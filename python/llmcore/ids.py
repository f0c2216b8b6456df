"""Token ids from what a caller gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Ids", "token_ids"]

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]


def token_ids(ids: Ids, name: str) -> npt.NDArray[np.uint32]:
    """The ids of one sequence, `[len(ids)]`, as `_core` takes them.

    Raises:
        ValueError: they are not whole numbers in one dimension, or not ids of any vocabulary; says `name`.
    """
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, OverflowError):  # rows of unequal lengths, for one
        raise ValueError(f"{name}: found {ids!r:.80}, expected token ids in one dimension") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: found {array.dtype} of shape {array.shape}, expected token ids in one dimension"
        )
    if array.size and (array.min() < 0 or array.max() >= 1 << 32):
        raise ValueError(
            f"{name}: found ids from {array.min()} to {array.max()}, expected ids of the vocabulary"
        )
    return array.astype(np.uint32)
