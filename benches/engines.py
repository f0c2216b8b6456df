"""llmcore beside every engine for CPUs that Python can call: prefill, greedy search, batches, beams, long
contexts, loading and memory, in float32, bfloat16, int8, int4, and of a GGUF file.

    python benches/engines.py --work DIR --peer torch=PYTHON … --out benches/results/NAME

`benches/engine_models.py` makes the models in DIR; a peer is an engine and the Python that has it. Each
engine has a process of its own for each precision (`benches/engine_worker.py`), asleep but for its turns;
they take turns, run by run, so that whatever else the machine does meets all, and the limits of the
machine are measured before each round; what counts are medians. The ids are compared with those of float32.

What was measured is kept in NAME.json, case by case, and not measured again without `--again`: a run that was
cut short goes on. NAME.md and NAME.png are drawn from it. What fails or does not exist is left out and said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import engine_report
import machine
from engine_chart import draw
from engine_models import MODELS
from engine_workers import FORMS
from worker import Worker

import llmcore
from llmcore.work import Limits, Work

WORKER = Path(__file__).with_name("engine_worker.py")
PRECISIONS = ("float32", "bfloat16", "int8", "int4", "gguf")
CASES = ("prefill", "greedy", "batch", "beam", "long")
PREFILL, BATCH, BEAMS, NEW_TOKENS = 512, 8, 5, 64
LONG = (128, 4096, 8064)
LONG_ENGINES = ("llmcore", "openvino-genai")
"""Those that are asked for long contexts, which take seconds a run."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What engines are asked in a case."""

    name: str
    prompts: list[list[int]]
    new_tokens: int
    beams: int = 1
    timed: bool = False
    """Whether the time of each step is wanted."""


@dataclass(frozen=True)
class Process:
    """An engine in one precision."""

    engine: str
    precision: str
    worker: Worker

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"

    def ask(self, request: Request, new_tokens: int) -> Found:
        self.worker.wake()
        try:
            answer: Found = self.worker.ask(request.prompts, new_tokens, request.beams, request.timed)
        except (RuntimeError, OSError) as error:
            return {"error": str(error)}
        self.worker.sleep()
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder of benches/engine_models.py")
    parser.add_argument("--peer", action="append", default=[], metavar="ENGINE=PYTHON")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--dtypes", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=machine.threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="measure what is in OUT.json once more")
    parser.add_argument("--out", type=Path, required=True, help="without a suffix")
    args = parser.parse_args()
    kept = args.out.with_suffix(".json")
    results: Found = {"threads": args.threads, "models": {}}
    if kept.exists():
        results = json.loads(kept.read_text())
    if results["threads"] != args.threads:
        parser.error(f"{kept}: found {results['threads']} threads, expected {args.threads}")
    results["machine"] = machine.describe()
    pythons = {"llmcore": sys.executable, **dict(peer.split("=", 1) for peer in args.peer)}
    asked = [(e, p) for e in args.engines for p in args.dtypes if p in FORMS[e]]
    for model in args.models:
        found = results["models"].setdefault(model, {"engines": {}, "work": {}, "cases": {}})
        bench = Bench(args.work / model, pythons, args.threads, args.runs, found)
        for _ in bench.measure(args.cases, asked, args.again):
            kept.write_text(json.dumps(results))
    report = engine_report.report(results)
    args.out.with_suffix(".md").write_text(report)
    draw(args.out.with_suffix(".png"), results)
    print(report)


