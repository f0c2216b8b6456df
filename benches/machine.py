"""What the benchmarks say of the machine: its family and its load. (Its limits: `llmcore.work.Limits`.)"""

from __future__ import annotations

import os
import subprocess
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
    older = " (Zen 4)" if "avx512f" in fields.get("Flags", "") else " (Zen 3, AVX2)"
    name = {"25": older, "26": " (Zen 5)"}.get(family, "")
    vendor, load = fields.get("Vendor ID", "?"), os.getloadavg()[0]
    return f"{vendor} family {family}{name}, {threads()} processors, load average {load:.1f}"
