"""One engine in a process of its own: `training_worker.py llmcore|torch FOLDER PRECISION THREADS`.

Says what it is in a first line of JSON. Then it answers each line `[first, steps, sequences, time]` with
`[seconds of each step, loss of each, peak memory in bytes]`; the number of a step chooses its tokens. Both
engines begin with the weights of FOLDER and take the same steps: AdamW (learning rate 1e-4, all weights
decayed by 0.01), gradients clipped to a norm of 1, nothing dropped. PRECISION is "float32" or "bfloat16",
that of products; weights, gradients and the optimiser's state are float32 in either.

The memory is the most that the process had since its model was loaded, the model and all libraries among it.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

Step = Callable[[np.ndarray], float]
"""From tokens `[sequences, time]` to the loss, once the weights have moved."""

BATCHES = 4
"""Different batches, over and over: what is learnt by heart shows in the loss."""


def llmcore_engine(folder: str, precision: str, threads: int) -> tuple[str, int, Step]:
    import llmcore
    from llmcore.training import AdamW

    model = llmcore.load(folder, trainable=True, precision=precision, threads=threads)
    optimizer = AdamW(model, lr=1e-4, weight_decay=0.01, no_decay=(), max_grad_norm=1.0)

    def step(ids: np.ndarray) -> float:
        loss = model.loss_and_grad(input_ids=ids)
        optimizer.step()
        return loss

    name = f"llmcore {llmcore.__version__} ({llmcore._core.isa()}), products in {precision}"
    return name, model.core.vocab_size, step


def torch_engine(folder: str, precision: str, threads: int) -> tuple[str, int, Step]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)

    def context():
        return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def step(ids: np.ndarray) -> float:
        tokens = torch.from_numpy(ids)
        optimizer.zero_grad(set_to_none=True)
        with context():
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        return loss.item()

    with context(), torch.no_grad():
        executed = model(input_ids=torch.zeros((1, 2), dtype=torch.long)).logits.dtype
    versions = f"torch {torch.__version__}, Transformers {transformers.__version__}"
    attention, capability = model.config._attn_implementation, torch.backends.cpu.get_cpu_capability()
    return f"{versions} ({attention}, {capability}), logits in {executed}", model.config.vocab_size, step


ENGINES = {"llmcore": llmcore_engine, "torch": torch_engine}


def main() -> None:
    engine, folder, precision, threads = sys.argv[1:]
    name, vocab_size, step = ENGINES[engine](folder, precision, int(threads))
    # From here on the kernel counts the peak anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    print(json.dumps(f"{name}, Python {platform.python_version()}, {threads} threads"), flush=True)
    for line in sys.stdin:
        first, steps, *shape = json.loads(line)
        seconds, losses = [], []
        for number in range(first, first + steps):
            ids = np.random.default_rng(number % BATCHES).integers(0, vocab_size, shape)
            start = time.perf_counter()
            losses.append(step(ids))
            seconds.append(time.perf_counter() - start)
        print(json.dumps([seconds, losses, peak_memory()]), flush=True)


def peak_memory() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
