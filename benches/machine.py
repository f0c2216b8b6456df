"""What the benchmarks say of the machine: its family, its load, and its limits, as measured."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> str:
    """The processor by its family, how many of them, and how busy they are."""
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = fields.get("CPU family", "?")
    name = {"25": " (Zen 3 or 4)", "26": " (Zen 5)"}.get(family, "")
    vendor, load = fields.get("Vendor ID", "?"), os.getloadavg()[0]
    return f"{vendor} family {family}{name}, {threads()} processors, load average {load:.1f}"


@dataclass(frozen=True)
class Limits:
    """The most that all processors together were measured to do."""

    gflops: float
    """Fused multiply-adds of float32, counted as two operations each."""
    bfloat16_gflops: float
    """The same of factors in bfloat16 and sums in float32."""
    bandwidth: float
    """GB/s of reading memory."""


def limits() -> Limits:
    """Measures the limits, as `benches/kernels.rs` does."""
    command = ["cargo", "bench", "--quiet", "--bench", "kernels", "--", "limits"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.search(r"([\d.]+) GFLOP/s.*?([\d.]+) of bfloat16, ([\d.]+) GB/s", output)
    if not found:
        raise ValueError(f"{' '.join(command)}: found {output!r}, expected GFLOP/s and GB/s")
    return Limits(*map(float, found.groups()))
