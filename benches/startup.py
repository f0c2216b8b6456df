"""What it costs to begin: the import, loading a model, and the memory that generating takes.

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
model = llmcore.load(sys.argv[1], dtype="float32")
loaded = time.perf_counter() - start
prompt = [i % model.core.vocab_size for i in range(1, int(sys.argv[2]) + 1)]
completion = model.generate(prompt, max_new_tokens=64, min_new_tokens=64)
positions = len(prompt) + len(completion.ids)
needed = model.core.weight_bytes() + positions * model.core.kv_bytes_per_position()
print(json.dumps([imported, loaded, peak() - memory, needed]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="what llmcore.load takes")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    path = str(hub.resolve(args.model))
    print(f"{machine.describe()}; medians of {args.runs} processes\n")
    print("| | found | goal |")
    print("|---|---|---|")
    for prompt in (4, 512):
        imported, loaded, memory, needed = measure(path, prompt, args.runs)
        if prompt == 4:
            print(f"| import beyond NumPy's | {imported:.3f} s | 0.1 s |")
            print(f"| load | {loaded:.3f} s | 0.5 s |")
        print(
            f"| peak memory, {prompt} + 64 tokens | {memory / 1e6:.0f} MB, {memory / needed:.2f} × "
            f"weights and cache | 1.3 × |"
        )


def measure(path: str, prompt: int, runs: int) -> list[float]:
    """Medians of what the child prints. One run beforehand brings the files into memory."""
    command = [sys.executable, "-c", CHILD, path, str(prompt)]
    answers = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs + 1)
    ]
    return [statistics.median(values) for values in zip(*answers[1:], strict=True)]


if __name__ == "__main__":
    main()
