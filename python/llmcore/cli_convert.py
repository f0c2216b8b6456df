"""The command `llmcore convert`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["convert"]


class Format(str, Enum):
    """What a checkpoint can be converted to."""

    GGUF = "gguf"
    HF = "hf"


class Dtype(str, Enum):
    """What its weights can be stored in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def convert(
    source: Annotated[str, typer.Argument(help="A folder, a .gguf file, a hub id or a short name.")],
    out: Annotated[Path, typer.Argument(help="The .gguf file or the folder to write.")],
    to: Annotated[
        Format | None, typer.Option(help="The format. [default: gguf for a name that ends so, else hf]")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="What matrices are stored in; auto: as in SOURCE, or float32.")
    ] = Dtype.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Convert a checkpoint to GGUF, for llama.cpp, or to a folder, for Transformers.

    The tokenizer goes with it. Quantised weights become what they stand for.
    """
    from llmcore import hub
    from llmcore.checkpoint import open_checkpoint
    from llmcore.convert import to_folder, to_gguf

    if to is None:
        to = Format.GGUF if out.suffix.lower() == ".gguf" else Format.HF
    elif (to is Format.GGUF) != (out.suffix.lower() == ".gguf"):
        expected = "a name that ends in .gguf" if to is Format.GGUF else "the name of a folder"
        raise typer.BadParameter(f"found {str(out)!r}, expected {expected}", param_hint="OUT")
    checkpoint = open_checkpoint(hub.resolve(source))
    write = to_gguf if to is Format.GGUF else to_folder
    write(checkpoint, out, dtype.value)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    typer.echo(json.dumps({"bytes": size, "path": str(out)}) if as_json else f"{size:,} bytes in {out}")
