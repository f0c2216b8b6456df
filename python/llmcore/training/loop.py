"""The training loop.

Maximum likelihood by stochastic gradients: each step adds up the gradients of some batches, each divided by
the labels that count in the whole step, and lets the optimiser change the parameters once. What else a
training does (validation, samples, checkpoints, a progress bar) are hooks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmcore.training.batch import Batch, count_labels
from llmcore.training.model import Dropout, TrainableModel
from llmcore.training.optimizer import EMA, Optimizer
from llmcore.training.schedules import Schedule

__all__ = ["Hook", "State", "TrainingError", "train"]


class TrainingError(RuntimeError):
    """A training that cannot go on: the message names the step and the batch, and where there are checkpoints
    the last good one."""


@dataclass
class State:
    """Where a training is: what hooks see, and may change.

    Attributes:
        model, optimizer, ema: What is trained, by what, and the average of its parameters if one is kept.
        steps: Steps of the whole training.
        step: Steps made so far; in `before_update`, those before the one that is being made.
        batches: The batches of the step.
        losses: The share of each of them in `loss`.
        loss: The mean loss of the step's labels that count, in nats.
        norm: The norm of the gradients before clipping.
        labels: Labels of the step that count.
        tokens: Tokens of the step.
        seconds: What the step took, without its hooks.
        metrics: What is written down of the step, by name. Hooks may add to it.
        improved: Whether a validation after this step was the best so far.
        stop: Why the training is to end after this step; None: it is not.
    """

    model: TrainableModel
    optimizer: Optimizer
    ema: EMA | None
    steps: int
    step: int = 0
    batches: Sequence[Batch] = ()
    losses: list[float] = field(default_factory=list)
    loss: float = math.nan
    norm: float = math.nan
    labels: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    improved: bool = False
    stop: str | None = None

    @property
    def last(self) -> bool:
        """Whether no step follows this one."""
        return self.step >= self.steps or self.stop is not None


class Hook:
    """Something that is done in each step of a training. Hooks run in the order in which they are given."""

    def before_update(self, state: State) -> None:
        """The loss and the gradients are there; the parameters have not changed yet."""

    def after_step(self, state: State) -> None:
        """The step is made and counted."""


def train(
    state: State,
    data: Iterable[Sequence[Batch]],
    *,
    learning_rate: float,
    schedule: Schedule,
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
) -> None:
    """Trains from step `state.step` until `state.steps`, the end of the data, or a hook's `state.stop`.

    Args:
        state: The model, its optimiser, and where the training is.
        data: For each step its batches.
        learning_rate: Is multiplied by `schedule(step)` for each step.
        dropout: The share of activations that is dropped; drawn by seed, step and place in the data.
        label_smoothing: The share of each label that is spread over all tokens.
        seed: Of dropout.
        hooks: What else is done.

    Raises:
        TrainingError: the norm of the gradients is not finite; the parameters are those before the step.
    """
    steps = iter(data)
    while not state.last:
        state.batches = next(steps, ())
        if not state.batches:
            state.stop = "the data is at its end"
            return
        start = time.perf_counter()
        add_gradients(state, dropout, label_smoothing, seed)
        for hook in hooks:
            hook.before_update(state)

        state.optimizer.lr = learning_rate * schedule(state.step)
        try:
            state.norm = state.optimizer.step()
        except FloatingPointError as error:
            where = f"step {state.step + 1}, all {len(state.batches)} batches"
            raise TrainingError(f"{where}: {error}") from error
        if state.ema is not None:
            state.ema.update()
        state.step += 1
        state.seconds = time.perf_counter() - start

        state.improved = False
        state.metrics = {
            "step": state.step,
            "loss": state.loss,
            "learning_rate": state.optimizer.lr,
            "grad_norm": state.norm,
            "tokens": state.tokens,
            "tokens_per_second": state.tokens / state.seconds,
        }
        for hook in hooks:
            hook.after_step(state)


def add_gradients(state: State, dropout: float, label_smoothing: float, seed: int) -> None:
    """Computes the loss of the step's batches, and adds up their gradients."""
    state.labels = sum(map(count_labels, state.batches))
    state.losses = []
    sequences = tokens = 0
    for batch in state.batches:
        # At a rate of 0 too: adapters have one of their own.
        drops = Dropout(dropout, seed, state.step, sequences)
        state.losses.append(
            state.model.loss_and_grad(
                **batch, denominator=state.labels, label_smoothing=label_smoothing, dropout=drops
            )
        )
        sequences += len(batch["input_ids"])
        tokens += sum(map(len, batch["input_ids"]))
    state.loss, state.tokens = sum(state.losses), tokens
