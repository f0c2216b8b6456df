"""The tables of what `benches/engines.py` found."""

from __future__ import annotations

import statistics
from typing import Any

from engine_models import MODELS

from llmcore.work import Limits, Work

Found = dict[str, Any]
NAMES = {
    "prefill": "prefill, {prompt} tokens",
    "greedy": "greedy, {new_tokens} tokens",
    "batch": "greedy, {sequences} × {new_tokens} tokens",
    "beam": "{beams} beams, {new_tokens} tokens",
}
LIMITS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "int8", "gguf": "int8"}
"""The products that the weights of a precision are multiplied by."""


def report(results: Found) -> str:
    parts = [f"# Engines\n\n{results['machine']}; {results['threads']} threads, medians. In tokens a second."]
    for model, found in results["models"].items():
        found = found | {"cases": {name: case for name, case in found["cases"].items() if case["runs"]}}
        lines = [
            f"## {MODELS[model]}",
            *summary(found),
            *matrix(found),
            *long(found),
            *ids(found),
            *names(found),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def speed(case: Found, name: str) -> float | None:
    """Tokens a second: of the prompt in a prefill, else new ones."""
    note = case["runs"].get(name, {})
    if not note.get("seconds"):
        return None
    tokens = case["prompt"] if case["new_tokens"] == 1 else case["sequences"] * case["new_tokens"]
    return tokens / statistics.median(note["seconds"])


def speeds(case: Found) -> dict[str, float]:
    found = {name: speed(case, name) for name in case["runs"]}
    return {name: value for name, value in found.items() if value is not None}


def share(case: Found, work: Work, precision: str) -> str:
    """Of the limit: of arithmetic in a prefill, else of reading weights, keys and values."""
    seconds, limits = (
        statistics.median(case["runs"][f"llmcore {precision}"]["seconds"]),
        Limits(**case["limits"]),
    )
    if case["new_tokens"] == 1:
        done = work.prefill_operations(case["prompt"]) / seconds
        return f"{done / limits.operations(LIMITS[precision]):.0%} of arithmetic"
    rows = case["sequences"] * case["beams"]
    read = sum(
        work.step_bytes(case["sequences"] * case["prompt"] + rows * step)
        for step in range(case["new_tokens"])
    )
    return f"{read / seconds / limits.memory:.0%} of reading"


def summary(found: Found) -> list[str]:
    """llmcore beside the fastest peers."""
    titles = ["", "", "llmcore", "of the limit", "best peer of the precision", "ratio", "best peer", "ratio"]
    lines = ["", row(titles), "|---" * len(titles) + "|"]
    for key in NAMES:
        case = found["cases"].get(key, {"runs": {}})
        rates = speeds(case)
        for precision in LIMITS:
            if f"llmcore {precision}" in rates:
                limit = share(case, work_of(found, precision), precision)
                lines.append(
                    row([NAMES[key].format(**case), precision, *beside(rates, precision, limit, max)])
                )
    for title, measured, limited in (
        ("load to first token, s", {name: statistics.median(n["first"]) for name, n in loaded(found)}, False),
        ("resident, MB", {name: n["resident"] / 1e6 for name, n in loaded(found)}, True),
    ):
        for precision in LIMITS:
            if ours := measured.get(f"llmcore {precision}"):
                least = work_of(found, precision).weight_bytes / 1e6 + 40
                limit = f"{ours / least:.2f} × (weights + 40)" if limited else ""
                lines.append(row([title, precision, *beside(measured, precision, limit, min)]))
    return [*lines, "", limits_said(found)]


def beside(figures: dict[str, float], precision: str, limit: str, best: Any) -> list[str]:
    """llmcore's figure, and its ratios to the best peers (`best`: min or max), above 1 if it is better."""
    ours = figures[f"llmcore {precision}"]
    cells = [figure(ours), limit]
    peers = {name: value for name, value in figures.items() if not name.startswith("llmcore ")}
    for rivals in ({n: v for n, v in peers.items() if n.endswith(f" {precision}")}, peers):
        if rivals:
            name = best(rivals, key=rivals.__getitem__)
            ratio = ours / rivals[name] if best is max else rivals[name] / ours
            cells += [f"{name} {figure(rivals[name])}", f"{ratio:.2f} ×"]
        else:
            cells += ["—", "—"]
    return cells


def figure(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def loaded(found: Found) -> list[tuple[str, Found]]:
    """The engines that have computed anything."""
    return [(name, note) for name, note in found["engines"].items() if "name" in note]


def limits_said(found: Found) -> str:
    limits = [case["limits"] for case in found["cases"].values()]
    if not limits:
        return ""
    single, half, byte, memory = (
        statistics.median(limit[name] for limit in limits) / 1e9
        for name in ("float32", "bfloat16", "int8", "memory")
    )
    return (
        f"Measured limits, medians of the cases: {single:.0f} GFLOP/s of float32, {half:.0f} of bfloat16, "
        f"{byte:.0f} GOP/s of bytes, {memory:.1f} GB/s of reading."
    )


def work_of(found: Found, precision: str) -> Work:
    fields = found["work"][precision]
    return Work(**fields | {"layers": tuple(fields["layers"])})


def matrix(found: Found) -> list[str]:
    """Every engine, every case, and what loading takes."""
    cases = {key: found["cases"][key] for key in NAMES if key in found["cases"]}
    titles = [NAMES[key].format(**case) for key, case in cases.items()]
    lines = [
        "",
        row(["", *titles, "load to first token, s", "resident, MB"]),
        "|---" * (len(cases) + 3) + "|",
    ]
    rates = [speeds(case) for case in cases.values()]
    for name, note in loaded(found):
        cells = [figure(found[name]) if name in found else "—" for found in rates]
        load = statistics.median(note["first"])
        lines.append(row([name, *cells, f"{load:.2f}", f"{note['resident'] / 1e6:.0f}"]))
    return lines


def long(found: Found) -> list[str]:
    """What is left of the speed in long contexts: of a prefill per operation, of a step per byte."""
    cases = [case for key, case in found["cases"].items() if key.startswith("long ")]
    if not cases:
        return []
    titles = ["positions", "", "prefill, tokens/s", "per operation", "then, tokens/s", "per byte"]
    lines = ["", row(titles), "|---" * len(titles) + "|"]
    prefill = found["cases"].get("prefill", {"runs": {}})
    for case in cases:
        for name in case["runs"]:
            rates, first = long_rates(found, case, name), long_rates(found, cases[0], name)
            if not rates:
                continue
            kept = ["", ""]
            if "bytes" in rates and "bytes" in first:
                kept[1] = f"{rates['bytes'] / first['bytes']:.0%}"
            if "operations" in rates and (short := speed(prefill, name)):
                work, tokens = work_of(found, name.split()[-1]), prefill["prompt"]
                kept[0] = f"{rates['operations'] / (work.prefill_operations(tokens) * short / tokens):.0%}"
            speeds = [figure(rates["prefill"]), kept[0], figure(rates["steps"]), kept[1]]
            lines.append(row([str(case["prompt"]), name, *speeds]))
    note = "Per operation: of the prefill above. Per byte of weights, keys and values: of the first row."
    return [*lines, "", note]


def long_rates(found: Found, case: Found, name: str) -> dict[str, float]:
    steps = [times for times in case["runs"].get(name, {}).get("steps", []) if times]
    if not steps:
        return {}
    first = statistics.median(times[0] for times in steps)
    rest = statistics.median(times[-1] - times[0] for times in steps)
    count = case["new_tokens"] - 1
    rates = {"prefill": case["prompt"] / first, "steps": count / rest}
    precision = name.split()[-1]
    if name.startswith("llmcore "):
        work = work_of(found, precision)
        rates["operations"] = work.prefill_operations(case["prompt"]) / first
        rates["bytes"] = sum(work.step_bytes(case["prompt"] + step + 1) for step in range(count)) / rest
    return rates


def ids(found: Found) -> list[str]:
    """The first token that is not float32's."""
    cases = {key: found["cases"][key] for key in NAMES if key in found["cases"] and key != "prefill"}
    lines = ["", row(["first other token than float32's", *cases]), "|---" * (len(cases) + 1) + "|"]
    lines += [row([name, *(difference(c, name) for c in cases.values())]) for name, _ in loaded(found)]
    return [*lines, "", "Float32's are those of torch, or of llmcore where torch was not asked."]


def difference(case: Found, name: str) -> str:
    known = (case["runs"].get(other, {}).get("ids") for other in ("torch float32", "llmcore float32"))
    reference = next((found for found in known if found), None)
    found = case["runs"].get(name, {}).get("ids")
    if not reference or not found:
        return "—"
    places = [
        place
        for ours, theirs in zip(found, reference, strict=True)
        for place, pair in enumerate(zip(ours, theirs, strict=True))
        if pair[0] != pair[1]
    ]
    return str(min(places)) if places else "equal"


def names(found: Found) -> list[str]:
    """What each engine is; what was not measured, and why."""
    missing = {(name, note["error"]) for name, note in found["engines"].items() if "error" in note} | {
        (name, note["error"])
        for case in found["cases"].values()
        for name, note in case["runs"].items()
        if "error" in note
    }
    return [
        "",
        *(f"- {name}: {note['name']}" for name, note in loaded(found)),
        *(f"- not measured: {name}: {reason}" for name, reason in sorted(missing)),
    ]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
