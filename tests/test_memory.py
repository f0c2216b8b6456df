"""What a loaded model costs: file pages are given back, and nothing is held twice."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, re, sys

def peak():
    # Not getrusage's ru_maxrss: a child begins with that of the process that started it.
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

import llmcore
llmcore.Model  # the names are imported when they are first asked for
before = peak()
model = llmcore.load(sys.argv[1], dtype="float32")
prompt = list(range(100, 400))
model.generate(prompt, max_new_tokens=20, eos_token_id=[])
info = model.info()
print(json.dumps([peak() - before, info["weight_bytes"], info["kv_bytes_per_position"]]))
"""

# Positions of the prompt and the continuation, in whole blocks of 64.
POSITIONS = 320


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_generate(smollm2_path):
    """The bound leaves 30 % for activations, the tokenizer and the logits of one row."""
    command = [sys.executable, "-c", SCRIPT, str(smollm2_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak, weights, kv = json.loads(printed)
    assert weights < peak <= 1.3 * (weights + kv * POSITIONS)
