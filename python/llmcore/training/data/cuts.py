"""Texts encoded so that tokens begin where a model begins to write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmcore.tokenizer import Tokenizer
from llmcore.trust import Tracked, spans

__all__ = ["encode_cut"]


def encode_cut(
    tokenizer: Tokenizer, text: Tracked, cuts: Sequence[int]
) -> tuple[list[int], NDArray[np.int64]]:
    """The ids of a text, and where in it each ends (in characters), so that no token reaches across one of
    `cuts`.

    The text is encoded as a whole. Only where a token would reach across a cut, as a line break at the end of
    a prompt and one at the start of its answer may be one token, the two sides are encoded apart: a model
    that is asked sees the ids of the prompt alone. (A tokenizer that puts a space before every text then puts
    one before the answer, too.)
    """
    ids, offsets = tokenizer.encode_spans(spans(text), with_offsets=True)
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    crossed = [cut for cut in cuts if np.any((starts < cut) & (cut < ends))]
    if not crossed:
        return ids, ends
    ids, all_ends = [], []
    for start, stop in zip([0, *crossed], [*crossed, len(text)], strict=True):
        part, offsets = tokenizer.encode_spans(spans(text[start:stop]), with_offsets=True)
        ids += part
        all_ends += [start + end for _, end in offsets]
    return ids, np.array(all_ends, np.int64)
