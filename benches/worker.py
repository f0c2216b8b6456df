"""A program in a process of its own that answers lines of JSON, as the engines of the benchmarks do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any


class Worker:
    """Runs `python script arguments…`. Its first answer comes without being asked."""

    def __init__(self, python: str | Path, script: Path, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [str(python), str(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            text=True,
        )

    def answer(self) -> Any:
        """Raises RuntimeError if the process has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args}: ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, *message: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def sleep(self) -> None:
        """Stops the process: the threads of many a library spin for a while when they have nothing to do."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.wake()
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