class Bench:
    """One model, all engines. `found` is where the results go."""

    def __init__(self, place: Path, pythons: dict[str, str], threads: int, runs: int, found: Found) -> None:
        self.place, self.pythons, self.threads = place, pythons, threads
        self.runs, self.found = runs, found
        model = llmcore.load(place / "float", threads=threads)
        self.prompt = model.tokenizer.encode("I love programming")
        # Tokens as a text has them, that is, neither one again and again nor the control tokens.
        text = " ".join(f"{i} bottles of beer on the wall," for i in range(1500))
        self.text = model.tokenizer.encode(text)[: model.max_positions - NEW_TOKENS]

    def requests(self, case: str) -> list[Request]:
        rows = [self.text[16 * i : 16 * i + 16] for i in range(BATCH)]
        positions = [count for count in LONG if count <= len(self.text)]
        return {
            "prefill": [Request(case, [self.text[:PREFILL]], 1)],
            "greedy": [Request(case, [self.prompt], NEW_TOKENS)],
            "batch": [Request(case, rows, NEW_TOKENS)],
            "beam": [Request(case, [self.prompt], NEW_TOKENS, BEAMS)],
            # Of a model with few positions the first would be the only one.
            "long": [Request(f"long {n}", [self.text[:n]], NEW_TOKENS, timed=True) for n in positions]
            * (len(positions) > 1),
        }[case]

    def measure(self, cases: list[str], asked: list[tuple[str, str]], again: bool) -> Iterator[None]:
        """Asks the engines whose figures are missing, or all `again`. Yields when there is something new."""
        missing: dict[str, set[tuple[str, str]]] = {
            request.name: {
                (engine, precision)
                for engine, precision in asked
                if (case != "long" or engine in LONG_ENGINES)
                and (again or "seconds" not in self.kept(request.name).get(f"{engine} {precision}", {}))
            }
            for case in cases
            for request in self.requests(case)
        }
        needed = set().union(*missing.values())
        processes = [process for e in asked if e in needed for process in self.started(*e)]
        yield
        for request in (request for case in cases for request in self.requests(case)):
            chosen = [p for p in processes if (p.engine, p.precision) in missing[request.name]]
            if chosen:
                self.say(f"{request.name}, {len(chosen)} engines")
                self.case(request, chosen)
                yield
        for process in processes:
            process.worker.end()

    def kept(self, name: str) -> Found:
        runs: Found = self.found["cases"].setdefault(name, {"runs": {}})["runs"]
        return runs

    def started(self, engine: str, precision: str) -> Iterator[Process]:
        """A process that has generated one token, if it can: what that took is the case of loading."""
        note = self.found["engines"].setdefault(f"{engine} {precision}", {"load": [], "first": []})
        note.pop("error", None)
        file = self.place / FORMS[engine][precision]
        try:
            process = Process(engine, precision, self.worker(engine, precision, file))
            hello = process.worker.answer()
            if "error" in hello:
                raise RuntimeError(hello["error"])
            first = process.ask(Request("first", [self.prompt], 1), 1)
            if "error" in first:
                raise RuntimeError(first["error"])
        except RuntimeError as error:
            note["error"] = str(error).replace(f"{self.place}/", "")
            self.say(f"{engine} {precision}: {note['error']}")
            return
        note |= {"name": hello["name"], "resident": first["resident"], "peak": first["peak"]}
        note["load"].append(hello["load"])
        note["first"].append(hello["load"] + first["seconds"])
        if engine == "llmcore":
            dtype = "auto" if precision == "gguf" else precision
            self.found["work"][precision] = asdict(
                Work.of(llmcore.load(file, dtype=dtype, threads=self.threads))
            )
        yield process

    def worker(self, engine: str, precision: str, file: Path) -> Worker:
        """Raises RuntimeError that says what is missing."""
        reason = file.with_name(f"{file.name}.error")
        if engine not in self.pythons:
            raise RuntimeError(f"no --peer {engine}=PYTHON was given")
        if not file.exists():
            raise RuntimeError(reason.read_text().strip() if reason.exists() else f"{file}: not there")
        environment = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        return Worker(self.pythons[engine], WORKER, engine, precision, file, self.threads, **environment)

    def case(self, request: Request, processes: list[Process]) -> None:
        """A short run to warm up, then those that count. A long context counts at once, for its length."""
        runs = self.kept(request.name)
        self.found["cases"][request.name] |= {
            "prompt": len(request.prompts[0]),
            "sequences": len(request.prompts),
            "new_tokens": request.new_tokens,
            "beams": request.beams,
        }
        limits = []
        for process in processes:
            runs[process.name] = {"seconds": [], "steps": []}
            if not request.timed:
                process.ask(request, min(4, request.new_tokens))
        for _ in range(1 if request.timed else self.runs):
            limits.append(asdict(Limits.measure(self.threads)))
            for process in processes:
                note = runs[process.name]
                if "error" in note:
                    continue
                answer = process.ask(request, request.new_tokens)
                if "error" in answer:
                    runs[process.name] = {"error": answer["error"]}
                    continue
                note["seconds"].append(answer["seconds"])
                note["steps"].append(answer["steps"])
                note["ids"] = answer["ids"]
        self.found["cases"][request.name]["limits"] = {
            name: statistics.median(limit[name] for limit in limits) for name in limits[0]
        }

    def say(self, text: str) -> None:
        print(f"{self.place.name}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
