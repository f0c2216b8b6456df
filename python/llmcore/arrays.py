"""Tensors on their way into a file: their type there, and their numbers when it is their turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmcore._core import quantize

__all__ = [
    "BLOCK",
    "BLOCK_BYTES",
    "NUMPY_TYPES",
    "LazyArray",
    "Tensors",
    "bfloat16_bits",
    "lazy",
    "write_array",
]

NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
"""What NumPy calls the types of files, whose bytes are little-endian; of bfloat16 it has the bits."""

BLOCK = 32
"""Numbers of a block of ggml's that can be written."""

BLOCK_BYTES: Mapping[str, int] = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""Bytes of such blocks, by the name of their type."""

_PIECE = 1 << 22
"""Elements that are converted and written together; between two pieces Ctrl-C is noticed."""


@dataclass(frozen=True)
class LazyArray:
    """A tensor whose numbers are asked for when they are written, one tensor at a time.

    Attributes:
        dtype: The type in the file, by its name there: `"F32"`, `"F16"`, `"BF16"`, `"I64"`, …; in GGUF also
            one of `BLOCK_BYTES`.
        shape: Its shape, outermost dimension first; of blocks, two dimensions, the last a multiple of
        `BLOCK`. read: Gives the numbers, in that shape and NumPy's type for `dtype` (of bfloat16 the bits,
        uint16); or
            float32, which is rounded to nearest, ties to even, where `dtype` is `"F16"` or `"BF16"`, and to
            blocks where it is that (`rust/formats/quantize.rs`).
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        if self.dtype in BLOCK_BYTES:
            return math.prod(self.shape) // BLOCK * BLOCK_BYTES[self.dtype]
        return math.prod(self.shape) * NUMPY_TYPES[self.dtype].itemsize


Tensors = Mapping[str, "NDArray[Any] | LazyArray"]
"""Tensors to write, by name."""


def lazy(array: NDArray[Any] | LazyArray, name: str) -> LazyArray:
    """A tensor as it is written: an array in its own type.

    Raises:
        ValueError: a type that files do not have; names the tensor.
    """
    if isinstance(array, LazyArray):
        if array.dtype not in NUMPY_TYPES:
            raise _wrong_type(name, array.dtype)
        return array
    wanted = array.dtype.newbyteorder("<")
    dtype = next((dtype for dtype, kind in NUMPY_TYPES.items() if kind == wanted), None)
    if dtype is None:
        raise _wrong_type(name, array.dtype)
    return LazyArray(dtype, array.shape, lambda: array)


def write_array(file: BinaryIO, array: LazyArray, name: str) -> None:
    """Writes the numbers of a tensor, the last dimension fastest.

    Raises:
        ValueError: the array that is read has another shape or type than was announced, or a number, or a
            block's scale, is too large for float16; names the tensor.
    """
    values = array.read()
    if values.shape != array.shape:
        raise ValueError(f"{name}: found shape {list(values.shape)}, expected {list(array.shape)}")
    if array.dtype in BLOCK_BYTES:
        step = max(1, _PIECE // array.shape[1])
        for start in range(0, array.shape[0], step):
            try:
                blocks = quantize(np.ascontiguousarray(values[start : start + step]), array.dtype)
            except ValueError as error:
                raise ValueError(f"{name}, from row {start} on: {error}") from None
            file.write(blocks.data)
        return
    kind = NUMPY_TYPES[array.dtype]
    rounded = values.dtype == np.float32 and array.dtype in ("F16", "BF16")
    if not rounded and values.dtype.newbyteorder("<") != kind:
        raise ValueError(f"{name}: found {values.dtype}, expected {kind.name} for {array.dtype}")
    for piece in _pieces(values):
        if rounded:
            piece = bfloat16_bits(piece) if array.dtype == "BF16" else _float16(piece, name)
        file.write(piece.astype(kind, copy=False).view(np.uint8).data)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of float32 numbers rounded to bfloat16: to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    # Half of the last place that stays, or just less where that place is even, carries into it.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def _float16(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """Numbers rounded to float16: to nearest, ties to even."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if (lost := np.isinf(rounded) & np.isfinite(values)).any():
        found = values[lost][0]
        raise ValueError(f"{name}: found {found:g}, expected at most 65504, the largest of float16")
    return rounded


def _pieces(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The elements in order, one-dimensional and contiguous; at most one tensor is copied."""
    flat = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]


def _wrong_type(name: str, found: object) -> ValueError:
    return ValueError(f"{name}: found type {found}, expected one of {', '.join(NUMPY_TYPES)}")
