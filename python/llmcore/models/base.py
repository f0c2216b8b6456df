"""What the architectures share: reading a config, and tables of where parameters stand in a checkpoint."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmcore._core import Gguf

__all__ = [
    "View",
    "check_epsilon",
    "check_sizes",
    "errors_name",
    "fields_of",
    "in_layers",
    "read_config",
    "required",
    "unsupported",
]

C = TypeVar("C")

# No width, vocabulary or context of a language model is larger, and no stack of layers is deeper.
LARGEST_SIZE = 1 << 24
MOST_LAYERS = 1 << 12


@dataclass(frozen=True)
class View:
    """Where a parameter stands in a checkpoint; the same table serves to load and to save.

    A parameter of shape `[outputs, inputs]` is rows `first …` of the tensor's outputs. The tensor is
    stored `[outputs, inputs]`, or `[inputs, outputs]` if `transpose`. With `interleaved_heads`, the rows of
    each of so many heads stand with the two halves of a rotated pair side by side, as GGUF keeps them for
    Llama; the parameter has one half after the other.
    """

    tensor: str
    transpose: bool = False
    first: int = 0
    interleaved_heads: int | None = None


def in_layers(count: int, table: Mapping[str, View]) -> dict[str, View]:
    """The table for each of `count` layers, with the layer's number for every `{i}`."""
    return {
        path.replace("{i}", str(i)): dataclasses.replace(view, tensor=view.tensor.replace("{i}", str(i)))
        for i in range(count)
        for path, view in table.items()
    }


def read_config(config: type[C], data: Mapping[str, Any], where: str) -> C:
    """A `Config` from the fields of a config.json; those it does not name are not its concern.

    Raises:
        ValueError: a field of the wrong type; names the file (`where`) and the field.
    """
    hints = typing.get_type_hints(config)
    values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if field.name in data:
            value = data[field.name]
            if not _fits(value, hints[field.name]):
                expected = _spell(hints[field.name])
                raise ValueError(f"{where}: {field.name}: found {value!r}, expected {expected}")
            values[field.name] = value
    with errors_name(where):
        return config(**values)


@contextmanager
def errors_name(file: str | Path, within: str | Path | None = None) -> Iterator[None]:
    """Lets each `ValueError` begin with the file that it is about: `file`, unless it names one already
    that is `within` a folder."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(str(file if within is None else within)):
            raise
        raise ValueError(f"{file}: {error}") from None


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a `Config` by name, but for those that are None, in values too."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if item is not None}
        return value

    fields: dict[str, Any] = kept(dataclasses.asdict(config))
    return fields


def required(gguf: Gguf, key: str) -> Any:
    """The value of a key of GGUF's metadata which every file of an architecture has.

    Raises:
        ValueError: there is none; names the key.
    """
    value = gguf.get(key)
    if value is None:
        raise ValueError(f"{key}: found no such key, expected a value: the architecture needs it")
    return value


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is Any:
        return True
    kind = typing.get_origin(hint) or hint
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _spell(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_spell(option) for option in typing.get_args(hint))
    return "null" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def check_sizes(*, layers: str, **sizes: Any) -> None:
    """Checks that sizes lie in the range of real models.

    Args:
        layers: The name, among `sizes`, of the count of layers.
        sizes: Values by the name of their field; None stands for one that follows from others.

    Raises:
        ValueError: one that does not; names the field.
    """
    for name, value in sizes.items():
        most = MOST_LAYERS if name == layers else LARGEST_SIZE
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{name}: found {value!r}, expected a whole number from 1 to {most}")


def check_epsilon(name: str, value: float) -> None:
    """Checks what a norm adds to a variance.

    Raises:
        ValueError: it is no number ≥ 0; names the field.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: found {value!r}, expected a number ≥ 0")


def unsupported(field: str, value: Any, expected: str) -> ValueError:
    """The error of a field that asks for something which is not built."""
    return ValueError(f"{field}: found {value!r}, expected {expected}: nothing else is supported")
