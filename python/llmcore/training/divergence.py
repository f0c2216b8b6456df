"""Stopping before a training that has gone wrong spoils the parameters."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from llmcore.training.loop import Hook, State, TrainingError

__all__ = ["Divergence"]

WINDOW = 50
"""Steps that the mean is taken over."""
ENOUGH = 10
"""Steps before a loss can be a spike."""


class Divergence(Hook):
    """Raises `TrainingError` before the parameters are changed by a step whose loss is not finite, or is more
    than `most` nats above the mean of the last steps.

    Args:
        most: Nats; 0: only what is not finite is an error.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def before_update(self, state: State) -> None:
        """Looks at the loss of the step."""
        if not math.isfinite(state.loss):
            bad = next((i for i, loss in enumerate(state.losses) if not math.isfinite(loss)), 0)
            self.fail(state, f"found a loss of {state.loss}, expected a finite one", bad)
        mean = sum(self.recent) / len(self.recent) if self.recent else state.loss
        if self.most and len(self.recent) >= ENOUGH and state.loss > mean + self.most:
            worst = max(range(len(state.losses)), key=lambda i: state.losses[i])
            found = f"found a loss of {state.loss:.4f} after a mean of {mean:.4f}"
            self.fail(state, f"{found}, expected at most {self.most:g} nats more (max_loss_spike)", worst)
        self.recent.append(state.loss)

    def fail(self, state: State, what: str, batch: int) -> None:
        """Raises the error, about one of the batches of the step."""
        raise TrainingError(
            f"step {state.step + 1}, batch {batch + 1} of {len(state.batches)}: {what}; the "
            f"parameters are those after step {state.step}"
        )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes, as JSON has it."""
        return {"recent_losses": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.recent = deque(state["recent_losses"], maxlen=WINDOW)
