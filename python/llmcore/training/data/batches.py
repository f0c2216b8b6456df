"""Examples to the batches of steps, in an order that can be taken up again anywhere."""

from __future__ import annotations

import math
from typing import Any

from llmcore.training.batch import count_labels
from llmcore.training.data.datasets import Dataset
from llmcore.training.data.identity import digest
from llmcore.training.data.shuffle import shuffled

__all__ = ["Batches"]


class Batches:
    """An iterator of steps; a step is a list of batches, whose gradients are to be added.

    The examples form one endless sequence: those of an epoch, shuffled, then those of the next. Each batch
    takes the next ones of it, so that a batch may reach from one epoch into the next. `position`, the number
    of examples taken so far, is all that there is to know of where it stands: what follows depends on nothing
    else.

    A batch is a dict of lists of sequences of unequal lengths, without padding: the model's arguments.

    Args:
        data: The examples: `PackedWindows`, `Documents`, or what is like them.
        batch_size: The examples of a batch.
        max_tokens: Instead of `batch_size`: a batch takes examples as long as it has no more tokens.
        gradient_accumulation_steps: The batches of a step.
        seed: Of the shuffle.
        shuffle: Whether each epoch has an order of its own, or all have that of `data`.
        epochs: After how many the iterator ends, with a step that may be smaller; None: never.

    Raises:
        ValueError: an argument is out of its range, or `max_tokens` is less than an example has.
    """

    position: int = 0
    """The examples taken so far; may be set."""

    def __init__(
        self,
        data: Dataset,
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
    ) -> None:
        if (batch_size is None) == (max_tokens is None):
            raise ValueError(
                f"batch_size, max_tokens: found {batch_size}, {max_tokens}, expected one of them"
            )
        for name, value in (
            ("batch_size", batch_size), ("gradient_accumulation_steps", gradient_accumulation_steps),
            ("epochs", epochs), ("examples", len(data)),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        longest = int(data.lengths.max())
        if max_tokens is not None and max_tokens < longest:
            raise ValueError(f"max_tokens: found {max_tokens}, expected at least {longest}, an example's")
        self.data = data
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.seed = seed
        self.shuffle = shuffle
        self.epochs = epochs

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> list[dict[str, Any]]:
        """The batches of the next step. Raises ValueError if none of its labels counts."""
        start = self.position
        step: list[dict[str, Any]] = []
        while len(step) < self.gradient_accumulation_steps and (taken := self._batch_at(self.position)):
            step.append(self._joined(taken))
            self.position += len(taken)
        if not step:
            raise StopIteration
        if not any(map(count_labels, step)):
            found = f"examples {start} to {self.position - 1}"
            raise ValueError(f"{found}: found no label that counts, expected one in every step")
        return step

    def _batch_at(self, position: int) -> list[int]:
        """The examples of the batch at a position, by their numbers in the data; none at the end."""
        end = math.inf if self._end is None else self._end
        taken: list[int] = []
        tokens = 0
        while position + len(taken) < end and len(taken) != self.batch_size:
            index = self._index(position + len(taken))
            tokens += int(self.data.lengths[index])
            if self.max_tokens is not None and tokens > self.max_tokens:
                break
            taken.append(index)
        return taken

    def _joined(self, examples: list[int]) -> dict[str, Any]:
        """The sequences of examples, in one batch."""
        batch: dict[str, list[Any]] = {}
        for index in examples:
            for name, sequences in self.data[index].items():
                batch.setdefault(name, []).extend(sequences)
        return batch

    def _index(self, position: int) -> int:
        """Which example stands at a position."""
        epoch, place = divmod(position, len(self.data))
        return shuffled(place, len(self.data), self.seed, epoch) if self.shuffle else place

    @property
    def _end(self) -> int | None:
        return None if self.epochs is None else self.epochs * len(self.data)

    @property
    def epoch(self) -> float:
        """The epochs done so far."""
        return self.position / len(self.data)

    def __len__(self) -> int:
        """The steps from the first to the end. Raises TypeError if there is none.

        Of batches by tokens it goes through the lengths of all examples."""
        if self._end is None:
            raise TypeError("len: found epochs=None, expected a number, so that there is an end")
        if self.batch_size is not None:
            return -(-self._end // (self.batch_size * self.gradient_accumulation_steps))
        position = batches = 0
        while taken := self._batch_at(position):
            position += len(taken)
            batches += 1
        return -(-batches // self.gradient_accumulation_steps)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: `position`, and `data`, what the order of the examples is known by."""
        return {"position": self.position, "data": self._order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another stood.

        Raises:
            ValueError: that had other examples, or another seed.
        """
        if state["data"] != self._order:
            found = f"the examples {state['data']!r:.20}"
            raise ValueError(
                f"data: found {found}, expected {self._order!r:.20}; the data or seed has changed"
            )
        self.position = state["position"]

    @property
    def _order(self) -> str:
        return digest([self.data.fingerprint, self.seed if self.shuffle else None])
