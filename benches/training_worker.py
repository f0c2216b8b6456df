"""One engine in a process of its own: `training_worker.py llmcore|torch FOLDER PRECISION THREADS`.

Says what it is in a first line of JSON. Then it answers each line `[first, steps, sequences, time]` with
`[seconds of each step, loss of each, peak memory in bytes]`; the number of a step chooses its tokens. Both
engines begin with the weights of FOLDER and take the same steps (`training_engines.py`).

The memory is the most that the process had since its model was loaded, the model and all libraries among it.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np
from training_engines import ENGINES

BATCHES = 4
"""Different batches, over and over: what is learnt by heart shows in the loss."""
LEARNING_RATE = 1e-4


def main() -> None:
    name, folder, precision, threads = sys.argv[1:]
    engine = ENGINES[name](folder, precision, int(threads))
    # From here on the kernel counts the peak anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    print(json.dumps(f"{engine.name}, Python {platform.python_version()}, {threads} threads"), flush=True)
    for line in sys.stdin:
        first, steps, *shape = json.loads(line)
        seconds, losses = [], []
        for number in range(first, first + steps):
            ids = np.random.default_rng(number % BATCHES).integers(0, engine.vocab_size, shape)
            start = time.perf_counter()
            losses.append(engine.step(ids, LEARNING_RATE))
            seconds.append(time.perf_counter() - start)
        print(json.dumps([seconds, losses, peak_memory()]), flush=True)


def peak_memory() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
