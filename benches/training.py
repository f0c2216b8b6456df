"""Steps of training, side by side with torch on the same processors: tokens a second, share of the machine's
peak, peak memory.

    python benches/training.py --peer-python PEER/bin/python --out benches/results/NAME

Each engine runs in a process of its own (`benches/training_worker.py`), torch by the Python of a virtual
environment that has it and Transformers. Both train the same new GPT-2 on the same tokens by AdamW with
clipping, and have to find the same losses. They take turns of some steps; the first of each turn, which finds
cold caches, does not count; what counts is the median step, and the ratio of the medians. A step is
everything from tokens to moved weights. torch does its best: fused AdamW and attention, bfloat16 by autocast.

The share of the peak is of the arithmetic that a step needs. A row meets each weight of a product in three
multiply-adds: forward, for the gradient of the row, and for that of the weight; 6 operations. A layer has
12 width² such weights (q, k, v, o, and 4 + 4 of the network); the head has vocabulary · width, for the rows
that have a label. Attention is two products forward, q kᵀ and p v, over the pairs of positions that see each
other, and twice as many backward. What the backward pass computes again does not count, nor do norms,
activations and the optimiser. Without a peer only llmcore is measured.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import machine
from worker import Worker

from llmcore.training import new_model
from llmcore.work import Limits

WORKER = Path(__file__).with_name("training_worker.py")
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}
"""How far losses may be apart, relative to them."""


@dataclass(frozen=True)
class Case:
    """A model and a step."""

    name: str
    layers: int
    width: int
    heads: int
    vocab_size: int
    sequences: int
    time: int
    steps: int
    """Of a turn."""

    @property
    def tokens(self) -> int:
        return self.sequences * self.time

    @property
    def gflop(self) -> float:
        """Of a step, as said above."""
        weights = self.layers * 12 * self.width**2 * self.tokens
        head = self.vocab_size * self.width * self.sequences * (self.time - 1)
        pairs = self.sequences * self.time * (self.time + 1) // 2
        attention = self.layers * 2 * self.width * pairs
        return 3 * 2 * (weights + head + attention) / 1e9

    @property
    def config(self) -> dict[str, object]:
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return dropouts | {
            "model_type": "gpt2",
            "n_layer": self.layers,
            "n_embd": self.width,
            "n_head": self.heads,
            "vocab_size": self.vocab_size,
            "n_positions": max(self.time, 1024),
        }


CASES = {
    "124M": Case("GPT-2 124M, 4 × 256 tokens", 12, 768, 12, 50257, 4, 256, 3),
    "4.5M": Case("GPT of 4.5M, 16 × 128 tokens", 4, 256, 4, 4096, 16, 128, 11),
}


class Engine:
    """One that trains in a process of its own, and what it found."""

    def __init__(self, python: str, engine: str, folder: Path, precision: str, threads: int) -> None:
        self.worker = Worker(python, WORKER, engine, folder, precision, threads)
        self.name = self.worker.answer()
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.peak = 0

    def turn(self, case: Case) -> None:
        seconds, losses, self.peak = self.worker.ask(len(self.losses), case.steps, case.sequences, case.time)
        self.seconds += seconds[1:]
        self.losses += losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="the Python that has torch and transformers")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--precisions", nargs="+", default=list(TOLERANCE), choices=list(TOLERANCE))
    parser.add_argument("--threads", type=int, default=machine.threads())
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also writes the report to OUT.md")
    args = parser.parse_args()
    pythons = {"llmcore": sys.executable}
    if args.peer_python:
        pythons["torch"] = args.peer_python
    described, limits = machine.describe(), Limits.measure(args.threads)
    results = [
        measure(CASES[case], precision, pythons, args.threads, args.turns)
        for case, precision in itertools.product(args.cases, args.precisions)
    ]
    report = "\n".join([described, "", *lines(results, limits), ""])
    print(report)
    if args.out:
        args.out.with_suffix(".md").write_text(report)


@dataclass
class Result:
    """What the engines of a case found, llmcore's first."""

    case: Case
    precision: str
    engines: list[Engine]

    @property
    def name(self) -> str:
        return f"{self.case.name}, {self.precision}"


def measure(case: Case, precision: str, pythons: dict[str, str], threads: int, turns: int) -> Result:
    """Raises AssertionError if the losses are not the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = new_model(case.config, name)
        engines = [Engine(python, engine, folder, precision, threads) for engine, python in pythons.items()]
    for _ in range(turns):
        for engine in engines:
            engine.turn(case)
    for engine in engines:
        engine.worker.end()
        print(f"{statistics.median(engine.seconds):.3f} s a step: {engine.name}", file=sys.stderr)
    for losses in zip(*(engine.losses for engine in engines), strict=True):
        if max(losses) - min(losses) > TOLERANCE[precision] * max(losses):
            raise AssertionError(f"the losses differ: {[engine.losses for engine in engines]}")
    return Result(case, precision, engines)


def lines(results: list[Result], limits: Limits) -> list[str]:
    """The tables."""
    peaks = {precision: limits.operations(precision) / 1e9 for precision in TOLERANCE}
    names = dict.fromkeys(engine.name for result in results for engine in result.engines)
    speeds, memory, losses = [], [], []
    for result in results:
        seconds = [statistics.median(engine.seconds) for engine in result.engines]
        peak = peaks[result.precision]
        speeds.append(
            cells(
                result.name,
                [f"{result.case.tokens / s:.0f}" for s in seconds],
                seconds[-1] / seconds[0],
                [f"{result.case.gflop / s / peak:.0%}" for s in seconds],
            )
        )
        found = [engine.peak / 1e6 for engine in result.engines]
        memory.append(cells(result.name, [f"{mb:.0f}" for mb in found], found[0] / found[-1], []))
        ends = [f"{engine.losses[0]:.4f} → {engine.losses[-1]:.4f}" for engine in result.engines]
        losses.append(cells(result.name, ends, None, []))
    return [
        *(f"- {name}" for name in names),
        "",
        f"Measured limits: {peaks['float32']:.0f} GFLOP/s of multiply-adds in float32, "
        f"{peaks['bfloat16']:.0f} in bfloat16.",
        "",
        "| tokens/s | llmcore | torch | ratio | of the peak | torch |",
        "|---|---|---|---|---|---|",
        *speeds,
        "",
        "| peak memory, MB | llmcore | torch | ratio |",
        "|---|---|---|---|",
        *memory,
        "",
        "| loss, first to last step | llmcore | torch |",
        "|---|---|---|",
        *losses,
    ]


def cells(name: str, values: list[str], ratio: float | None, more: list[str]) -> str:
    """A row of a table; `values` and `more` are llmcore's and, if it ran, torch's."""
    alone = len(values) == 1
    values, more = (list(row) + ["-"] * (alone and bool(row)) for row in (values, more))
    ratios = [] if ratio is None else ["-" if alone else f"{ratio:.2f} ×"]
    return f"| {' | '.join([name, *values, *ratios, *more])} |"


if __name__ == "__main__":
    main()
