"""A model that trains: its loss, the gradients of its parameters, and the parameters themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.arrays import LazyArray
from llmcore.checkpoint import Checkpoint, as_table
from llmcore.model import Model
from llmcore.saving import save_folder
from llmcore.training.batch import flat_rows
from llmcore.training.lora import ADAPTER_WEIGHTS, LoRA, read_adapter, save_adapter

__all__ = ["Dropout", "Tensor", "TrainableModel"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint.

    Attributes:
        name: As in the checkpoint.
        shape: As in the checkpoint.
        start: Where its first number stands in `arena`, if it is trained.
        trained: Whether it has a gradient.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    trained: bool

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """One past its last number."""
        return self.start + self.size


@dataclass(frozen=True)
class Dropout:
    """What is dropped in one batch (Srivastava et al. 2014), after the embeddings and after every block that
    is added to the residual stream. A draw depends on all of these, its place in the model, its position and
    its column, and on nothing else: not on threads, and not on which sequences share a batch.

    Attributes:
        rate: The probability to drop, from 0, less than 1.
        seed: Of the run.
        step: Of the optimiser.
        sequence: The number, within the step, of the batch's first sequence.
    """

    rate: float
    seed: int = 0
    step: int = 0
    sequence: int = 0


class TrainableModel(Model):
    """A language model whose parameters can be changed: `llmcore.load(source, trainable=True)`.

    Parameters lie in one float32 array, in the checkpoint's own layout, and their gradients in another, in
    the same order. A matrix that is frozen, and quantised in a GGUF file, stays so, unless `dtype` is
    "float32", and computes as the numbers that it stands for: less memory, but every product takes it apart.
    It computes the same bits as the model that is loaded to infer from what it saves, only slower where a
    step has few rows.

    Attributes:
        adapter: The adapters that train in the place of the weights, if there are any.
        adapted: The weights that have one.
        precision: What the factors of products are rounded to while training, "float32" or "bfloat16".
        checkpointing: Keeps of each layer only its input, and computes the rest again for the gradients (Chen
            et al. 2016): less memory, about a third more time, the same bits.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        dtype: str = "auto",
        precision: str = "float32",
        frozen: str | Sequence[str] = (),
        adapter: LoRA | str | os.PathLike[str] | None = None,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: found {precision!r}, expected 'float32' or 'bfloat16'")
        if dtype == "bfloat16":
            expected = "weights in float32 to train: precision='bfloat16' multiplies in it"
            raise ValueError(f"dtype: found 'bfloat16', expected {expected}")
        self.precision = precision
        self.checkpointing = False
        # A GGUF file is trained, and saved, in the layout of Transformers.
        is_folder = checkpoint.path.is_dir()
        self._views = checkpoint.views if is_folder else checkpoint.module.tensors(checkpoint.config)
        self._frozen = [frozen] if isinstance(frozen, str) else list(frozen)
        self.adapter = adapter if isinstance(adapter, LoRA | None) else LoRA.from_folder(adapter)[0]
        self.adapted = self.adapter.modules(self._views, checkpoint.model_type) if self.adapter else []
        super().__init__(checkpoint, threads=threads, dtype=dtype)
        self._tensors = [
            Tensor(name, tuple(shape), start, trained) for name, shape, start, trained in self.core.tensors()
        ]
        if self.adapter is not None:
            self._begin_adapter(None if isinstance(adapter, LoRA) else adapter)

    def _compile(self, threads: int | None, trainable: Mapping[str, Any] | None = None) -> _core.Model:
        fields: dict[str, Any] = {
            "tensors": as_table(self._views),
            "precision": self.precision,
            "adapters": None,
        }
        if self.adapter is None:
            fields["frozen"] = sorted(self._frozen_names())
        else:
            fields["frozen"] = sorted({view.tensor for view in self._views.values()})
            fields["adapters"] = self.adapter.spec(self.adapted)
            for module in self.adapted:
                fields["tensors"] |= as_table(module.views())
        return super()._compile(threads, fields)

    def _frozen_names(self) -> set[str]:
        names = {view.tensor for view in self._views.values()}
        frozen: set[str] = set()
        for pattern in self._frozen:
            if not (matching := {name for name in names if fnmatchcase(name, pattern)}):
                expected = "the name of a tensor, or a pattern of such"
                raise ValueError(f"frozen: found {pattern!r}, expected {expected}")
            frozen |= matching
        if frozen == names:
            raise ValueError("frozen: found all tensors, expected some that train")
        return frozen

    def _begin_adapter(self, folder: str | os.PathLike[str] | None) -> None:
        """Gives the adapters their first values: those of a file, or those that PEFT would draw."""
        assert self.adapter is not None
        tensors = {tensor.name: tensor for tensor in self._tensors if tensor.trained}
        if folder is not None:
            values = read_adapter(folder, {name: tensor.shape for name, tensor in tensors.items()})
        else:
            inputs = {module: tensors[module.a].shape[1] for module in self.adapted}
            values = {module.a: self.adapter.initial(module, inputs[module]) for module in self.adapted}
        with self.arena("param") as flat:
            for name, array in values.items():
                flat[tensors[name].start : tensors[name].stop] = array.reshape(-1)

    def loss_and_grad(
        self,
        *,
        denominator: float | None = None,
        label_smoothing: float = 0.0,
        dropout: Dropout | None = None,
        **batch: Any,
    ) -> float:
        """The loss of a batch, whose gradients are added to those of the batches before; the first batch
        after a step of an optimiser overwrites them.

        The loss is `Σ −log P(label) / denominator`, in nats. Over several batches of one step the denominator
        is to be the count of the labels of all (`llmcore.training.count_labels`); the losses then add up to
        their mean.

        Args:
            denominator: The count of the labels of this batch unless given.
            label_smoothing: How much of a label's probability is spread over all of them (Szegedy et al.
                2016).
            dropout: What is dropped; nothing unless given.
            **batch: `input_ids`, a list of 1-D arrays of ids or a 2-D array; `labels`, of the same shape,
                -100 where none counts, the ids themselves unless given: the model shifts them;
                `attention_mask`, of the same shape, 0 where a sequence is padded on its right.

        Raises:
            ValueError: a batch that is none, ids outside of the vocabulary, sequences longer than
                `max_positions`, no label that counts, or an option out of range; the gradients are as before.
            TypeError: a rate of dropout without what its draws depend on.
            KeyboardInterrupt: the gradients are lost; the next batch begins anew.
        """
        rows = flat_rows(batch)
        if denominator is None:
            denominator = rows.count
            if not denominator:
                raise ValueError("labels: found none that counts, expected at least one, or a denominator")
        if not isinstance(dropout, Dropout | None):
            raise TypeError(f"dropout: found {dropout!r}, expected Dropout(rate, seed, step, sequence)")
        drops = None if dropout is None else (dropout.rate, dropout.seed, dropout.step, dropout.sequence)
        total = self.core.loss_and_grad(
            rows.tokens,
            rows.lengths,
            rows.targets,
            denominator,
            label_smoothing,
            drops,
            self.checkpointing,
        )
        return total / denominator

    def evaluate(self, **batch: Any) -> tuple[float, int]:
        """The sum of a batch's losses, in nats, and the count of its labels; no gradients, no dropout.

        Raises:
            ValueError: as `loss_and_grad`; a batch without labels has a sum of 0.
        """
        rows = flat_rows(batch)
        return self.core.evaluate(rows.tokens, rows.lengths, rows.targets), rows.count

    def parameters(self) -> list[Tensor]:
        """The tensors, in the order in which they lie in memory: those that train, then those that are
        frozen."""
        return list(self._tensors)

    def param(self, name: str) -> Array:
        """A copy of a tensor, under its name and in its shape in the checkpoint.

        Raises:
            ValueError: no tensor has the name.
        """
        tensor = next((t for t in self._tensors if t.name == name), None)
        if tensor is None:
            raise ValueError(f"name: found {name!r}, expected the name of a tensor of the checkpoint")
        return self.core.tensor(name).reshape(tensor.shape)

    def grad(self, name: str) -> Array:
        """A copy of a tensor's gradient.

        Raises:
            ValueError: no tensor that trains has the name.
        """
        tensor = next((t for t in self._tensors if t.name == name and t.trained), None)
        if tensor is None:
            raise ValueError(f"name: found {name!r}, expected the name of a tensor that trains")
        with self.arena("grad") as flat:
            return flat[tensor.start : tensor.stop].reshape(tensor.shape).copy()

    @contextmanager
    def arena(self, which: Literal["param", "grad"]) -> Iterator[Array]:
        """All parameters that train, or their gradients, as one writable array without a copy, for as long as
        a `with` block lasts. `parameters()` says which tensor stands where. Meanwhile every call on the model
        raises `RuntimeError`; afterwards the array must not be used.

        Raises:
            ValueError: neither "param" nor "grad".
        """
        if which not in ("param", "grad"):
            raise ValueError(f"arena: found {which!r}, expected 'param' or 'grad'")
        flat = self.core.lend(which == "grad")
        try:
            yield flat
        finally:
            self.core.give_back()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Saves what was trained, whole or not at all.

        A model is saved as Transformers and `llmcore.load` read it: config.json, model.safetensors in
        float32, and the files of the tokenizer; a GGUF file as such a folder, too. An adapter is saved as
        PEFT reads it: adapter_config.json and adapter_model.safetensors; `save_merged` saves the model with
        it.

        Raises:
            FileExistsError: there is a file, or a folder that holds anything but what is saved here.
            OSError: a file that cannot be written; names it.
        """
        if self.adapter is None:
            save_folder(folder, self.checkpoint, self._lazy(self._tensors))
        else:
            config = self.adapter.config_json(str(self.checkpoint.path), self.adapted)
            save_adapter(folder, config, self._lazy([tensor for tensor in self._tensors if tensor.trained]))

    def save_merged(self, folder: str | os.PathLike[str]) -> None:
        """Saves the model with its adapters added to its weights, `W + scale · B A`.

        Raises:
            ValueError: a model without adapters.
            OSError, FileExistsError: as `save`.
        """
        if self.adapter is None:
            raise ValueError(
                "save_merged: found a model without adapters, expected one loaded with `adapter`"
            )
        save_folder(
            folder, self.checkpoint, self._lazy([t for t in self._tensors if not t.trained], self._merged)
        )

    def weights_file(self, folder: str | os.PathLike[str]) -> Path:
        """What `save` writes the tensors that train into, to be opened as safetensors."""
        return Path(folder) if self.adapter is None else Path(folder) / ADAPTER_WEIGHTS

    def _merged(self, name: str) -> Array:
        """A weight, and what its adapter adds."""
        weight = self.param(name)
        module = next(
            (module for module in self.adapted if module.name == name.removesuffix(".weight")), None
        )
        if module is None or self.adapter is None:
            return weight
        added = np.float32(self.adapter.scale) * (self.param(module.b) @ self.param(module.a))
        return weight + (added.T if module.weight.transpose else added)

    def _lazy(
        self, tensors: Sequence[Tensor], read: Callable[[str], Array] | None = None
    ) -> dict[str, LazyArray]:
        """Tensors by name, each of which is copied when it is read."""
        read = read or self.param
        return {tensor.name: LazyArray("F32", tensor.shape, partial(read, tensor.name)) for tensor in tensors}
