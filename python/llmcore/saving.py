"""Saving a checkpoint as a folder in the Hugging Face layout, which Transformers and `llmcore.load` read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from llmcore._core import Gguf
from llmcore.arrays import Tensors, lazy
from llmcore.checkpoint import Checkpoint
from llmcore.files import replaced_folder
from llmcore.models.base import errors_name
from llmcore.safetensors_file import MAX_SHARD_SIZE, write_sharded

__all__ = ["FILES", "TOKENIZER_FILES", "copy_tokenizer", "save_folder", "with_dtype", "write_json"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
"""What a tokenizer, and the template of its chats, may be stored in."""

FILES = ("config.json", "generation_config.json", "model*.safetensors", "model*.index.json", *TOKENIZER_FILES)
"""Patterns of all that is written here: a folder that holds nothing else may be replaced."""

_TORCH_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def save_folder(
    folder: str | os.PathLike[str],
    checkpoint: Checkpoint,
    tensors: Tensors,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Saves a checkpoint: whole or not at all, in the place of one that is there (see `replaced_folder`).

    Args:
        folder: Where to; folders above it are made.
        checkpoint: Where the configuration, the generation options and the tokenizer are from.
        tensors: All weights by their names in Transformers, in Transformers' shapes.
        max_shard_size: Bytes of tensors in a file.

    Raises:
        FileExistsError: there is a file, or a folder that holds anything but a checkpoint.
        ValueError: a tensor of a type that cannot be stored, or a checkpoint in GGUF that Transformers has no
            words for; names the tensor, or file and field.
        OSError: a file that cannot be written, or the tokenizer's, which cannot be read.
    """
    dtypes = {lazy(array, name).dtype for name, array in tensors.items()}
    widest = next((name for dtype, name in _TORCH_TYPES.items() if dtype in dtypes), "float32")
    config = with_dtype(_config_json(checkpoint), widest)
    with replaced_folder(folder, FILES) as unfinished:
        write_json(unfinished / "config.json", config)
        _write_generation(unfinished, checkpoint)
        copy_tokenizer(checkpoint.path, unfinished)
        write_sharded(unfinished, tensors, max_shard_size=max_shard_size)


def _config_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json as it was loaded, or made of a GGUF file's metadata."""
    module = checkpoint.module
    if isinstance(checkpoint.source, Gguf):
        with errors_name(checkpoint.path):
            fields = {"model_type": checkpoint.model_type, **module.config_json(checkpoint.config)}
        fields |= checkpoint.generation
    else:
        fields = dict(checkpoint.config_json)
    return fields | {"architectures": fields.get("architectures") or [module.ARCHITECTURE]}


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json that says what weights are stored in, under the name that it uses: older ones say
    `torch_dtype`."""
    names = [name for name in ("dtype", "torch_dtype") if name in config]
    return config | dict.fromkeys(names or ["dtype"], dtype)


def _write_generation(folder: Path, checkpoint: Checkpoint) -> None:
    """generation_config.json, if the checkpoint has one, or knows what would stand there."""
    file = checkpoint.path / "generation_config.json"
    if file.is_file():
        shutil.copyfile(file, folder / file.name)
    elif isinstance(checkpoint.source, Gguf) and checkpoint.generation:
        write_json(folder / file.name, dict(checkpoint.generation))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the files of a tokenizer, as many as there are; from a GGUF file, writes their like."""
    if source.is_file():
        from llmcore.gguf_to_tokenizer import tokenizer_files

        for name, content in tokenizer_files(Gguf(source), source).items():
            write_json(folder / name, content)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON file, as readable as Transformers writes it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
