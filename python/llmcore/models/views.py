"""Tables of views as two ways to lay out the same parameters: from one checkpoint's tensors to another's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore._core import Gguf, SafeTensors
from llmcore.arrays import LazyArray
from llmcore.models.base import View

__all__ = ["parts_of", "rearranged", "tensor_shape"]

Array = npt.NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of parameters, by path."""


def parts_of(views: Mapping[str, View]) -> dict[str, list[str]]:
    """The paths of the parameters that each tensor holds, in the order of their rows there."""
    parts = defaultdict(list)
    for path, view in views.items():
        parts[view.tensor].append(path)
    return {tensor: sorted(paths, key=lambda path: views[path].first) for tensor, paths in parts.items()}


def tensor_shape(paths: list[str], views: Mapping[str, View], shapes: Shapes) -> tuple[int, ...]:
    """The shape of a tensor that holds these parameters one after the other."""
    rows = sum(shapes[path][0] for path in paths)
    shape = (rows, *shapes[paths[0]][1:])
    return shape[::-1] if views[paths[0]].transpose else shape


def rearranged(
    source: SafeTensors | Gguf,
    before: Mapping[str, View],
    after: Mapping[str, View],
    shapes: Shapes,
    dtype: Callable[[str, tuple[int, ...]], str],
) -> dict[str, LazyArray]:
    """The tensors of another layout, read from a checkpoint when it is their turn.

    Args:
        source: The checkpoint.
        before: Where the parameters stand in it.
        after: Where they are to stand; the same paths.
        shapes: Their shapes.
        dtype: The type in the file of a tensor, by its name and shape there.
    """

    def tensor(name: str, paths: list[str]) -> LazyArray:
        def read() -> Array:
            rows = [_stored(_parameter(source, before[path], shapes[path]), after[path]) for path in paths]
            values = rows[0] if len(rows) == 1 else np.concatenate(rows)
            return values.T if after[paths[0]].transpose else values

        shape = tensor_shape(paths, after, shapes)
        return LazyArray(dtype(name, shape), shape, read)

    return {name: tensor(name, paths) for name, paths in parts_of(after).items()}


def _parameter(source: SafeTensors | Gguf, view: View, shape: tuple[int, ...]) -> Array:
    """A parameter, `[outputs, inputs]` or `[outputs]`."""
    values: Array = source.read(view.tensor)
    values = (values.T if view.transpose else values)[view.first : view.first + shape[0]]
    if view.interleaved_heads is None:
        return values
    pairs = values.reshape(view.interleaved_heads, -1, 2, *shape[1:])
    return pairs.swapaxes(1, 2).reshape(shape)


def _stored(values: Array, view: View) -> Array:
    """The rows of a parameter as they stand in the tensor of a view."""
    if view.interleaved_heads is None:
        return values
    halves: npt.NDArray[Any] = values.reshape(view.interleaved_heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
