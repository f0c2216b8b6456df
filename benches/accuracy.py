"""What rounding costs a quantised model: how far its predictions are from those of the same weights in
float32.

    python benches/accuracy.py

Prints the mean Kullback-Leibler divergence of the next token's distribution (nats) and how often the
likeliest token is the same, over 512 tokens of text: of the model as `llmcore.load` runs it, and, by a model
in NumPy over the same weights, of rounding alone what goes into each kind of product, or keys and values. A
rounded row is 32 numbers at a time to bytes ("8 bits"), or to two bytes each, a coarse one and one for the
rest ("16 bits").
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import machine
import numpy as np
from numpy.typing import NDArray

import llmcore
from llmcore import hub, ops
from llmcore.arrays import bfloat16_bits
from llmcore.models.base import View
from llmcore.models.views import rearranged

Array = NDArray[np.float32]
Rounding = Callable[[Array], Array]
PRODUCTS = ("qkv", "o", "gate_up", "down", "head")
TEXT = Path(__file__).parent.parent / "tests" / "data" / "smollm2.json"


def eight_bits(x: Array) -> Array:
    """Rows as `rust/kernels/quantized` rounds them."""
    groups = x.reshape(-1, 32)
    most = np.abs(groups).max(-1, keepdims=True)
    scale = np.where(most > 1e-30, most / np.float32(127), np.float32(1))
    return (np.rint(groups / scale) * scale).reshape(x.shape).astype(np.float32)


def sixteen_bits(x: Array) -> Array:
    """Rows as two bytes a number: what the first leaves is rounded like a row of its own."""
    coarse = eight_bits(x)
    return coarse + eight_bits(x - coarse)


def bfloat16(x: Array) -> Array:
    return (bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32)


def heads_to_bytes(x: Array) -> Array:
    """A scale for each head of each position."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    return (np.rint(x / np.where(scale > 0, scale, 1)) * scale).astype(np.float32)


class Llama:
    """A model of the architecture llama in NumPy, whose weights are what the file stands for."""

    def __init__(self, model: llmcore.Model) -> None:
        shapes = {path: tuple(shape) for path, shape in model.core.parameters()}
        checkpoint = model.checkpoint
        plain = {path: View(path) for path in shapes}
        lazy = rearranged(checkpoint.source, checkpoint.views, plain, shapes, lambda name, shape: "F32")
        self.weights = {path: array.read() for path, array in lazy.items()}
        self.config = model.config

    def logits(self, ids: list[int], rounding: Mapping[str, Rounding]) -> Array:
        """Logits; `rounding` is that of the rows of a kind of product; "kv": keys and values."""
        c, w = self.config, self.weights

        def rounded(kind: str, x: Array) -> Array:
            return rounding.get(kind, lambda x: x)(x)

        def product(x: Array, path: str) -> Array:
            return ops.matmul(x, w[f"{path}.weight"].T)

        def heads(x: Array, count: int) -> Array:
            return np.ascontiguousarray(x.reshape(len(ids), count, -1).swapaxes(0, 1))

        x = w["embed.weight"][ids]
        for i in range(c.num_hidden_layers):
            at = f"layers.{i}"
            row = rounded("qkv", ops.rms_norm(x, w[f"{at}.norm.weight"], c.rms_norm_eps))
            q, k, v = (product(row, f"{at}.attn.{part}") for part in "qkv")
            q = ops.rope(heads(q, c.num_attention_heads), theta=c.rope_theta)
            k = ops.rope(heads(k, c.kv_heads), theta=c.rope_theta)
            k, v = rounded("kv", k), rounded("kv", heads(v, c.kv_heads))
            seen = ops.attention(q, k, v, causal=True).swapaxes(0, 1).reshape(len(ids), -1)
            x = x + product(rounded("o", seen), f"{at}.attn.o")
            row = rounded("gate_up", ops.rms_norm(x, w[f"{at}.norm_2.weight"], c.rms_norm_eps))
            inner = ops.gated("silu", product(row, f"{at}.mlp.gate"), product(row, f"{at}.mlp.up"))
            x = x + product(rounded("down", inner), f"{at}.mlp.down")
        row = rounded("head", ops.rms_norm(x, w["norm.weight"], c.rms_norm_eps))
        return product(row, "embed" if c.tie_word_embeddings else "head")


def compare(exact: Array, found: Array) -> tuple[float, float]:
    """The mean divergence in nats, and the share of positions with the same likeliest token."""
    p, q = (ops.log_softmax(logits).astype(np.float64) for logits in (exact, found))
    return float((np.exp(p) * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="of the architecture llama")
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    path = hub.resolve(args.model)
    ids = json.loads(TEXT.read_text())["text"]["ids"][: args.tokens]
    model = llmcore.load(path, dtype="float32")
    exact = model.logits(ids)
    reference = Llama(model)

    def show(name: str, found: Array) -> None:
        divergence, same = compare(exact, found)
        print(f"| {name} | {divergence:.5f} | {same:.1%} |", flush=True)

    print(f"{machine.describe()}; {len(ids)} tokens\n\n| rounded | divergence | same token |\n|---|---|---|")
    show("the model as loaded", llmcore.load(path).logits(ids))
    show("nothing, in NumPy", reference.logits(ids, {}))
    everywhere = dict.fromkeys(PRODUCTS, eight_bits)
    cases: dict[str, Mapping[str, Rounding]] = {
        "all rows, 8 bits": everywhere,
        **{f"rows of {kind} alone, 8 bits": {kind: eight_bits} for kind in PRODUCTS},
        **{f"all rows, but {kind} with 16 bits": everywhere | {kind: sixteen_bits} for kind in PRODUCTS},
        "all rows, but down and head with 16 bits": everywhere
        | dict.fromkeys(("down", "head"), sixteen_bits),
        "all rows, 16 bits": dict.fromkeys(PRODUCTS, sixteen_bits),
        "keys and values alone, bfloat16": {"kv": bfloat16},
        "keys and values alone, bytes": {"kv": heads_to_bytes},
        "all rows, 8 bits; keys and values, bfloat16": everywhere | {"kv": bfloat16},
    }
    for name, rounding in cases.items():
        show(name, reference.logits(ids, rounding))


if __name__ == "__main__":
    main()
