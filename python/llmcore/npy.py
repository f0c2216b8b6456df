"""An .npy file of one dimension that is written part by part, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmcore.files import written_whole

__all__ = ["NpyWriter", "npy_written"]

_HEADER = 128
"""Bytes of the header, which is written last, when the length is known."""


class NpyWriter:
    """What an array that is being written is handed to."""

    length: int = 0
    """The elements so far."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._dtype = dtype

    def write(self, part: NDArray[Any]) -> None:
        """Appends the elements of an array of one dimension, converted to the file's type."""
        self._file.write(part.astype(self._dtype, copy=False).data)
        self.length += len(part)


@contextmanager
def npy_written(path: Path, dtype: np.dtype[Any]) -> Iterator[NpyWriter]:
    """A new .npy file, which takes the place of `path` once it is on the disk; see `written_whole`."""
    with written_whole(path) as file:
        file.write(bytes(_HEADER))
        writer = NpyWriter(file, dtype)
        yield writer
        file.seek(0)
        file.write(_header(dtype, writer.length))


def _header(dtype: np.dtype[Any], length: int) -> bytes:
    """The header of an .npy file, version 1.0 (`numpy.lib.format`)."""
    start = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    fields = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({length},), }}"
    return start + fields.encode().ljust(_HEADER - len(start) - 1) + b"\n"
