"""What a step of training costs: nothing is held twice, and logits are never all there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.training import new_model

SCRIPT = """
import json, re, sys

def peak():
    # Not getrusage's ru_maxrss: a child begins with that of the process that started it.
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

import numpy as np
import llmcore
from llmcore.training import AdamW, TrainableModel  # names are imported when they are first asked for
before = peak()
folder, sequences, time, checkpointing = json.loads(sys.argv[1])
model = llmcore.load(folder, trainable=True)
model.checkpointing = checkpointing
optimizer = AdamW(model, max_grad_norm=1.0)
ids = np.random.default_rng(0).integers(0, model.core.vocab_size, (sequences, time))
for _ in range(2):
    model.loss_and_grad(input_ids=ids)
    optimizer.step()
print(json.dumps([peak() - before, model.core.weight_bytes()]))
"""

LAYERS, WIDTH, HEADS, VOCAB = 6, 256, 4, 30_000
SEQUENCES, TIME = 8, 256
HEAD_ROWS = 512
"""Rows that have logits at a time."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_peak_memory_of_a_step(checkpointing: bool, tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB}
    folder = str(new_model(config, tmp_path / "model"))
    arguments = json.dumps([folder, SEQUENCES, TIME, checkpointing])
    command = [sys.executable, "-c", SCRIPT, arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak, weights = json.loads(printed)
    # A layer keeps the inputs of its two residuals and of what follows their norms (4 widths), queries, keys
    # and values (3), what attention gives (1), what the network raises (4), and a number a head.
    layer = 12 * WIDTH + HEADS
    kept = LAYERS * WIDTH + layer if checkpointing else LAYERS * layer
    # Going backward: what the network's activation gives and its gradient (4 each), and, at either end of the
    # model and of a layer, rows and gradients.
    passing = 8 * WIDTH + 8 * WIDTH
    activations = 4 * SEQUENCES * TIME * (kept + passing)
    logits = 4 * HEAD_ROWS * VOCAB
    # Gradients and two moments are as large as the weights.
    needed = 4 * weights + activations + logits
    assert weights < peak <= 1.1 * needed
