"""What an import brings along: NumPy, and nothing else that takes time (`benches/startup.py` measures)."""

from __future__ import annotations

import json
import subprocess
import sys

IMPORT = """
import json, sys
import numpy
before = set(sys.modules)
import llmcore
llmcore.load  # names are imported when they are first asked for
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_brings_nothing_but_numpy() -> None:
    command = [sys.executable, "-c", IMPORT]
    modules = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    packages = {name.partition(".")[0] for name in modules}
    assert "llmcore" in packages
    assert packages & {"typer", "rich", "jinja2", "tokenizers", "huggingface_hub", "torch"} == set()
