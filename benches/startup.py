"""What it costs to begin: the import, loading a model up to its first token, and the memory that it takes.

    python benches/startup.py

Each figure is the median over processes of their own. The import is what `import llmcore` and the name
`llmcore.load` take where NumPy is imported already. Memory is the peak of a process that loads and
generates, less its peak after the import, against what the packed weights and the keys and values of all
positions take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import machine

from llmcore import hub

GOALS = {"auto": 0.25}
"""Seconds to the first token, where they are not half of one."""

CHILD = """
import json, re, sys, time
import numpy

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

start = time.perf_counter()
import llmcore
llmcore.load
imported = time.perf_counter() - start
memory = peak()
start = time.perf_counter()
model = llmcore.load(sys.argv[1], dtype=sys.argv[3])
model.generate("I love programming", max_new_tokens=1)
first_token = time.perf_counter() - start
prompt = [i % model.core.vocab_size for i in range(1, int(sys.argv[2]) + 1)]
completion = model.generate(prompt, max_new_tokens=64, min_new_tokens=64)
positions = len(prompt) + len(completion.ids)
needed = model.core.weight_bytes() + positions * model.core.kv_bytes_per_position()
print(json.dumps([imported, first_token, peak() - memory, needed]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="what llmcore.load takes")
    parser.add_argument("--dtypes", nargs="+", default=["auto", "float32"])
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    path = str(hub.resolve(args.model))
    print(f"{machine.describe()}; medians of {args.runs} processes\n")
    print("| | found | goal |")
    print("|---|---|---|")
    for dtype in args.dtypes:
        for prompt in (4, 512):
            imported, first_token, memory, needed = measure(path, prompt, dtype, args.runs)
            if prompt == 4:
                print(f"| {dtype}: import beyond NumPy's | {imported:.3f} s | 0.1 s |")
                print(f"| {dtype}: load and first token | {first_token:.3f} s | {GOALS.get(dtype, 0.5)} s |")
            goal = (1.05 * needed + 40e6) / 1e6
            print(
                f"| {dtype}: peak memory, {prompt} + 64 tokens | {memory / 1e6:.0f} MB, "
                f"{memory / needed:.2f} × weights and cache | {goal:.0f} MB |"
            )


def measure(path: str, prompt: int, dtype: str, runs: int) -> list[float]:
    """Medians of what the child prints. One run beforehand brings the files into memory."""
    command = [sys.executable, "-c", CHILD, path, str(prompt), dtype]
    answers = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs + 1)
    ]
    return [statistics.median(values) for values in zip(*answers[1:], strict=True)]


if __name__ == "__main__":
    main()
