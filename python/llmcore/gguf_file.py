"""Writing GGUF, version 3, little-endian: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

A file is `GGUF`, the version, the counts of tensors and of metadata pairs, the pairs, the tensors' names,
shapes, types and places, and, each from a multiple of 32 bytes on, their data. `rust/formats/gguf.rs` reads
it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.arrays import BLOCK, BLOCK_BYTES, LazyArray, Tensors, lazy, write_array
from llmcore.files import errors_name_file, written_whole

__all__ = ["write_gguf"]

_VERSION = 3
_ALIGNMENT = 32
_MOST_DIMS = 4  # ggml's GGML_MAX_DIMS

_STRING, _ARRAY = 8, 9
_VALUE_TYPES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7,
    "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
"""The numbers of metadata's types, by NumPy's names."""

_TENSOR_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28,
    "BF16": 30,
}  # fmt: skip
"""ggml's numbers of the types of tensors."""


def write_gguf(path: str | os.PathLike[str], metadata: Mapping[str, Any], tensors: Tensors) -> None:
    """Writes a GGUF file, whole or not at all: once it returns, the file is on the disk.

    Args:
        path: The file, which is replaced if it exists.
        metadata: Values by key: a `str`, a `bool`, an `int` (uint32, or int64 where that is too small), a
            `float` (float32), a NumPy scalar (its own type), a list of `str`, or a 1-D NumPy array.
        tensors: Arrays by name, shapes outermost dimension first (the file has them reversed).

    Raises:
        ValueError: a value or a tensor that GGUF has no type for; names the key or the tensor.
        OSError: the file cannot be written; names it.
    """
    path = Path(path)
    arrays = {
        name: array if isinstance(array, LazyArray) else lazy(array, name) for name, array in tensors.items()
    }
    head = struct.pack("<4sIQQ", b"GGUF", _VERSION, len(arrays), len(metadata))
    head += b"".join(_string(key) + _value(key, value) for key, value in metadata.items())
    head += _places(arrays)
    with written_whole(path) as file, errors_name_file(path):
        file.write(_aligned(head))
        for name, array in arrays.items():
            write_array(file, array, name)
            file.write(bytes(_padding(array.size)))


def _places(arrays: Mapping[str, LazyArray]) -> bytes:
    """Name, shape, type and place of each tensor, in the order of their data."""
    out, start = b"", 0
    for name, array in arrays.items():
        if array.dtype not in _TENSOR_TYPES:
            raise ValueError(f"{name}: found type {array.dtype}, expected one of {', '.join(_TENSOR_TYPES)}")
        if len(array.shape) > _MOST_DIMS:
            raise ValueError(f"{name}: found {len(array.shape)} dimensions, expected at most {_MOST_DIMS}")
        if array.dtype in BLOCK_BYTES and (len(array.shape) != 2 or array.shape[1] % BLOCK):
            expected = f"rows of a multiple of {BLOCK}"
            raise ValueError(
                f"{name}: found shape {list(array.shape)}, expected {expected} for {array.dtype}"
            )
        dims = struct.pack(f"<I{len(array.shape)}Q", len(array.shape), *reversed(array.shape))
        out += _string(name) + dims + struct.pack("<IQ", _TENSOR_TYPES[array.dtype], start)
        start += array.size + _padding(array.size)
    return out


def _value(key: str, value: Any) -> bytes:
    """A value of the metadata, and before it its type."""
    match value:
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case bool():
            value = np.bool_(value)
        case int():
            value = np.uint32(value) if 0 <= value < 1 << 32 else np.int64(value)
        case float() if not isinstance(value, np.generic):
            value = np.float32(value)
        case [*items] if all(isinstance(item, str) for item in items):
            strings = b"".join(map(_string, items))
            return struct.pack("<IIQ", _ARRAY, _STRING, len(items)) + strings
    kind = _VALUE_TYPES.get(value.dtype.name) if isinstance(value, np.generic | np.ndarray) else None
    if kind is None or value.ndim > 1:
        expected = "a string, a number, true, false, or a list of strings or of numbers"
        raise ValueError(f"{key}: found {value!r:.80}, expected {expected}")
    data = np.asarray(value, value.dtype.newbyteorder("<")).tobytes()
    if value.ndim == 0:
        return struct.pack("<I", kind) + data
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + data


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padding(size: int) -> int:
    """Bytes up to the next place where a tensor may begin."""
    return -size % _ALIGNMENT


def _aligned(data: bytes) -> bytes:
    return data + bytes(_padding(len(data)))
