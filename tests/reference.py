"""The oracle: every kernel and block as a textbook writes it, in NumPy and float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmcore import blocks
from llmcore.models.base import View

Floats = NDArray[np.floating]


def double(x) -> NDArray[np.float64]:
    return np.asarray(x, np.float64)


# Elementary functions


def sigmoid(x: Floats) -> Floats:
    x = double(x)
    # e to a negative power only, so that nothing overflows.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def erf(x: Floats) -> Floats:
    return np.vectorize(math.erf, otypes=[np.float64])(double(x))


ACTIVATIONS = {
    "gelu": lambda x: double(x) / 2 * (1 + erf(double(x) / math.sqrt(2))),
    "gelu_new": lambda x: (
        double(x) / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (double(x) + 0.044715 * double(x) ** 3)))
    ),
    "quick_gelu": lambda x: double(x) * sigmoid(1.702 * double(x)),
    "silu": lambda x: double(x) * sigmoid(x),
    "relu": lambda x: np.maximum(double(x), 0),
    "tanh": lambda x: np.tanh(double(x)),
    "sigmoid": sigmoid,
}


def softmax(x: Floats, axis: int = -1) -> Floats:
    e = np.exp(double(x) - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=axis, keepdims=True)


def log_softmax(x: Floats, axis: int = -1) -> Floats:
    shifted = double(x) - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


# The loss

IGNORED = -100
"""The label of a row that does not count."""


def wanted(logits: Floats, labels: NDArray[np.integer], label_smoothing: float = 0.0):
    """The distribution that each row `[rows, vocab]` should have, and which rows count."""
    counted = labels != IGNORED
    one_hot = np.eye(logits.shape[-1])[np.where(counted, labels, 0)]
    return (1 - label_smoothing) * one_hot + label_smoothing / logits.shape[-1], counted


def cross_entropy(
    logits: Floats,
    labels: NDArray[np.integer],
    label_smoothing: float = 0.0,
    denominator: float | None = None,
) -> float:
    """Of the rows `[rows, vocab]` whose label counts: the sum divided by their number (0 if there are none),
    or by `denominator`.

    Label smoothing (Szegedy et al. 2016) shares so much of the wanted distribution out among all tokens.
    """
    target, counted = wanted(logits, labels, label_smoothing)
    losses = -(target * log_softmax(logits)).sum(axis=-1)[counted]
    return float(losses.sum() / (max(counted.sum(), 1) if denominator is None else denominator))


# Normalisation


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    x = double(x)
    variance = x.var(axis=-1, keepdims=True)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + eps) * weight + bias


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    x = double(x)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


# Attention


def rope(x: Floats, positions: NDArray[np.integer], theta: float = 10000.0) -> Floats:
    """`x` is `[..., time, dim]`: pairs (i, i + dim / 2) are complex numbers, turned by position · θᵢ."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[:, None] * theta ** (-np.arange(half) / half))
    turned = (double(x[..., :half]) + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attention_scores(
    q: Floats,
    k: Floats,
    causal: bool = False,
    mask=None,
    scale: float | None = None,
    window: int | None = None,
) -> Floats:
    """`q` is `[..., heads, time, d]`, `k` is `[..., kv_heads, keys, d]`; the queries come last."""
    group = q.shape[-3] // k.shape[-3]
    k = np.repeat(double(k), group, axis=-3)
    time, keys = q.shape[-2], k.shape[-2]
    scores = double(q) @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        mask = np.asarray(mask)
        scores = scores + (np.where(mask, 0, -np.inf) if mask.dtype == bool else mask)
    query, key = np.arange(keys - time, keys)[:, None], np.arange(keys)[None]
    if causal:
        scores = np.where(key <= query, scores, -np.inf)
    if window is not None:
        scores = np.where(key > query - window, scores, -np.inf)
    return scores


def attention_probs(*args, **kwargs) -> Floats:
    """Softmax of the scores; zeros for a query that sees no key."""
    scores = attention_scores(*args, **kwargs)
    unseen = np.all(scores == -np.inf, axis=-1, keepdims=True)
    return np.where(unseen, 0, softmax(np.where(unseen, 0, scores)))


def stored(x: Floats, kv_dtype: str) -> Floats:
    """Keys or values `[..., head_dim]` as a cache keeps them: each vector of its own."""
    x = np.asarray(x, np.float32)
    if kv_dtype == "bfloat16":
        bits = x.view(np.uint32).astype(np.uint64)
        upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return (upper << 16).astype(np.uint32).view(np.float32)
    if kv_dtype == "int8":
        largest = np.abs(x).max(axis=-1, keepdims=True, initial=0)
        factor = np.float32(127) / np.where(largest == 0, 1, largest)
        return np.rint(x * factor) * double(largest / np.float32(127))
    return x


def attention(q: Floats, k: Floats, v: Floats, **kwargs) -> Floats:
    group = q.shape[-3] // k.shape[-3]
    return attention_probs(q, k, **kwargs) @ np.repeat(double(v), group, axis=-3)


# Blocks: the description, the parameters by path, the names of the scope, and rows [time, width]


class Names:
    """The paths of a scope: a second block of a name gets `_2`."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.taken: dict[str, int] = {}

    def path(self, name: str) -> str:
        self.taken[name] = self.taken.get(name, 0) + 1
        part = name if self.taken[name] == 1 else f"{name}_{self.taken[name]}"
        return f"{self.prefix}.{part}" if self.prefix else part


def linear(params, path: str, x: Floats) -> Floats:
    y = x @ double(params[f"{path}.weight"]).T
    return y + params[f"{path}.bias"] if f"{path}.bias" in params else y


def run_block(block, params, names: Names, x: Floats) -> Floats:
    """One sequence, from its first position, through a block of `llmcore.blocks`."""
    match type(block).__name__:
        case "Serial":
            for inner in block.blocks:
                x = run_block(inner, params, names, x)
            return x
        case "Residual":
            return x + run_block(blocks.Serial(*block.blocks), params, names, x)
        case "Repeat":
            path = names.path(block.name or "layers")
            for i in range(block.count):
                x = run_block(block.block, params, Names(f"{path}.{i}"), x)
            return x
        case "LayerNorm":
            path = names.path(block.name or "norm")
            return layer_norm(x, params[f"{path}.weight"], params.get(f"{path}.bias", 0.0), block.eps)
        case "RmsNorm":
            return rms_norm(x, params[f"{names.path(block.name or 'norm')}.weight"], block.eps)
        case "Attention":
            return attention_block(block, params, names.path(block.name or "attn"), x)
        case "Mlp":
            path = names.path(block.name or "mlp")
            return linear(params, f"{path}.down", ACTIVATIONS[block.act](linear(params, f"{path}.up", x)))
        case "GatedMlp":
            path = names.path(block.name or "mlp")
            gate = ACTIVATIONS[block.act](linear(params, f"{path}.gate", x))
            return linear(params, f"{path}.down", gate * linear(params, f"{path}.up", x))
        case kind:
            raise ValueError(f"no oracle for {kind}")


def attention_block(block, params, path: str, x: Floats) -> Floats:
    kv_heads = block.kv_heads or block.heads
    head_dim = block.head_dim or x.shape[1] // block.heads

    def heads(part: str, count: int) -> Floats:
        return linear(params, f"{path}.{part}", x).reshape(len(x), count, head_dim).swapaxes(0, 1)

    q, k, v = heads("q", block.heads), heads("k", kv_heads), heads("v", kv_heads)
    if block.rope is not None:
        q, k = turn(q, block.rope), turn(k, block.rope)
    context = attention(q, k, v, causal=block.causal, scale=block.scale)
    return linear(params, f"{path}.o", context.swapaxes(0, 1).reshape(len(x), -1))


def turn(heads: Floats, rope: blocks.Rope) -> Floats:
    """Entries i and i + n of a head are a complex number, turned by position · frequency i."""
    n = len(rope.frequencies)
    angles = np.arange(heads.shape[1])[:, None] * np.array(rope.frequencies)
    turned = (heads[..., :n] + 1j * heads[..., n : 2 * n]) * np.exp(1j * angles) * rope.scale
    return np.concatenate([turned.real, turned.imag, heads[..., 2 * n :]], axis=-1)


def decoder(block: blocks.Decoder, params, ids) -> Floats:
    """The logits `[time, vocab_size]` after each of the tokens `ids`."""
    x = double(params["embed.weight"])[ids]
    if block.embed.positions is not None:
        x = x + params["embed.positions"][: len(ids)]
    names = Names()
    x = run_block(block.norm, params, names, run_block(block.layers, params, names, x))
    head = {"head.weight": params["embed.weight"], **params}
    return linear(head, "head", x)


def shapes(block: blocks.Decoder) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a decoder whose layers are two residuals, each a norm and a block."""
    width = block.embed.width
    found = {"embed.weight": (block.embed.vocab_size, width)}
    if block.embed.positions is not None:
        found["embed.positions"] = (block.embed.positions, width)

    def norm(path, spec):
        found[f"{path}.weight"] = (width,)
        if isinstance(spec, blocks.LayerNorm) and spec.bias:
            found[f"{path}.bias"] = (width,)

    def matrix(path, outputs, inputs, bias):
        found[f"{path}.weight"] = (outputs, inputs)
        if bias:
            found[f"{path}.bias"] = (outputs,)

    for i in range(block.layers.count):
        (first, attention), (second, mlp) = (residual.blocks for residual in block.layers.block.blocks)
        norm(f"layers.{i}.norm", first)
        norm(f"layers.{i}.norm_2", second)
        head_dim = attention.head_dim or width // attention.heads
        kv_heads = attention.kv_heads or attention.heads
        for part, heads in (("q", attention.heads), ("k", kv_heads), ("v", kv_heads)):
            matrix(f"layers.{i}.attn.{part}", heads * head_dim, width, attention.bias)
        out_bias = attention.bias if attention.out_bias is None else attention.out_bias
        matrix(f"layers.{i}.attn.o", width, attention.heads * head_dim, out_bias)
        for part in ("gate", "up") if isinstance(mlp, blocks.GatedMlp) else ("up",):
            matrix(f"layers.{i}.mlp.{part}", mlp.hidden, width, mlp.bias)
        matrix(f"layers.{i}.mlp.down", width, mlp.hidden, mlp.bias)
    norm("norm", block.norm)
    if isinstance(block.head, blocks.Linear):
        matrix("head", block.head.outputs, width, block.head.bias)
    return found


def into_parameters(
    views: Mapping[str, View], shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Parameters by path, out of the tensors of a checkpoint (or of gradients in its names)."""
    params = {}
    for path, view in views.items():
        tensor = tensors[view.tensor].T if view.transpose else tensors[view.tensor]
        params[path] = double(tensor[view.first : view.first + shapes[path][0]])
    return params
