"""Training vocabularies, side by side with the fastest trainers that PyPI has.

    python benches/tokenizer_training.py --peer-python PEER/bin/python

PEER is a virtual environment with gigabpe, rustbpe and tokenizers. Each run is a process of its own with two
threads (`benches/tokenizer_training_worker.py`); the engines take turns, the slow ones once; what counts is
the median. Time is from the call to the trained vocabulary, without the import and without making the
documents. The peak memory is that of the whole process, the interpreter among it and, where documents are
handed over, these. The pattern is GPT-2's; `benches/corpora.py` says what the texts are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import corpora
import machine
from tokenizer_training_worker import ENGINES, THREADS

WORKER = Path(__file__).with_name("tokenizer_training_worker.py")
ROWS = {"8k merges on 20 MB": (20, 256 + 8000), "32k merges on 100 MB": (100, 256 + 32_000)}
MODES = {"file": ("llmcore", "gigabpe", "tokenizers"), "documents": ("llmcore", "rustbpe", "tokenizers")}
"""What engines take: a file of which each line is a document, or documents."""
SLOW = ("rustbpe", "tokenizers")
LIMIT = 300
"""Seconds that one process may take."""

Run = dict[str, float | str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    print(f"{machine.describe()}; {THREADS} threads, medians of {args.runs} processes\n")
    print("| | engine | seconds | of processor time | peak MB | time, to llmcore's | merges |")
    print("|---|---|---|---|---|---|---|")
    for row in args.rows:
        megabytes, vocab_size = ROWS[row]
        path = corpora.training(megabytes)
        if path is None:
            print(f"{row}: no text", file=sys.stderr)
            continue
        for mode in args.modes:
            engines = [engine for engine in MODES[mode] if engine in args.engines]
            show(f"{row}, {mode}", measure(engines, mode, vocab_size, path, args.runs, args.peer_python))


def measure(
    engines: list[str], mode: str, vocab_size: int, path: Path, runs: int, peer_python: str
) -> dict[str, list[Run]]:
    """The runs of each engine."""
    done: dict[str, list[Run]] = {}
    for i in range(runs):
        for engine in engines:
            if i > 0 and (engine in SLOW or engine not in done):
                continue
            python = sys.executable if engine == "llmcore" else peer_python
            command = [python, str(WORKER), engine, mode, str(vocab_size), str(path)]
            threads = {"LLMCORE_THREADS": str(THREADS), "RAYON_NUM_THREADS": str(THREADS)}
            try:
                ran = subprocess.run(
                    command,
                    env=os.environ | threads,
                    capture_output=True,
                    text=True,
                    timeout=LIMIT,
                    check=True,
                )
            except subprocess.CalledProcessError as failed:
                print(f"{engine}: {(failed.stderr.strip() or '?').splitlines()[-1]}", file=sys.stderr)
                continue
            except subprocess.TimeoutExpired:
                print(f"{engine}: took more than {LIMIT} s", file=sys.stderr)
                continue
            done.setdefault(engine, []).append(json.loads(ran.stdout.splitlines()[-1]))
    return done


def show(row: str, done: dict[str, list[Run]]) -> None:
    def median(engine: str, figure: str) -> float:
        return statistics.median(float(run[figure]) for run in done[engine])

    merges = {engine: {str(run["merges"]) for run in runs} for engine, runs in done.items()}
    for engine in done:
        ratio = (
            median(engine, "seconds") / median("llmcore", "seconds") if "llmcore" in done else float("nan")
        )
        if engine == "llmcore":
            same = "" if len(merges[engine]) == 1 else "differ between runs"
        else:
            same = "equal" if merges[engine] == merges.get("llmcore") else "other"
        seconds, processor, peak = (median(engine, figure) for figure in ("seconds", "processor", "peak"))
        cells = [row, engine, f"{seconds:.2f}", f"{processor:.2f}", f"{peak:.0f}", f"{ratio:.2f}", same]
        print(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
