"""Trains with one engine: `training_parity_worker.py llmcore|torch FOLDER DATA THREADS OUT`.

DATA is an .npz: `train [steps, sequences, time]`, `lr [steps]`, `validation [sequences, time]`, `every`, the
steps from one validation to the next. Prints what the engine is in a line of JSON, then a line
`[steps made, seconds of training, mean training loss since the last line, validation loss]` each time, and
saves the checkpoint to OUT.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from training_engines import ENGINES


def main() -> None:
    name, folder, data, threads, out = sys.argv[1:]
    engine = ENGINES[name](folder, "float32", int(threads))
    print(json.dumps(engine.name), flush=True)
    arrays = np.load(data)
    train, validation = arrays["train"].astype(np.int64), arrays["validation"].astype(np.int64)
    every = int(arrays["every"])
    print(json.dumps([0, 0.0, None, engine.evaluate(validation)]), flush=True)
    seconds, losses = 0.0, []
    for number, (ids, lr) in enumerate(zip(train, arrays["lr"].tolist(), strict=True), 1):
        start = time.perf_counter()
        losses.append(engine.step(ids, lr))
        seconds += time.perf_counter() - start
        if number % every == 0:
            point = [number, round(seconds, 1), float(np.mean(losses)), engine.evaluate(validation)]
            print(json.dumps(point), flush=True)
            losses = []
    engine.save(Path(out))


if __name__ == "__main__":
    main()
