"""The command `llmcore bench`: how fast a model is on this machine, and how much of the machine that is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from llmcore.cli.options import Dtype, Json, KvCacheDtype, Threads
from llmcore.cli.terminal import exit_codes, remark, write, write_json
from llmcore.model import Model
from llmcore.work import Limits, Work

__all__ = ["app", "measure"]

PREFILL = 512
PROMPT = 8
NEW_TOKENS = 64
BATCH = 8
BEAMS = 5
RUNS = 3
"""Runs of each case; their median counts."""

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
@exit_codes
def bench(
    model: Annotated[str, typer.Argument(help="A folder, a .gguf file, a hub id or a short name.")],
    dtype: Dtype = "auto",
    kv_cache_dtype: KvCacheDtype = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a model on this machine: prefill, greedy decoding of one and of eight sequences, beams,
    loading, memory.

    Speeds stand beside what this machine was measured to do at most, in the same minute: a prefill's
    arithmetic beside its operations a second, a step's weights, keys and values beside its bytes a second.
    """
    found = measure(model, dtype, kv_cache_dtype, threads)
    if as_json:
        return write_json(found)
    limits = found["limits"]
    write(
        f"{found['threads']} threads, {found['isa']}: {limits['operations'] / 1e9:.0f} G operations/s in "
        f"{found['precision']}, {limits['memory'] / 1e9:.1f} GB/s of memory\n"
    )
    for case in found["cases"]:
        share = f"{case['share']:.0%} of the {case['limit']}"
        write(f"{case['name']:34} {case['tokens_per_second']:9.1f} tokens/s  {share}\n")
    write(f"{'load and first token':34} {found['first_token_seconds']:9.2f} s\n")
    weights = f"{found['weight_bytes'] / 1e6:.0f} MB of them weights"
    if found["resident_bytes"] is not None:
        write(f"{'memory of the loaded model':34} {found['resident_bytes'] / 1e6:9.0f} MB  {weights}\n")
    return None


def measure(
    source: str, dtype: str = "auto", kv_cache_dtype: str = "auto", threads: int | None = None
) -> dict[str, Any]:
    """What `llmcore bench --json` prints.

    Returns:
        `limits` (operations and bytes a second), `cases` (name, tokens a second, share of a limit and which),
        `first_token_seconds` from opening the files to the first token of a prompt of text, `weight_bytes`,
        and `resident_bytes`: by how much the process grew with the model and that token, None where the
        system does not say.

    Raises:
        ValueError, FileNotFoundError: as `llmcore.load`; also a context too short for a prompt and its
        answer.
    """
    import llmcore
    from llmcore import _core, hub

    path = hub.resolve(source)
    before, start = resident_bytes(), time.perf_counter()
    model = llmcore.load(path, dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)
    first_token(model)
    seconds, after = time.perf_counter() - start, resident_bytes()
    if model.max_positions < PROMPT + NEW_TOKENS + 1:
        expected = f"at least {PROMPT + NEW_TOKENS + 1}"
        raise ValueError(f"{source}: found a context of {model.max_positions} tokens, expected {expected}")
    threads = threads or _core.thread_count()
    remark(f"measuring for about {'a minute' if model.core.weight_bytes() > 1e9 else '20 seconds'}")
    limits, work = Limits.measure(threads), Work.of(model)
    operations = limits.operations(work.precision)
    tokens = min(PREFILL, model.max_positions - 1)
    prefill = timed(model, [prompt(model, tokens)], 1)
    cases = [
        {
            "name": f"prefill, {tokens} tokens",
            "tokens_per_second": tokens / prefill,
            "share": work.prefill_operations(tokens) / prefill / operations,
            "limit": "operations",
        }
    ]
    for name, sequences, beams in (
        ("greedy", 1, 1),
        (f"greedy, {BATCH} sequences", BATCH, 1),
        (f"beam search, {BEAMS} beams", 1, BEAMS),
    ):
        prompts = [prompt(model, PROMPT, first) for first in range(sequences)]
        steps = timed(model, prompts, NEW_TOKENS + 1, beams) - timed(model, prompts, 1, beams)
        positions = sequences * beams * (PROMPT + NEW_TOKENS // 2)
        cases.append(
            {
                "name": name,
                "tokens_per_second": sequences * NEW_TOKENS / steps,
                "share": NEW_TOKENS * work.step_bytes(positions) / steps / limits.memory,
                "limit": "memory",
            }
        )
    return {
        "model": str(path),
        "isa": _core.isa(),
        "threads": threads,
        "precision": work.precision,
        "limits": {"operations": operations, "memory": limits.memory},
        "cases": cases,
        "first_token_seconds": seconds,
        "weight_bytes": model.core.weight_bytes(),
        "resident_bytes": None if before is None or after is None else after - before,
    }


def first_token(model: Model) -> None:
    """The first token after a text, or after ids where the checkpoint has no tokenizer."""
    try:
        ids = model.tokenizer.encode("I love programming")
    except FileNotFoundError:
        ids = prompt(model, PROMPT)
    model.generate(ids, max_new_tokens=1)


def prompt(model: Model, length: int, first: int = 0) -> list[int]:
    """Tokens that differ, of the whole vocabulary."""
    return [(7919 * (i + 1) + first) % model.core.vocab_size for i in range(length)]


def timed(model: Model, prompts: list[list[int]], new_tokens: int, beams: int = 1) -> float:
    """Seconds to continue prompts by so many tokens, whatever ends texts: the median, after a first run."""

    def run() -> None:
        model.generate(
            prompts, max_new_tokens=new_tokens, min_new_tokens=new_tokens, num_beams=beams, do_sample=False
        )

    run()
    return statistics.median(seconds(run) for _ in range(RUNS))


def seconds(run: Callable[[], None]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def resident_bytes() -> int | None:
    """Memory of this process that is in use, where the system says so."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    # Without what is mapped from files: their pages are the system's to take back.
    return 1024 * int(fields["RssAnon"].split()[0]) if "RssAnon" in fields else None
