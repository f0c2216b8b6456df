"""Checkpoints of a training: all that it takes to go on with the same bits.

    RUN/checkpoints/step-300/
        config.json, model.safetensors, tokenizer.json, …   the model as `save` writes it, float32
        optimizer.safetensors                               the optimiser's state, by array and tensor
        ema.safetensors                                     the averages, if kept, by tensor
        trainer_state.json                                  step, position in the data, best validation, …

A checkpoint is filled under another name, is fsynced, and gets its own by one rename: whatever happens, a
folder `step-N` is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore import _core
from llmcore.checkpoint import read_json
from llmcore.files import replaced_folder, sync_folder
from llmcore.safetensors_file import write_safetensors
from llmcore.saving import write_json
from llmcore.training.model import Tensor, TrainableModel
from llmcore.training.optimizer import EMA, Optimizer

__all__ = ["STATE_FILE", "Checkpoints"]

STATE_FILE = "trainer_state.json"

Array = NDArray[np.float32]


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: Where they are; is made when the first one is saved.
        keep_last: So many of the last are kept, and the best.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def path(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.folder / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def last(self) -> Path | None:
        """The last checkpoint."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def save(
        self,
        step: int,
        model: TrainableModel,
        optimizer: Optimizer,
        ema: EMA | None,
        state: dict[str, Any],
    ) -> Path:
        """Saves a checkpoint, whole or not at all.

        Args:
            step: Steps made so far.
            model, optimizer, ema: What is saved.
            state: What else is to be known when the training goes on, as JSON has it.

        Raises:
            OSError: it could not be written; names the file.
        """
        facts = {
            "step": step,
            "optimizer_steps": optimizer.step_count,
            "precision": model.precision,
            "instruction_set": _core.isa(),
            **state,
        }
        with replaced_folder(self.path(step), ["*"]) as folder:
            model.save(folder / "model")
            for file in (folder / "model").iterdir():
                file.rename(folder / file.name)
            (folder / "model").rmdir()
            tensors = [tensor for tensor in model.parameters() if tensor.trained]
            with ExitStack() as lent:
                moments: dict[str, Array] = {}
                for name in optimizer.state_names:
                    flat = lent.enter_context(optimizer.arena(name))
                    moments |= {f"{name}.{key}": view for key, view in _views(flat, tensors)}
                write_safetensors(folder / "optimizer.safetensors", moments)
            if ema is not None:
                with ema.arena() as flat:
                    write_safetensors(folder / "ema.safetensors", dict(_views(flat, tensors)))
            write_json(folder / STATE_FILE, facts)
        return self.path(step)

    def load(
        self,
        folder: Path,
        model: TrainableModel,
        optimizer: Optimizer,
        ema: EMA | None,
        *,
        force: bool = False,
    ) -> dict[str, Any]:
        """Puts a checkpoint's weights, moments and averages into what is to go on, and returns the rest.

        With bfloat16 another instruction set would go on with other bits, which is refused.

        Args:
            force: Go on with another instruction set all the same.

        Raises:
            ValueError: another instruction set, or what is no checkpoint of such a model and optimiser.
            OSError: a file that cannot be read.
        """
        state: dict[str, Any] = read_json(folder / STATE_FILE)
        found, isa = state["instruction_set"], _core.isa()
        if found != isa and model.precision == "bfloat16" and not force:
            raise ValueError(
                f"{folder}: found a training in bfloat16 on {found!r}, expected {isa!r}, this machine's: the "
                "weights would not be the same bits (force goes on all the same)"
            )
        tensors = [tensor for tensor in model.parameters() if tensor.trained]
        weights = _core.SafeTensors(model.weights_file(folder))
        with model.arena("param") as flat:
            for name, view in _views(flat, tensors):
                _copy(folder, weights, name, view)
        source = _core.SafeTensors(folder / "optimizer.safetensors")
        for name in optimizer.state_names:
            with optimizer.arena(name) as flat:
                for key, view in _views(flat, tensors):
                    _copy(folder / "optimizer.safetensors", source, f"{name}.{key}", view)
        optimizer.step_count = state["optimizer_steps"]
        if ema is not None:
            source = _core.SafeTensors(folder / "ema.safetensors")
            with ema.arena() as flat:
                for key, view in _views(flat, tensors):
                    _copy(folder / "ema.safetensors", source, key, view)
        return state

    def prune(self, best: int | None) -> None:
        """Deletes all checkpoints but the last ones and that of step `best`."""
        steps = self.steps()
        for step in steps[: -self.keep_last]:
            if step != best:
                # No folder called step-N is ever half there.
                gone = self.path(step).rename(self.folder / f".step-{step}.deleted")
                sync_folder(self.folder)
                shutil.rmtree(gone, ignore_errors=True)

    def clean(self) -> None:
        """Deletes what a training that was killed left unfinished."""
        if self.folder.is_dir():
            for entry in self.folder.glob(".step-*"):
                shutil.rmtree(entry, ignore_errors=True)


def _views(flat: Array, tensors: list[Tensor]) -> Iterator[tuple[str, Array]]:
    """The part of each tensor in a flat array, by name, in the tensor's shape."""
    for tensor in tensors:
        yield tensor.name, flat[tensor.start : tensor.stop].reshape(tensor.shape)


def _copy(file: Path, source: Any, name: str, view: Array) -> None:
    """Reads a tensor into its place."""
    array = source.read(name)
    if array.shape != view.shape:
        raise ValueError(f"{file}: {name}: found shape {list(array.shape)}, expected {list(view.shape)}")
    view[...] = array
