"""One engine in a process of its own: `python benches/engine_worker.py ENGINE PRECISION FILE THREADS`.

Says in a first line of JSON what it is and how many seconds loading took. Then it answers each line
`[prompts, new tokens, beams, whether steps are timed]` with the seconds, the ids that follow each prompt, the
second at which each step was done, and the process's memory; or with an error.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import platform
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from engine_workers import MODULES, Engine

PR_SET_PDEATHSIG = 1


def main() -> None:
    # The benchmark stops an engine whose turn it is not; stopped, it would not see the benchmark's end.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    name, precision, file, threads = sys.argv[1:]
    # Whatever libraries print goes elsewhere.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(fields: dict[str, Any]) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        module = importlib.import_module(f"engine_workers.{MODULES.get(name, name)}")
        start = time.perf_counter()
        engine: Engine = module.load(file, precision, int(threads))
    except Exception as error:
        answer({"error": said(error)})
        return
    loaded = time.perf_counter() - start
    answer({"name": f"{engine.name}, Python {platform.python_version()}, {threads} threads", "load": loaded})
    for line in sys.stdin:
        *request, timed = json.loads(line)
        steps: list[float] = []
        try:
            start = time.perf_counter()
            ids = engine.generate(
                *request, (lambda s=steps: s.append(time.perf_counter())) if timed else None
            )
            seconds = time.perf_counter() - start
            answer({"seconds": seconds, "ids": ids, "steps": [step - start for step in steps], **memory()})
        except Exception as error:
            answer({"error": said(error)})


def said(error: Exception) -> str:
    """The first line that says something."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def memory() -> dict[str, int]:
    """Bytes that are resident, and the most that were."""
    status = Path("/proc/self/status").read_text()
    fields = {"resident": "VmRSS", "peak": "VmHWM"}
    return {
        name: int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) * 1024  # type: ignore[index]
        for name, field in fields.items()
    }


if __name__ == "__main__":
    main()
