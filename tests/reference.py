"""The oracle: every kernel and block as a textbook writes it, in NumPy and float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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


def attention(q: Floats, k: Floats, v: Floats, **kwargs) -> Floats:
    group = q.shape[-3] // k.shape[-3]
    return attention_probs(q, k, **kwargs) @ np.repeat(double(v), group, axis=-3)
