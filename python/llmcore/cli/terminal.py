"""What all commands share: their output, their input, and how their errors become exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

__all__ = ["exit_codes", "one_line", "read_input", "remark", "write", "write_json"]

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
