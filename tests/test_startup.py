"""What beginning costs. The fastest of a few processes counts, since the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys

RUNS = 5

IMPORT = """
import json, sys, time
import numpy
before = set(sys.modules)
start = time.perf_counter()
import llmcore
llmcore.load  # names are imported when they are first asked for
print(json.dumps([time.perf_counter() - start, sorted(set(sys.modules) - before)]))
"""

LOAD = """
import json, sys, time
import llmcore
start = time.perf_counter()
llmcore.load(sys.argv[1], dtype="float32")
print(json.dumps([time.perf_counter() - start, None]))
"""


def run(script: str, *arguments: str) -> tuple[float, list[str]]:
    command = [sys.executable, "-c", script, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_import_costs_a_tenth_of_a_second_beyond_numpy() -> None:
    assert min(run(IMPORT)[0] for _ in range(RUNS)) <= 0.1


def test_import_brings_nothing_but_numpy() -> None:
    packages = {name.partition(".")[0] for name in run(IMPORT)[1]}
    assert packages & {"typer", "rich", "jinja2", "tokenizers", "huggingface_hub", "torch"} == set()


def test_load_takes_half_a_second(smollm2_path) -> None:
    assert min(run(LOAD, str(smollm2_path))[0] for _ in range(RUNS)) <= 0.5
