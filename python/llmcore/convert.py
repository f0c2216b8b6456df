"""From one format of checkpoints to another: the same parameters, in other tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from llmcore._core import Gguf, parameters_of
from llmcore.arrays import BLOCK, LazyArray
from llmcore.blocks import describe
from llmcore.checkpoint import Checkpoint
from llmcore.gguf_file import write_gguf
from llmcore.gguf_from_tokenizer import tokenizer_metadata
from llmcore.models.base import View, errors_name
from llmcore.models.views import parts_of, rearranged
from llmcore.saving import save_folder

__all__ = ["DTYPES", "TYPES", "quantize", "to_folder", "to_gguf"]

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types of weights by their names; in files they have others."""

TYPES = {"q8_0": "Q8_0", "q4_1": "Q4_1", "q4_0": "Q4_0"}
"""Types of blocks that `quantize` writes."""

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
"""`general.file_type`: llama.cpp's number of the type of the matrices."""

_QUANTIZATION_VERSION = 2
"""Of ggml's blocks, as they are now."""

Rule = Callable[[str, tuple[int, ...]], str]
"""The type in the file of a tensor, by its name and shape."""


def to_folder(checkpoint: Checkpoint, folder: str | os.PathLike[str], dtype: str = "auto") -> None:
    """Writes a checkpoint in the Hugging Face layout; see `llmcore.saving.save_folder`, which it raises as.

    Args:
        checkpoint: What to write: of a GGUF file, quantised or not, the numbers that it stands for.
        folder: Where to; a checkpoint that is there is replaced.
        dtype: "float32", "float16", "bfloat16", or "auto": the type that each tensor has, float32 if that is
            quantised.
    """
    after = checkpoint.module.tensors(checkpoint.config)
    rule = _rule(checkpoint, after, dtype)
    tensors = rearranged(checkpoint.source, checkpoint.views, after, _shapes(checkpoint), rule)
    save_folder(folder, checkpoint, tensors)


def to_gguf(checkpoint: Checkpoint, path: str | os.PathLike[str], dtype: str = "auto") -> None:
    """Writes a checkpoint in the Hugging Face layout as a GGUF file with its tokenizer, as llama.cpp's
    converter does: vectors and position embeddings are float32, whatever the matrices are.

    Args:
        checkpoint: What to write.
        path: The file, which is replaced once the new one is on the disk.
        dtype: Of matrices: "float32", "float16", "bfloat16", or "auto": the type that each has.

    Raises:
        ValueError: a checkpoint in GGUF, a configuration or a tokenizer that GGUF has no words for, a number
            too large for float16, or another `dtype`; names file and field, or the tensor.
        OSError: the file cannot be written.
    """
    if isinstance(checkpoint.source, Gguf):
        raise ValueError(f"{checkpoint.path}: found a GGUF file, expected a folder with safetensors")
    _write_as_gguf(
        checkpoint, path, _rule(checkpoint, checkpoint.module.gguf_tensors(checkpoint.config), dtype)
    )


def quantize(checkpoint: Checkpoint, path: str | os.PathLike[str], kind: str = "q4_1") -> None:
    """Writes a checkpoint in floats as a GGUF file with its tokenizer, its matrices in blocks: "q8_0" is what
    `llmcore.load(dtype="int8")` has in memory, "q4_1" what "int4" has. Vectors, position embeddings, and
    matrices whose rows are no multiple of 32, are float32.

    Args:
        checkpoint: What to write: a folder, or a GGUF file in floats, whose metadata is kept.
        path: The file, which is replaced once the new one is on the disk.
        kind: One of `TYPES`.

    Raises:
        ValueError: a checkpoint that is quantised already, another `kind`, a number that no scale of float16
            reaches; also as `to_gguf`. Names file and field, or the tensor.
        OSError: the file cannot be written.
    """
    if kind not in TYPES:
        raise ValueError(f"type: found {kind!r}, expected one of {', '.join(map(repr, TYPES))}")
    source = checkpoint.source
    for view in checkpoint.views.values():
        if (found := source.info(view.tensor)[1]) not in DTYPES.values():
            expected = f"floats ({', '.join(DTYPES.values())}): rounding twice loses twice"
            raise ValueError(
                f"{checkpoint.path}: type of {view.tensor!r}: found {found}, expected {expected}"
            )

    def rule(name: str, shape: tuple[int, ...]) -> str:
        return "F32" if shape[-1] % BLOCK else TYPES[kind]

    if not isinstance(source, Gguf):
        return _write_as_gguf(checkpoint, path, rule)

    def read(name: str) -> Callable[[], Any]:
        return lambda: source.read(name)

    matrix_rule, tensors = _of_matrices(rule), {}
    for name in source.names():
        shape, found = source.info(name)
        dtype = matrix_rule(name, shape) if found in DTYPES.values() else found
        tensors[name] = LazyArray(dtype, shape, read(name))
    kept = {
        "general.file_type": _FILE_TYPES[TYPES[kind]],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    write_gguf(path, source.metadata() | kept, tensors)
    return None


def _of_matrices(rule: Rule) -> Rule:
    """The rule, and float32 for what llama.cpp adds to float32."""

    def of_all(name: str, shape: tuple[int, ...]) -> str:
        return "F32" if len(shape) < 2 or name == "position_embd.weight" else rule(name, shape)

    return of_all


def _write_as_gguf(checkpoint: Checkpoint, path: str | os.PathLike[str], matrix_rule: Rule) -> None:
    """Writes a folder; the rule is that of matrices."""
    module, config, shapes = checkpoint.module, checkpoint.config, _shapes(checkpoint)
    with errors_name(checkpoint.config_file, within=checkpoint.path):
        metadata: dict[str, Any] = module.gguf_metadata(config)
        tables = module.gguf_tables(config)
    after, rule = module.gguf_tensors(config), _of_matrices(matrix_rule)
    embed = after["embed.weight"].tensor
    general = {
        "general.architecture": checkpoint.model_type,
        "general.type": "model",
        "general.name": checkpoint.path.resolve().name,
        "general.file_type": _FILE_TYPES[rule(embed, shapes["embed.weight"])],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    size = shapes["embed.weight"][0]
    tokenizer = tokenizer_metadata(checkpoint.path, size, checkpoint.generation)
    tensors = rearranged(checkpoint.source, checkpoint.views, after, shapes, rule)
    write_gguf(path, general | metadata | tokenizer, {**tables, **tensors})


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters, by path."""
    with errors_name(checkpoint.config_file, within=checkpoint.path):
        description = json.dumps(describe(checkpoint.module.build(checkpoint.config)))
        return {path: tuple(shape) for path, shape in parameters_of(description)}


def _rule(checkpoint: Checkpoint, after: Mapping[str, View], dtype: str) -> Rule:
    """Which type each tensor of a layout gets."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ValueError(f"dtype: found {dtype!r}, expected 'auto', {', '.join(map(repr, DTYPES))}")
        return lambda name, shape: DTYPES[dtype]
    parts = parts_of(after)

    def same(name: str, shape: tuple[int, ...]) -> str:
        kind = checkpoint.source.info(checkpoint.views[parts[name][0]].tensor)[1]
        return kind if kind in DTYPES.values() else "F32"

    return same
