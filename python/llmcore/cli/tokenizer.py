"""The commands `tokenize` and `train-tokenizer`."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llmcore import hub
from llmcore.cli.options import DEFAULT_MODEL, Json, ModelOption
from llmcore.cli.terminal import exit_codes, read_input, remark, write, write_json

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer
    from llmcore.tokenizer_files import Documents

__all__ = ["app"]

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
@exit_codes
def tokenize(
    text: Annotated[str | None, typer.Argument(help='The text; "-" reads it from standard input.')] = None,
    model: ModelOption = DEFAULT_MODEL,
    count: Annotated[bool, typer.Option("--count", "-c", help="Print the number of tokens only.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Encode a file of any size into an .npy file of ids.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --file, where to. [default: FILE.npy]")
    ] = None,
    documents: Annotated[
        str, typer.Option(help="With --file, what a document is: file, lines or jsonl.")
    ] = "file",
    separator: Annotated[
        str | None, typer.Option(help="With --file, a token that follows each document.", metavar="TOKEN")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the tokens of a text: their text in colours on a terminal, else an id and its piece a line.

    --model may be a tokenizer.json, too.
    """
    from llmcore.tokenizer import Tokenizer

    if file is not None and (text is not None or count):
        raise typer.BadParameter("--file takes neither a text nor --count")
    data = read_input(text, "text") if file is None else b""
    path = hub.resolve(model)
    tokenizer = Tokenizer.from_file(path) if path.is_file() else Tokenizer.from_folder(path)
    if file is not None:
        return encode_file(tokenizer, file, out, documents, separator, as_json)
    if count:
        number = tokenizer.count(data)
        return write_json({"count": number}) if as_json else write(f"{number}\n")
    ids = tokenizer.encode(data)
    pieces = [tokenizer.token_bytes(id) for id in ids]
    if as_json:
        write_json({"ids": ids, "pieces": [piece.decode("utf-8", "backslashreplace") for piece in pieces]})
    elif sys.stdout.isatty():
        show_in_colours(ids, pieces, len(data))
    else:
        write("".join(f"{id}\t{shown(piece)}\n" for id, piece in zip(ids, pieces, strict=True)))
    return None


def encode_file(
    tokenizer: Tokenizer, file: Path, out: Path | None, documents: str, separator: str | None, as_json: bool
) -> None:
    """What --file does: the .npy file, and a line that says how many ids are where."""
    id = None if separator is None else tokenizer.token_to_id(separator)
    if separator is not None and id is None:
        raise typer.BadParameter(f"--separator: found {separator!r}, expected a token of the vocabulary")
    out = out or file.with_name(f"{file.name}.npy")
    ids = tokenizer.encode_file(file, out, documents=cast("Documents", documents), separator=id)
    if as_json:
        write_json({"count": len(ids), "dtype": ids.dtype.name, "path": str(out)})
    else:
        write(f"{len(ids)} ids ({ids.dtype.name}) in {out}\n")


def show_in_colours(ids: list[int], pieces: list[bytes], size: int) -> None:
    """The text, the ids, and how many there are."""
    from rich.console import Console

    from llmcore.token_colours import coloured_ids, coloured_pieces

    console = Console(highlight=False, soft_wrap=True)
    for text in (coloured_pieces(pieces), coloured_ids(ids)):
        console.print(text)
    console.print(f"{len(ids)} tokens, {size} bytes", style="dim")


def shown(piece: bytes) -> str:
    """A token's bytes on one line: as text, or as bytes where they are part of a character."""
    try:
        return json.dumps(piece.decode(), ensure_ascii=False)
    except UnicodeDecodeError:
        return repr(piece)


@app.command()
@exit_codes
def train_tokenizer(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of UTF-8, each line a document.", exists=True, dir_okay=False),
    ],
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", "-n", help="Tokens: special ones, 256 bytes, and merges.", min=256)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A .json that other libraries read, or a .tiktoken.")
    ] = Path("tokenizer.json"),
    pattern: Annotated[
        str, typer.Option(help="gpt2, cl100k, o200k, llama3, qwen2, or a regular expression.")
    ] = "gpt2",
    special_token: Annotated[
        list[str] | None, typer.Option(help="A special token; may be given several times.", metavar="TOKEN")
    ] = None,
    min_frequency: Annotated[
        int, typer.Option(help="A pair that is rarer is not merged.", min=0, metavar="N")
    ] = 0,
    min_piece_count: Annotated[
        int, typer.Option(help="Leave out pieces that are rarer; not exact.", min=1, metavar="N")
    ] = 1,
    max_memory: Annotated[
        str | None, typer.Option(help="As 2GB or 500MB; what is more is counted on disk.", metavar="SIZE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a byte-level vocabulary, with the merges of Hugging Face's trainer."""
    from llmcore.tokenizer import Tokenizer

    # A wrong name should not be found out after the training.
    if out.suffix not in (".json", ".tiktoken"):
        raise typer.BadParameter(
            f"--out: found {out.name!r}, expected a name that ends in .json or .tiktoken"
        )
    if not out.parent.is_dir():
        raise typer.BadParameter(f"--out: found {str(out)!r}, expected a path in a folder that exists")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tokenizer = Tokenizer.train(
            files, vocab_size, pattern=pattern, special_tokens=special_token or (),
            min_frequency=min_frequency, min_piece_count=min_piece_count,
            max_memory=None if max_memory is None else memory_size(max_memory),
        )  # fmt: skip
    for warning in told:
        remark(f"llmcore: {warning.message}")
    tokenizer.save(out)
    if as_json:
        write_json({"vocab_size": tokenizer.vocab_size, "path": str(out)})
    else:
        write(f"{tokenizer.vocab_size} tokens in {out}\n")


def memory_size(text: str) -> int:
    """Bytes: a number, and maybe kB, MB, GB or TB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?)b?", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"--max-memory: found {text!r}, expected bytes, as 2GB or 500MB")
    number, unit = found.groups()
    return int(float(number) * 1000 ** " kmgt".index(unit or " "))
