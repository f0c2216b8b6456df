"""Between lists, NumPy arrays and torch tensors: the one place that knows of torch.

torch is not needed. A caller's value can be a tensor only if the caller has imported torch, so looking in
`sys.modules` finds it; `return_tensors="pt"` imports torch where it is installed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Wrap", "ids_batch", "mask_batch", "real_rows", "to_numpy", "wrap_as", "wrap_like"]

Array = npt.NDArray[Any]

Wrap = Callable[[Array], Any]
"""What hands an array to the caller: as it is, or as a tensor over the same memory."""


def _plain(array: Array) -> Array:
    return array


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any) -> Array:
    """`value` as an array; of a tensor without its gradient.

    Raises:
        ValueError: nested lists of unequal lengths.
    """
    return np.asarray(value.detach().cpu().numpy() if _is_tensor(value) else value)


def wrap_like(*values: object) -> Wrap:
    """Gives tensors if any of `values` is one, else arrays."""
    return sys.modules["torch"].from_numpy if any(map(_is_tensor, values)) else _plain


def wrap_as(return_tensors: str) -> Wrap:
    """Gives what `return_tensors` names: arrays for "np", tensors for "pt" (arrays where torch is missing).

    Raises:
        ValueError: another name.
    """
    if return_tensors not in ("np", "pt"):
        raise ValueError(f"return_tensors: found {return_tensors!r}, expected 'np', 'pt' or None")
    if return_tensors == "np":
        return _plain
    try:
        wrap: Wrap = importlib.import_module("torch").from_numpy
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return _plain
    return wrap


def ids_batch(value: Any, name: str = "input_ids") -> npt.NDArray[np.int64]:
    """Token ids as `[batch, time]`; one sequence alone is a batch of one.

    Raises:
        ValueError: something else than whole numbers in rows of one length.
    """
    expected = "token ids, [batch, time], rows of one length (pad them)"
    if isinstance(value, Mapping):
        raise ValueError(f"{name}: found a {type(value).__name__}, expected {expected}; unpack it with **")
    try:
        ids = to_numpy(value)
    except ValueError:
        raise ValueError(f"{name}: found rows of unequal lengths, expected {expected}") from None
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or not len(ids) or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"{name}: found {ids.dtype} of shape {list(ids.shape)}, expected {expected}")
    return ids.astype(np.int64)


def mask_batch(value: Any, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """An attention mask of `ids`, `[batch, time]`: which tokens are real. None stands for all of them.

    Raises:
        ValueError: another shape, or something else than zeros and ones.
    """
    if value is None:
        return np.ones(ids.shape, bool)
    mask = to_numpy(value)
    if mask.ndim == 1:
        mask = mask[None]
    if mask.shape != ids.shape:
        expected = f"the shape of input_ids, {list(ids.shape)}"
        raise ValueError(f"attention_mask: found the shape {list(mask.shape)}, expected {expected}")
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "attention_mask: found other values, expected 1 for each real token and 0 for padding"
        )
    return mask.astype(bool)


def real_rows(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """The tokens of each row that are real.

    Raises:
        ValueError: a row has none.
    """
    rows = [row[real] for row, real in zip(ids, mask, strict=True)]
    for index, row in enumerate(rows):
        if not row.size:
            raise ValueError(f"input_ids: found no tokens in row {index}, expected at least one")
    return rows
