"""The command line: a module for each group of commands (`COMMANDS`).

Standard output holds the result and nothing else; progress and remarks go to standard error. Exit
codes: 0; 1 when something failed, with one line on standard error (LLMCORE_DEBUG=1 shows the
traceback); 2 for wrong usage; 130 after Ctrl-C; 141, silently, when nobody reads the output any more.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from llmcore import __version__

__all__ = ["app"]

COMMANDS = {
    "generate": "generation",
    "chat": "generation",
    "tokenize": "tokenizer",
    "train-tokenizer": "tokenizer",
    "train": "training",
    "plot": "training",
    "convert": "convert",
    "quantize": "convert",
    "pull": "models",
    "info": "models",
    "bench": "bench",
}
"""The module of each command, which is imported when the command, or help, is asked for."""


class Commands(typer.core.TyperGroup):
    """The commands of all modules."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name]}")
        return typer.main.get_group(module.app).commands[cmd_name]


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    """Language models on a CPU."""
    if version:
        print(f"llmcore {__version__}")
        raise typer.Exit
