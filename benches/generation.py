"""Greedy decode, prefill and beam search in float32, side by side with Transformers on the same processors.

    llmcore convert smollm2-135m-instruct /tmp/smollm2
    python benches/generation.py --peer-python PEER/bin/python --peer-model /tmp/smollm2

Each engine runs in a process of its own (`benches/worker.py`), Transformers by the Python of a virtual
environment that has it. They take turns, run by run, so that whatever else the machine does meets both; what
counts is the median, and the ratio of the medians. The continuations have to agree. Without a peer only
llmcore is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import machine

import llmcore
from llmcore import hub
from llmcore.work import Limits, Work

PROMPT = "I love programming"
WORKER = Path(__file__).with_name("worker.py")


@dataclass
class Case:
    """What both engines do, and how long each took in every run."""

    name: str
    ids: list[int]
    new_tokens: int
    beams: int = 1
    seconds: list[list[float]] = field(default_factory=list)

    def medians(self) -> list[float]:
        return [statistics.median(times) for times in zip(*self.seconds, strict=True)]


class Worker:
    """An engine in another process."""

    def __init__(self, python: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [python, str(WORKER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = json.loads(self._read())

    def run(self, case: Case) -> tuple[float, list[int]]:
        """Seconds, and the ids of the continuation."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([case.ids, case.new_tokens, case.beams]) + "\n")
        self.process.stdin.flush()
        seconds, ids = json.loads(self._read())
        return seconds, ids

    def _read(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args}: ended with {self.process.wait()}")
        return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a .gguf file or a short name")
    parser.add_argument("--peer-python", help="the Python that has torch and transformers")
    parser.add_argument("--peer-model", help="the folder that llmcore convert wrote")
    parser.add_argument("--threads", type=int, default=machine.threads())
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    path = str(hub.resolve(args.model))
    model = llmcore.load(path, dtype="float32")
    cases = cases_of(model)
    workers = [Worker(sys.executable, "llmcore", path, str(args.threads))]
    if args.peer_python:
        workers.append(Worker(args.peer_python, "transformers", args.peer_model, str(args.threads)))
    print(f"{machine.describe()}\n")
    for worker in workers:
        print(f"- {worker.name}")
    for case in cases:
        measure(case, workers, args.runs)
    report(cases, Work.of(model), Limits.measure(args.threads), args.runs)


def cases_of(model: llmcore.Model) -> list[Case]:
    prompt = model.tokenizer.encode(PROMPT)
    # Tokens as a text has them, that is, neither one again and again nor the control tokens.
    text = model.tokenizer.encode(" ".join(f"{i} bottles of beer on the wall," for i in range(200)))[:512]
    return [
        Case("greedy decode, 64 tokens", prompt, 64),
        Case("prefill, 512 tokens", text, 1),
        Case("beam search, 5 beams, 64 tokens", prompt, 64, beams=5),
    ]


def measure(case: Case, workers: list[Worker], runs: int) -> None:
    """One run to warm up, then `runs` that count."""
    for run in range(runs + 1):
        answers = [worker.run(case) for worker in workers]
        found = [ids for _, ids in answers]
        if any(ids != found[0] for ids in found):
            raise AssertionError(f"{case.name}: the continuations differ: {found}")
        if run > 0:
            case.seconds.append([seconds for seconds, _ in answers])


def report(cases: list[Case], work: Work, limits: Limits, runs: int) -> None:
    print(
        f"\nMeasured limits: {limits.float32 / 1e9:.0f} GFLOP/s of float32 multiply-adds, "
        f"{limits.memory / 1e9:.1f} GB/s of reading. Medians of {runs} runs.\n"
    )
    print("| | tokens/s | Transformers | ratio | of the limit |")
    print("|---|---|---|---|---|")
    for case in cases:
        ours, *theirs = case.medians()
        prefill = case.new_tokens == 1
        tokens = len(case.ids) if prefill else case.new_tokens
        if prefill:
            share = f"{work.prefill_operations(tokens) / ours / limits.float32:.0%} of the arithmetic"
        else:
            share = f"{work.weight_bytes * tokens / ours / limits.memory:.0%} of the bandwidth"
        peer = f"{tokens / theirs[0]:.1f} | {theirs[0] / ours:.2f} ×" if theirs else "- | -"
        print(f"| {case.name} | {tokens / ours:.1f} | {peer} | {share} |")


if __name__ == "__main__":
    main()
