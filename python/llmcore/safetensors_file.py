"""Writing safetensors: <https://github.com/huggingface/safetensors#format>.

A file is the length of its header (8 bytes, little-endian), the header (JSON: type, shape and place of each
tensor, and strings under `__metadata__`), and the tensors without gaps. The header is filled with spaces, and
wider types come first, so that every tensor begins at a multiple of its type's size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcore.arrays import NUMPY_TYPES, LazyArray, Tensors, lazy, write_array
from llmcore.files import errors_name_file, written_whole

__all__ = ["MAX_SHARD_SIZE", "write_safetensors", "write_sharded"]

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of a shard, as on the Hugging Face hub."""

_METADATA = {"format": "pt"}
"""Transformers reads only files that say for which framework they are; PyTorch's layout is NumPy's."""


def write_safetensors(
    path: str | os.PathLike[str], tensors: Tensors, metadata: Mapping[str, str] = _METADATA
) -> None:
    """Writes a file of tensors, whole or not at all: once it returns, the file is on the disk.

    No more than one tensor is held beside those that are given: a `LazyArray` is read when it is its turn.

    Args:
        path: The file, which is replaced if it exists.
        tensors: Arrays by name. bfloat16, which NumPy does not have, is a `LazyArray` of `"BF16"`.
        metadata: Strings for the header.

    Raises:
        ValueError: a tensor of a type that the format does not have, or whose numbers are not what was
            announced; names the tensor. Also a name that the format keeps for itself.
        OSError: the file cannot be written; names it.
    """
    path = Path(path)
    if "__metadata__" in tensors:
        raise ValueError(f"{path}: found a tensor of the name '__metadata__', expected another name")
    arrays = {name: lazy(array, name) for name, array in tensors.items()}
    names = sorted(arrays, key=lambda name: -NUMPY_TYPES[arrays[name].dtype].itemsize)
    with written_whole(path) as file, errors_name_file(path):
        file.write(_header({name: arrays[name] for name in names}, metadata))
        for name in names:
            write_array(file, arrays[name], name)


def write_sharded(
    folder: str | os.PathLike[str],
    tensors: Tensors,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    name: str = "model",
) -> list[Path]:
    """Writes tensors into a folder as Transformers does: `model.safetensors`, or shards
    `model-00001-of-0000N.safetensors` and what lists them, `model.safetensors.index.json`.

    Each file is whole or not there, but not all of them together: see `llmcore.files.replaced_folder`.

    Args:
        folder: Where the files go.
        tensors: As for `write_safetensors`; shards are filled in this order.
        max_shard_size: Bytes of tensors in a shard; a larger tensor has a shard to itself.
        name: What the names of the files begin with.

    Returns:
        The files.

    Raises:
        ValueError, OSError: as `write_safetensors`.
    """
    folder = Path(folder)
    arrays = {tensor: lazy(array, tensor) for tensor, array in tensors.items()}
    shards = _shards(arrays, max_shard_size)
    if len(shards) == 1:
        write_safetensors(folder / f"{name}.safetensors", shards[0])
        return [folder / f"{name}.safetensors"]
    places: dict[str, str] = {}
    files = []
    for i, shard in enumerate(shards, 1):
        file = folder / f"{name}-{i:05}-of-{len(shards):05}.safetensors"
        write_safetensors(file, shard)
        files.append(file)
        places |= dict.fromkeys(shard, file.name)
    total = {"total_size": sum(array.size for array in arrays.values())}
    index = {"metadata": total, "weight_map": dict(sorted(places.items()))}
    files.append(folder / f"{name}.safetensors.index.json")
    with written_whole(files[-1]) as out, errors_name_file(files[-1]):
        out.write(json.dumps(index, indent=2).encode() + b"\n")
    return files


def _header(arrays: Mapping[str, LazyArray], metadata: Mapping[str, str]) -> bytes:
    """The length of the header and the header, together a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": array.dtype,
            "shape": list(array.shape),
            "data_offsets": [start, start + array.size],
        }
        start += array.size
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header


def _shards(arrays: Mapping[str, LazyArray], most: int) -> list[dict[str, LazyArray]]:
    """The tensors in order, cut before the one that would be too much. At least one shard."""
    shards: list[dict[str, LazyArray]] = [{}]
    size = 0
    for name, array in arrays.items():
        if shards[-1] and size + array.size > most:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.size
    return shards
