"""A forked child of a process that computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "data" / "tiny" / "llama"

SCRIPT = """
import os, sys, threading, warnings
import llmcore

warnings.simplefilter("ignore")
model = llmcore.load(sys.argv[1])

def child():
    pid = os.fork()
    if pid == 0:
        try:
            found = repr(model.generate([1, 2], max_new_tokens=3).ids)
        except ValueError as error:
            found = str(error)
        print(found, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

child()
# A thread that is inside of a pass when the process forks does not go on in the child.
busy = threading.Thread(target=lambda: [model.score([3, 4] * 100) for _ in range(3000)], daemon=True)
busy.start()
for _ in range(20):
    child()
print(repr(model.generate([1, 2], max_new_tokens=3).ids), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_never_hangs():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(TINY)], capture_output=True, text=True, timeout=120, check=True
    )
    first, *found, last = done.stdout.splitlines()
    assert len(found) == 20
    assert first == last
    refused = [line for line in found if line != first]
    assert refused, "no fork met a pass"
    for line in refused:
        assert line.startswith("model: found in use by another thread when this process was forked")
