"""What a model computes and reads, and what the machine can do at most: both sides of a share of a limit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcore import _core

if TYPE_CHECKING:
    from llmcore.model import Model

__all__ = ["Limits", "Work"]


@dataclass(frozen=True)
class Limits:
    """The most that some threads together were measured to do in a second.

    Attributes:
        float32: Operations in float32; a fused multiply-add counts as two, here and below.
        bfloat16: Operations on factors in bfloat16, with sums in float32.
        int8: Operations on bytes, codes of four bits and numbers with sign, with sums in 32 bits.
        memory: Bytes read from memory.
    """

    float32: float
    bfloat16: float
    int8: float
    memory: float

    @classmethod
    def measure(cls, threads: int | None = None) -> Limits:
        """Measures them in about a second, with all threads of the pool unless told.

        Raises:
            ValueError: a number of threads out of range.
            MemoryError: less than 512 MiB of memory.
        """
        return cls(*_core.measure_limits(threads))

    def operations(self, precision: str) -> float:
        """Operations a second in a precision: "float32", "bfloat16" or "int8"."""
        return {"float32": self.float32, "bfloat16": self.bfloat16, "int8": self.int8}[precision]


@dataclass(frozen=True)
class Work:
    """What the passes of a decoder execute, in operations and bytes. A weight is one multiply-add a row, so
    two operations; norms, activations and what a search does with logits count for nothing.

    Attributes:
        layers: Weights of each layer's matrices.
        last_kv: Those of the last layer that make keys and values.
        head: Weights of the head.
        attention_width: Of the queries of a layer, all heads together.
        weight_bytes: Bytes of the matrices that a step reads: not of an embedding that is not the head.
        kv_bytes: Bytes of keys and values of a position.
    """

    layers: tuple[int, ...]
    last_kv: int
    head: int
    attention_width: int
    weight_bytes: int
    kv_bytes: int

    @classmethod
    def of(cls, model: Model) -> Work:
        """That of a model whose layers have a block `attn`."""
        shapes = {path: shape for path, shape in model.core.parameters() if len(shape) == 2}
        stored = dict(model.core.matrix_bytes())
        layers: dict[str, int] = {}
        for path, shape in shapes.items():
            if layer := re.match(r"layers\.(\d+)\.", path):
                layers[layer[1]] = layers.get(layer[1], 0) + math.prod(shape)
        last = f"layers.{len(layers) - 1}.attn"
        head = "head.weight" if "head.weight" in shapes else "embed.weight"
        embedding = stored["embed.weight"] if head != "embed.weight" else 0
        return cls(
            layers=tuple(layers.values()),
            last_kv=sum(math.prod(shapes[f"{last}.{part}.weight"]) for part in "kv"),
            head=math.prod(shapes[head]),
            attention_width=shapes[f"{last}.q.weight"][0],
            weight_bytes=sum(stored.values()) - embedding,
            kv_bytes=model.core.kv_bytes_per_position(),
        )

    @property
    def precision(self) -> str:
        """What products multiply in, by the size of a weight: "float32", "bfloat16" or "int8"."""
        size = self.weight_bytes / (sum(self.layers) + self.head)
        return "float32" if size > 3 else "bfloat16" if size > 1.5 else "int8"

    def prefill_operations(self, tokens: int) -> int:
        """Of a prompt up to its next token: every token goes through every layer but the last, of which it
        needs keys and values; the last token through the rest of that layer and the head. A query meets the
        keys up to its own.
        """
        every = sum(self.layers[:-1]) + self.last_kv
        last = self.layers[-1] - self.last_kv + self.head
        pairs = (len(self.layers) - 1) * tokens * (tokens + 1) // 2 + tokens
        return 2 * tokens * every + 2 * last + 4 * pairs * self.attention_width

    def step_bytes(self, positions: int) -> int:
        """Of a step of any number of sequences: every weight once, and the keys and values of all their
        positions.

        Args:
            positions: How many are read, those that sequences share once.
        """
        return self.weight_bytes + positions * self.kv_bytes
