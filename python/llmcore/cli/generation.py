"""The commands `generate` and `chat`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llmcore
from llmcore.cli.options import (
    DEFAULT_MODEL,
    DiversityPenalty,
    Dtype,
    EarlyStopping,
    FrequencyPenalty,
    Json,
    KvCacheDtype,
    LengthPenalty,
    MaxNewTokens,
    MinNewTokens,
    MinP,
    ModelOption,
    NoRepeatNgramSize,
    NumBeamGroups,
    NumBeams,
    NumReturnSequences,
    PresencePenalty,
    RepetitionPenalty,
    Seed,
    Stats,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    TypicalP,
    chosen,
)
from llmcore.cli.terminal import exit_codes, one_line, read_input, remark, write, write_json

if TYPE_CHECKING:
    from llmcore.generation import Completion, Piece
    from llmcore.model import Model

__all__ = ["app"]

app = typer.Typer(rich_markup_mode="markdown")

CHAT_TOKENS = 1024


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


@app.command()
@exit_codes
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
    kv_cache_dtype: KvCacheDtype = "auto",
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
    loaded = llmcore.load(model, dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)
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


@app.command()
@exit_codes
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
    kv_cache_dtype: KvCacheDtype = "auto",
    stats: Stats = False,
) -> None:
    """Talk with a model, a message a line.

    Ctrl-C stops an answer; Ctrl-D or /exit ends; /clear forgets the conversation.
    """
    options = chosen(
        max_new_tokens=max_new_tokens, stop_strings=stop, temperature=temperature, top_k=top_k, top_p=top_p,
        min_p=min_p, seed=seed, repetition_penalty=repetition_penalty,
    )  # fmt: skip
    loaded = llmcore.load(model, dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)
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
