"""From one format of checkpoints to another: the same parameters, in other tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from llmcore._core import Gguf, parameters_of
from llmcore.blocks import describe
from llmcore.checkpoint import Checkpoint
from llmcore.gguf_file import write_gguf
from llmcore.gguf_from_tokenizer import tokenizer_metadata
from llmcore.models.base import View, errors_name
from llmcore.models.views import parts_of, rearranged
from llmcore.saving import save_folder

__all__ = ["DTYPES", "to_folder", "to_gguf"]

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types of weights by their names; in files they have others."""

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""`general.file_type`: llama.cpp's number of the type of the matrices."""

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
    module, config, shapes = checkpoint.module, checkpoint.config, _shapes(checkpoint)
    with errors_name(checkpoint.config_file, within=checkpoint.path):
        metadata: dict[str, Any] = module.gguf_metadata(config)
        tables = module.gguf_tables(config)
    after = module.gguf_tensors(config)
    matrix_rule = _rule(checkpoint, after, dtype)

    def rule(name: str, shape: tuple[int, ...]) -> str:
        # llama.cpp adds these to float32.
        return "F32" if len(shape) < 2 or name == "position_embd.weight" else matrix_rule(name, shape)

    embed = after["embed.weight"].tensor
    general = {
        "general.architecture": checkpoint.model_type,
        "general.type": "model",
        "general.name": checkpoint.path.resolve().name,
        "general.file_type": _FILE_TYPES[rule(embed, shapes["embed.weight"])],
        "general.quantization_version": 2,
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
        return kind if kind in _FILE_TYPES else "F32"

    return same
