"""The progress of a training, live on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from llmcore.training.loop import Hook, State

__all__ = ["ProgressBar"]

SMOOTHING = 0.9
"""How much of what is shown comes from earlier steps."""
LINE_SECONDS = 10.0
"""From one line to the next where standard error is no terminal."""


class ProgressBar(Hook):
    """Shows steps, loss, tokens a second, the share of the machine's float32 peak, and the time left; and a
    line for each validation, sample and early end. Where standard error is no terminal, a line every ten
    seconds.

    Use it as a context manager.

    Args:
        steps: Steps of the whole training.
        step: Steps made so far.
    """

    def __init__(self, steps: int, step: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        columns = ("{task.fields[loss]}", "{task.fields[speed]}", "{task.fields[peak]}")
        self._progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            *map(TextColumn, columns),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=step, loss="", speed="", peak="")
        self._mean: dict[str, float] = {}
        self._line_due = 0.0

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def after_step(self, state: State) -> None:
        """Shows the step."""
        for name in ("loss", "tokens_per_second", "peak_share"):
            value = state.metrics[name]
            self._mean[name] = SMOOTHING * self._mean.get(name, value) + (1 - SMOOTHING) * value
        fields: dict[str, Any] = {
            "loss": f"loss {self._mean['loss']:.3f}",
            "speed": f"{self._mean['tokens_per_second']:,.0f} tokens/s",
            "peak": f"{self._mean['peak_share']:.0%} of peak",
        }
        self._progress.update(self._task, completed=state.step, **fields)
        if not self._console.is_terminal and (time.monotonic() >= self._line_due or state.last):
            self._line_due = time.monotonic() + LINE_SECONDS
            self._say(f"step {state.step}/{state.steps}: {', '.join(fields.values())}")
        self._say_events(state.step, state.metrics)
        if state.stop is not None:
            self._say(f"step {state.step}: {state.stop}")

    def _say_events(self, step: int, metrics: dict[str, Any]) -> None:
        if "validation_loss" in metrics:
            loss, perplexity = metrics["validation_loss"], metrics["validation_perplexity"]
            self._say(f"step {step}: validation loss {loss:.4f}, perplexity {perplexity:,.2f}")
        for sample in metrics.get("samples", ()):
            self._say(f"step {step}: {sample['prompt']}▸{sample['text']}")

    def _say(self, line: str) -> None:
        encoding = sys.stderr.encoding or "utf-8"
        line = line.encode(encoding, "replace").decode(encoding)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
