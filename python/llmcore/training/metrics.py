"""What is written down of each step: `metrics.jsonl`, TensorBoard's events, the share of the peak."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmcore import ops
from llmcore.files import errors_name_file, written_whole
from llmcore.training.extras import extra
from llmcore.training.loop import Hook, State
from llmcore.training.model import TrainableModel

__all__ = ["MetricsFile", "TensorBoard", "flops_per_token", "machine_peak", "read_metrics"]


class MetricsFile(Hook):
    """Writes a line of JSON a step: `step`, `loss` (nats), `learning_rate`, `grad_norm`, `tokens`,
    `tokens_per_second`, `peak_share`, and where a step has them `validation_loss`, `validation_perplexity`,
    `samples`.

    Args:
        path: The file. What it says of later steps than `step` is cut off.
        step: Steps made so far.

    Raises:
        OSError: the file cannot be written; names it.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        kept = [record for record in read_metrics(path) if record["step"] <= step] if path.exists() else []
        with written_whole(path) as file:
            file.writelines(map(_line, kept))
        self._path = path
        self._file = path.open("ab", buffering=0)

    def after_step(self, state: State) -> None:
        """Writes what is known of the step."""
        line = _line(state.metrics)
        with errors_name_file(self._path):
            while line:
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """Waits until all that was written is on the disk."""
        with errors_name_file(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line(record: dict[str, Any]) -> bytes:
    """A record as it is written; JSON has no word for numbers that are not finite."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(plain, ensure_ascii=False).encode() + b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, one a step. A last line that is not yet, or was never, written to its
    end does not count.

    Raises:
        OSError: there is no such file.
        ValueError: a line that is no such record; names file and line.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            records.append(json.loads(line))
            records[-1]["step"] + 0
        except (ValueError, TypeError, LookupError) as error:
            shown = line[:40].decode(errors="replace")
            raise ValueError(
                f"{path}: line {number}: found {shown!r}, expected the metrics of a step"
            ) from error
    return records


def tensorboard() -> Any:
    """The package that writes TensorBoard's events.

    Raises:
        ModuleNotFoundError: it is missing; says what to install.
    """
    return extra("tensorboardX", "tensorboardX", "writing TensorBoard's events")


class TensorBoard(Hook):
    """Writes numbers as TensorBoard's events.

    Args:
        folder: Where to.
        step: Steps made so far; what older events say of later steps is not shown.

    Raises:
        ModuleNotFoundError: the package is missing; says what to install.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._writer = tensorboard().SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def after_step(self, state: State) -> None:
        """Writes what is a number of the step's metrics."""
        for name, value in state.metrics.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, state.step)

    def sync(self) -> None:
        """Hands what was written to the system."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class PeakShare(Hook):
    """Adds to the metrics what part of the machine's float32 peak a step reached."""

    def __init__(self, model: TrainableModel) -> None:
        self._flops = flops_per_token(model)
        self._peak = machine_peak()

    def after_step(self, state: State) -> None:
        """Adds `peak_share`."""
        state.metrics["peak_share"] = self._flops * state.tokens / state.seconds / self._peak


def flops_per_token(model: TrainableModel) -> float:
    """Floating-point operations that training does for a token: 6 for each weight that rows are multiplied by
    (Kaplan et al. 2020, arXiv:2001.08361), 4 where its own gradient is not wanted. Attention's own products
    are not counted, nor what is computed twice, so shares of the peak are a little low."""
    tensors = [tensor for tensor in model.parameters() if len(tensor.shape) > 1]
    # A table of tokens or positions is looked up; rows are multiplied by it only where it is the head too.
    tables = [tensor for tensor in tensors if "wpe" in tensor.name or "position" in tensor.name]
    if any(tensor.name == "lm_head.weight" for tensor in tensors):
        tables += [tensor for tensor in tensors if "wte" in tensor.name or "embed_tokens" in tensor.name]
    return float(sum((6 if t.trained else 4) * t.size for t in tensors if t not in tables))


def machine_peak(seconds: float = 0.1) -> float:
    """Floating-point operations a second that the machine reaches in float32, measured by products of square
    matrices for some `seconds`; the best of them counts."""
    size = 512  # a product of a millisecond, of which some are not interrupted on a busy machine either
    a = np.ones((size, size), np.float32)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        ops.matmul(a, a)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
