"""Looking at a model while it trains: its loss on held-out data, and what it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import Any

from llmcore.training.batch import Batch
from llmcore.training.loop import Hook, State
from llmcore.training.model import TrainableModel

__all__ = ["Samples", "Validation", "evaluate"]


def evaluate(model: TrainableModel, batches: Iterable[Batch]) -> float:
    """The mean loss of the labels that count, in nats, over all batches.

    Raises:
        ValueError: no label counts.
    """
    total, count = 0.0, 0
    for batch in batches:
        losses, labels = model.evaluate(**batch)
        total += losses
        count += labels
    if not count:
        raise ValueError("validation: found no label that counts, expected at least one")
    return total / count


class Validation(Hook):
    """Computes the loss on held-out data every `interval` steps and after the last, with the averages of the
    parameters where they are kept. Stops early when it has not become better `patience` times in a row
    (Prechelt 1998).

    Args:
        batches: Gives the batches of one validation, in steps.
        interval: Steps from one validation to the next; None: only after the last.
        patience: See above; None: never.
        most: Batches of a validation at most; None: all.

    Attributes:
        best: The best loss so far, in nats; infinite before the first validation.
        best_step: The step that had it.
        waited: Validations since.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[Sequence[Batch]]],
        interval: int | None,
        *,
        patience: int | None = None,
        most: int | None = None,
    ) -> None:
        self.batches = batches
        self.interval = interval
        self.patience = patience
        self.most = most
        self.best = math.inf
        self.best_step: int | None = None
        self.waited = 0

    def after_step(self, state: State) -> None:
        """Validates, if it is time."""
        if not due(state, self.interval):
            return
        with averages(state):
            loss = evaluate(state.model, islice(chain.from_iterable(self.batches()), self.most))
        state.metrics["validation_loss"] = loss
        state.metrics["validation_perplexity"] = perplexity(loss)
        if loss < self.best:
            self.best, self.best_step, self.waited = loss, state.step, 0
            state.improved = True
            return
        self.waited += 1
        state.stop = self.verdict() or state.stop

    def verdict(self) -> str | None:
        """Why the training is to end early; None: it is not."""
        if self.patience is None or self.waited < self.patience:
            return None
        best = f"{self.best:.4f} nats at step {self.best_step}"
        return f"early stopping: {self.waited} validations in a row were no better than {best}"

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes, as JSON has it."""
        best = None if self.best_step is None else self.best
        return {"best_loss": best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.best = math.inf if state["best_loss"] is None else state["best_loss"]
        self.best_step, self.waited = state["best_step"], state["waited"]


class Samples(Hook):
    """Continues some prompts every `interval` steps and after the last, with the averages of the parameters
    where they are kept. The same model and seed write the same."""

    def __init__(
        self, prompts: Iterable[str], interval: int | None, *, tokens: int, temperature: float, seed: int
    ) -> None:
        self.prompts = list(prompts)
        self.interval = interval
        self.options: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False}
        if temperature > 0:
            self.options |= {"do_sample": True, "temperature": temperature, "seed": seed}

    def after_step(self, state: State) -> None:
        """Adds `samples` to the metrics, if it is time: `prompt` and `text` of each."""
        if due(state, self.interval):
            with averages(state):
                found = state.model.generate(self.prompts, **self.options)
            state.metrics["samples"] = [
                {"prompt": prompt, "text": completion.text}
                for prompt, completion in zip(self.prompts, found, strict=True)
            ]


def due(state: State, interval: int | None) -> bool:
    """Whether a hook that runs every `interval` steps and after the last runs now."""
    return state.last or (interval is not None and state.step % interval == 0)


def averages(state: State) -> AbstractContextManager[None]:
    """Inside, the model has the averages as its parameters, if they are kept."""
    return nullcontext() if state.ema is None else state.ema.swapped()


def perplexity(loss: float) -> float:
    """`exp(loss)`; infinite where no number is large enough."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
