"""What the parameters of a new model begin with; each architecture's `initial` says which gets what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Constant", "Initial", "Normal"]


@dataclass(frozen=True)
class Constant:
    """The same number everywhere."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Independent draws from a normal distribution of mean 0.

    Attributes:
        std: Its standard deviation.
        zero_row: A row that is 0 instead: the embedding of the token that pads.
    """

    std: float
    zero_row: int | None = None


Initial = Mapping[str, Constant | Normal]
"""Rules by patterns of paths, as `layers.*.attn.o.weight`; of several that match, the first counts."""
