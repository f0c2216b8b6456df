"""From a name to a model: one that infers, or one that also trains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from llmcore import hub
from llmcore.checkpoint import open_checkpoint
from llmcore.model import Model

if TYPE_CHECKING:
    from llmcore.training.lora import LoRA
    from llmcore.training.model import TrainableModel

__all__ = ["DTYPES", "load"]

DTYPES = ("auto", "float32", "bfloat16", "int8", "int4")
"""How weights can be kept."""


@overload
def load(
    source: str | Path,
    *,
    dtype: str = ...,
    kv_cache_dtype: str = ...,
    threads: int | None = ...,
    trainable: Literal[False] = ...,
) -> Model: ...
@overload
def load(
    source: str | Path,
    *,
    dtype: str = ...,
    threads: int | None = ...,
    trainable: Literal[True],
    precision: str = ...,
    frozen: str | Sequence[str] = ...,
    adapter: LoRA | str | Path | None = ...,
) -> TrainableModel: ...
def load(
    source: str | Path,
    *,
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    threads: int | None = None,
    trainable: bool = False,
    precision: str = "float32",
    frozen: str | Sequence[str] = (),
    adapter: LoRA | str | Path | None = None,
) -> Model:
    """Loads a model.

    Args:
        source: A Hugging Face folder, a `.gguf` file, a hub id, or a short name (`llmcore.hub`).
        dtype: How matrices are kept. "auto": as the file has them. What quantised ones are multiplied with is
            rounded to bytes, 32 numbers at a time with a scale of their own; what those in bfloat16 are
            multiplied with, to bfloat16; those in float16 are exact. "float32" expands them all; "bfloat16"
            rounds them all, to half the memory. "int8" and "int4" round the matrices of a checkpoint in
            floats to blocks of 32 numbers, 8.5 bits (Q8_0) and 5 bits (Q4_1) a number; a matrix whose rows
            are no multiple of 32 stays float32. With `trainable` that is for matrices that are frozen, and
            "bfloat16" is refused. Vectors, embeddings of positions, and sums are float32.
        kv_cache_dtype: What keys and values are kept in: "float32"; "bfloat16", half the memory; "int8", a
            quarter, with a scale for each position and head. "auto" is bfloat16 where weights are kept in
            fewer bits than float32, else float32. They are multiplied in float32 whatever they are kept in,
            so that logits are the same bits on every machine. A model that trains keeps float32.
        threads: At most so many threads for each call; all of the process's processors unless given.
        trainable: For a model that also trains (`llmcore.training.TrainableModel`).
        precision: While it trains, what the factors of products are rounded to: "float32" or "bfloat16".
            Weights, gradients and sums are float32.
        frozen: Names of tensors that do not train, or a pattern of such (`*` and `?` as in names of files),
            or several.
        adapter: Trains only low-rank adapters: new ones, or those of a folder in PEFT's format.

    Raises:
        FileNotFoundError: nothing is found under the name; says where it was looked for.
        ValueError: a file that is not what it claims to be, an architecture that is not supported, an
            argument out of range, or "int8" or "int4" of what is quantised otherwise already.
        TypeError: a source that is no path.

    Warns:
        UserWarning: parameters of the file that the model does not have; names the file and some of them.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source: found {type(source).__name__}, expected a path or a name")
    if kv_cache_dtype not in ("auto", "float32", "bfloat16", "int8"):
        expected = "'auto', 'float32', 'bfloat16' or 'int8'"
        raise ValueError(f"kv_cache_dtype: found {kv_cache_dtype!r}, expected {expected}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: found {dtype!r}, expected one of {', '.join(map(repr, DTYPES))}")
    checkpoint = open_checkpoint(hub.resolve(source))
    if not trainable:
        if adapter is not None or frozen or precision != "float32":
            raise ValueError("trainable: found False, expected True with adapter, frozen or precision")
        return Model(checkpoint, threads=threads, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    if kv_cache_dtype not in ("auto", "float32"):
        raise ValueError(f"kv_cache_dtype: found {kv_cache_dtype!r}, expected 'float32' where trainable")
    from llmcore.training.model import TrainableModel

    return TrainableModel(
        checkpoint, threads=threads, dtype=dtype, precision=precision, frozen=frozen, adapter=adapter
    )
