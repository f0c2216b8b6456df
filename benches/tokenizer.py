"""Encoding and decoding, side by side with the fastest tokenizers that PyPI has.

    python benches/tokenizer.py --peer-python PEER/bin/python

PEER is a virtual environment with numpy, gigatoken, fastokens, snaptokens, quicktok-v1, tokie, tiktoken and
tokenizers, as far as they install; an engine that fails is left out. Each engine runs on one thread in
fresh processes (`benches/tokenizer_worker.py`), which take turns; what counts is the median of the
processes. The ids of all engines are compared. `benches/corpora.py` says where texts and vocabularies
come from.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import corpora
import machine
from tokenizer_chart import Medians, draw
from tokenizer_worker import ENGINES, Answer

WORKER = Path(__file__).with_name("tokenizer_worker.py")
SHORT = "The quick brown fox jumps over the lazy dog, as it did the day before yesterday."
LIMIT = 120
"""Seconds that one process may take."""

Figures = dict[str, dict[str, list[float]]]
"""Row, engine, one figure a process."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--vocabularies", nargs="+", default=list(corpora.PATTERNS))
    parser.add_argument("--mb", type=float, default=20, help="the size of each corpus, at most")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--out",
        type=Path,
        help="also write OUT.md, and a chart a vocabulary (needs matplotlib): OUT-gpt2.png",
    )
    args = parser.parse_args()
    head = f"{machine.describe()}; one thread, seconds of processor time, medians of {args.runs} processes"
    print(f"{head}\n")
    command = f"python benches/tokenizer.py --peer-python PEER/bin/python --mb {args.mb:g} --runs {args.runs}"
    report = [f"`{command}`", head]
    for name in args.vocabularies:
        path = corpora.vocabulary(name)
        if path is None:
            continue
        bench = Bench(path, args.peer_python, args.engines, args.runs)
        for corpus in ("english", "multilingual"):
            texts = corpora.documents(corpus, args.mb)
            if texts:
                bench.read(corpus, texts)
        bench.special()
        table = bench.table()
        print(f"{table}\n")
        report.append(table)
        if args.out:
            chart = args.out.with_name(f"{args.out.name}-{name}.png")
            draw(chart, f"{name}, one thread", bench.medians(), bench.units)
            report.append(f"![{name}]({chart.name})")
            args.out.with_suffix(".md").write_text("\n\n".join(report) + "\n")


class Bench:
    """One vocabulary, all engines."""

    def __init__(self, path: Path, peer_python: str, engines: list[str], runs: int) -> None:
        self.path, self.peer_python, self.engines, self.runs = path, peer_python, list(engines), runs
        self.figures: Figures = defaultdict(lambda: defaultdict(list))
        self.units: dict[str, str] = {}
        self.digests: dict[str, dict[str, str]] = defaultdict(dict)

    def read(self, corpus: str, texts: list[str]) -> None:
        size = sum(len(text.encode()) for text in texts) / 1e6
        for engine, answer in self.answers("read", texts):
            for row, (seconds, digest) in answer.items():
                rate = size / seconds if row != "decode" else 1e-6 / seconds
                self.note(f"{corpus} ({size:.1f} MB): {row}", "MB/s", engine, rate, digest)

    def special(self) -> None:
        letters = random.Random(1)
        count = 1_000_000
        ranges = {"letters": (97, 122), "emoji": (0x1F600, 0x1F64F), "CJK": (0x4E00, 0x9FFF)}
        texts = {
            f"{len(SHORT)} characters": SHORT,
            "a million 'a'": "a" * count,
            "a million spaces": " " * count,
        }
        for name, (first, last) in ranges.items():
            text = "".join(chr(letters.randint(first, last)) for _ in range(count))
            texts[f"a million random {name}"] = text
        for engine, answer in self.answers("special", list(texts.values())):
            for i, row in enumerate(texts):
                if str(i) in answer:
                    seconds, digest = answer[str(i)]
                    unit, scale = ("µs", 1e6) if i == 0 else ("ms", 1e3)
                    self.note(row, unit, engine, seconds * scale, digest)

    def note(self, row: str, unit: str, engine: str, figure: float, digest: str) -> None:
        self.units[row] = unit
        self.figures[row][engine].append(figure)
        self.digests[row][engine] = digest

    def answers(self, job: str, texts: list[str]) -> Iterator[tuple[str, Answer]]:
        """What each process of each engine says, the engines in turn."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(texts, file)
            file.flush()
            for _ in range(self.runs):
                for engine in list(self.engines):
                    answer = self.answer(engine, job, file.name)
                    if answer is not None:
                        yield engine, answer

    def answer(self, engine: str, job: str, file: str) -> Answer | None:
        python = sys.executable if engine == "llmcore" else self.peer_python
        command = [python, str(WORKER), engine, job, str(self.path), corpora.PATTERNS[self.path.stem], file]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
            output, errors = done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            output, errors = (late.stdout or b"").decode(), f"took more than {LIMIT} s"
        if output.strip():
            answer: Answer = json.loads(output.splitlines()[-1])
            return answer
        print(f"{engine}, {self.path.stem}: {(errors.strip() or '?').splitlines()[-1]}", file=sys.stderr)
        self.engines.remove(engine)
        return None

    def medians(self) -> Medians:
        return {
            row: {engine: statistics.median(values) for engine, values in figures.items()}
            for row, figures in self.figures.items()
        }

    def table(self) -> str:
        lines = [f"## {self.path.stem}", ""]
        lines.append("| | unit | " + " | ".join(self.engines) + " | llmcore to the best peer | ids |")
        lines.append("|---|---|" + "---|" * (len(self.engines) + 2))
        for row, medians in self.medians().items():
            cells = [f"{medians[engine]:.3g}" if engine in medians else "—" for engine in self.engines]
            digests = self.digests[row]
            wrong = [engine for engine in digests if digests[engine] != digests.get("llmcore")]
            ids = f"other: {', '.join(wrong)}" if wrong else "equal"
            ratio = self.ratio(row, medians)
            lines.append(f"| {row} | {self.units[row]} | {' | '.join(cells)} | {ratio} | {ids} |")
        return "\n".join(lines)

    def ratio(self, row: str, medians: dict[str, float]) -> str:
        """How many times as fast as the fastest peer."""
        ours = medians.get("llmcore")
        peers = {engine: value for engine, value in medians.items() if engine != "llmcore"}
        if ours is None or not peers:
            return "—"
        rate = self.units[row] == "MB/s"
        best = (max if rate else min)(peers, key=peers.__getitem__)
        return f"{ours / peers[best] if rate else peers[best] / ours:.2f} × {best}"


if __name__ == "__main__":
    main()
