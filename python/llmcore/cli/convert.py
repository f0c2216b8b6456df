"""The commands `llmcore convert` and `llmcore quantize`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from llmcore.cli.options import Json
from llmcore.cli.terminal import exit_codes, write, write_json

__all__ = ["app"]

app = typer.Typer(rich_markup_mode="markdown")


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


@app.command()
@exit_codes
def convert(
    source: Annotated[str, typer.Argument(help="A folder, a .gguf file, a hub id or a short name.")],
    out: Annotated[Path, typer.Argument(help="The .gguf file or the folder to write.")],
    to: Annotated[
        Format | None, typer.Option(help="The format. [default: gguf for a name that ends so, else hf]")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="What matrices are stored in; auto: as in SOURCE, or float32.")
    ] = Dtype.AUTO,
    as_json: Json = False,
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
    converted = to_gguf if to is Format.GGUF else to_folder
    converted(checkpoint, out, dtype.value)
    say_what_is_written(out, as_json)


class Type(str, Enum):
    """Blocks that matrices can be rounded to."""

    Q8_0 = "q8_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


@app.command()
@exit_codes
def quantize(
    source: Annotated[
        str, typer.Argument(help="A folder, a .gguf file in floats, a hub id or a short name.")
    ],
    out: Annotated[Path, typer.Argument(help="The .gguf file to write.")],
    kind: Annotated[
        Type, typer.Option("--type", help="What matrices are rounded to: 8.5, 5 or 4.5 bits a number.")
    ] = Type.Q4_1,
    as_json: Json = False,
) -> None:
    """Quantise a checkpoint into a GGUF file, for llama.cpp too.

    The tokenizer goes with it. q8_0 is what --dtype int8 computes with, q4_1 what --dtype int4 does.
    """
    from llmcore import convert, hub
    from llmcore.checkpoint import open_checkpoint

    if out.suffix.lower() != ".gguf":
        raise typer.BadParameter(f"found {str(out)!r}, expected a name that ends in .gguf", param_hint="OUT")
    convert.quantize(open_checkpoint(hub.resolve(source)), out, kind.value)
    say_what_is_written(out, as_json)


def say_what_is_written(out: Path, as_json: bool) -> None:
    """How many bytes, and where."""
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    if as_json:
        write_json({"bytes": size, "path": str(out)})
    else:
        write(f"{size:,} bytes in {out}\n")
