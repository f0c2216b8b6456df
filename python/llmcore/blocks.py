"""The blocks that models are made of: frozen descriptions, which Rust compiles and runs.

A model is a composition of these. Nothing here computes; `describe` turns a composition into the plain
data that `llmcore._core` compiles into the blocks of `rust/blocks/`, one file a block.

Every block maps rows of a stream to rows: activations are `[rows, width]`, float32, and a batch is a list
of sequences laid one after the other. The path of a parameter or a site is made of the names on the way
to it: `layers.3.attn.q.weight`. A block is called after its kind (`attn`, `mlp`, `norm`) unless `name`
says otherwise; `Residual` and `Serial` add no name of their own; a second block of a name in the same
scope gets `_2`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Attention",
    "Block",
    "Decoder",
    "Embed",
    "GatedMlp",
    "LayerNorm",
    "Linear",
    "Mlp",
    "Repeat",
    "Residual",
    "RmsNorm",
    "Rope",
    "Serial",
    "Tied",
    "describe",
]


@dataclass(frozen=True)
class Block:
    """What every block has: an optional name in the paths of its parameters and sites."""

    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Embed(Block):
    """Rows of token embeddings, `weight [vocab_size, width]`.

    With `positions`, a learned embedding of the absolute position is added, `positions [positions, width]`
    (Radford et al. 2019), and no sequence may be longer.
    """

    vocab_size: int
    width: int
    positions: int | None = None


@dataclass(frozen=True)
class LayerNorm(Block):
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over each row (Ba et al. 2016)."""

    eps: float = 1e-5
    bias: bool = True


@dataclass(frozen=True)
class RmsNorm(Block):
    """`x / sqrt(mean(x²) + eps) * weight` over each row (Zhang and Sennrich 2019)."""

    eps: float = 1e-6


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021): entries `i`, `i + n` of a head turn by `position · frequencies[i]`.

    `n = len(frequencies)`; the first `2n` entries of a head turn and the rest stay. Turned entries are
    multiplied by `scale` (YaRN's attention factor). `llmcore.rope` computes frequencies.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Attention(Block):
    """`softmax(q kᵀ · scale) v` over the sequence, then a projection (Vaswani et al. 2017).

    Parameters: `q.weight [heads · head_dim, width]`, `k.weight` and `v.weight [kv_heads · head_dim, width]`,
    `o.weight [width, heads · head_dim]`, and a `.bias` beside each where `bias` (q, k, v) and `out_bias`
    (o, the same as `bias` unless given) say so. Each group of `heads / kv_heads` query heads shares a head
    of keys and values (Ainslie et al. 2023). `scale` defaults to `1 / sqrt(head_dim)`.
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool = True
    bias: bool = False
    out_bias: bool | None = None
    rope: Rope | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Mlp(Block):
    """`act(x upᵀ) downᵀ`: `up.weight [hidden, width]`, `down.weight [width, hidden]`, and biases.

    `act` is a `hidden_act` of Transformers: `gelu`, `gelu_new`, `silu`, `relu`, `quick_gelu`, …
    """

    hidden: int
    act: str = "gelu"
    bias: bool = True


@dataclass(frozen=True)
class GatedMlp(Block):
    """`(act(x gateᵀ) · (x upᵀ)) downᵀ` (Shazeer 2020): `gate.weight`, `up.weight`, `down.weight`."""

    hidden: int
    act: str = "silu"
    bias: bool = False


@dataclass(frozen=True)
class Linear(Block):
    """`x weightᵀ + bias`: `weight [outputs, width]`."""

    outputs: int
    bias: bool = False


@dataclass(frozen=True, init=False)
class Serial(Block):
    """One block after the other."""

    blocks: tuple[Block, ...]

    def __init__(self, *blocks: Block, name: str | None = None) -> None:
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "name", name)


@dataclass(frozen=True, init=False)
class Residual(Block):
    """`x + blocks(x)`."""

    blocks: tuple[Block, ...]

    def __init__(self, *blocks: Block, name: str | None = None) -> None:
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "name", name)


@dataclass(frozen=True)
class Repeat(Block):
    """`count` copies of a block, each with parameters of its own: `layers.0`, `layers.1`, …"""

    block: Block
    count: int


@dataclass(frozen=True)
class Tied:
    """A head that uses the matrix of the token embeddings: `logits = x embed.weightᵀ`."""


@dataclass(frozen=True)
class Decoder(Block):
    """Embeddings, layers, a last norm, and a head that turns rows into logits `[rows, vocab_size]`."""

    embed: Embed
    layers: Repeat
    norm: LayerNorm | RmsNorm
    head: Tied | Linear = Tied()


def describe(block: Any) -> Any:
    """The plain data (dicts, lists, numbers, strings) that `_core` compiles; under `"kind"` what it is."""
    if isinstance(block, tuple):
        return [describe(item) for item in block]
    if not dataclasses.is_dataclass(block):
        return block
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(block).__name__).lower()
    described = {f.name: describe(getattr(block, f.name)) for f in dataclasses.fields(block)}
    if isinstance(block, (Block, Tied)):
        described["kind"] = kind
    return described
