"""The functions of a textbook on NumPy arrays, by the kernels that models run on.

Arrays of numbers of any kind are taken and computed on in float32; results are new float32 arrays.
A shape that does not fit is a `ValueError` that names the argument, an array of something else than
real numbers a `TypeError`. Results are the same bits for any number of threads and any instruction set.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcore import _core

__all__ = [
    "attention",
    "attention_probs",
    "attention_scores",
    "gated",
    "gelu",
    "layer_norm",
    "log_softmax",
    "matmul",
    "relu",
    "rms_norm",
    "rope",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]

Array = NDArray[np.float32]


def matmul(a: ArrayLike, b: ArrayLike, *, precision: str = "float32") -> Array:
    """The matrix product a · b.

    `a` is `[..., m, k]`, `b` is `[..., k, n]`; leading axes broadcast as in `numpy.matmul`. Each element
    is one chain of fused multiply-adds in the order of k. With `precision="bfloat16"` both factors are
    rounded to that first, and pairs of products are added, the second of a pair before the first.
    """
    a, b = _floats("a", a, least=2), _floats("b", b, least=2)
    bfloat16 = _is_bfloat16(precision)
    (m, k), (k_of_b, n) = a.shape[-2:], b.shape[-2:]
    if k != k_of_b:
        raise ValueError(f"b: found shape {b.shape}, expected [..., {k}, n] to fit a of shape {a.shape}")

    def multiply(a: Array, b: Array, out: Array) -> None:
        _core.matmul(a, False, b, False, out, False, bfloat16)

    if b.ndim == 2:
        rows = math.prod(a.shape[:-1])
        out = np.empty((*a.shape[:-1], n), np.float32)
        multiply(a.reshape(rows, k), b, out.reshape(rows, n))
        return out
    leading = _broadcast("b", a.shape[:-2], b.shape[:-2])
    out = np.empty((*leading, m, n), np.float32)
    a, b = np.broadcast_to(a, (*leading, m, k)), np.broadcast_to(b, (*leading, k, n))
    for i in np.ndindex(leading):
        multiply(np.ascontiguousarray(a[i]), np.ascontiguousarray(b[i]), out[i])
    return out


def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """eˣ / Σ eˣ along `axis`, with the maximum taken out first."""
    rows, restore = _rows(_floats("x", x, least=1), axis)
    out = rows.copy()
    _core.softmax(out)
    return restore(out)


def log_softmax(x: ArrayLike, axis: int = -1) -> Array:
    """x − ln Σ eˣ along `axis`."""
    rows, restore = _rows(_floats("x", x, least=1), axis)
    out = np.empty_like(rows)
    _core.log_softmax(rows, out)
    return restore(out)


def layer_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, eps: float = 1e-5
) -> Array:
    """(x − mean) / √(variance + eps) · weight + bias over the last axis, with the biased variance.

    `x` is `[..., width]`, `weight` and `bias` are `[width]` (default: ones, and none). Ba et al. 2016.
    """
    rows, restore = _rows(_floats("x", x, least=1), -1)
    width = rows.shape[1]
    out = np.empty_like(rows)
    offset = None if bias is None else _vector("bias", bias, width)
    _core.layer_norm(rows, _weight(weight, width), offset, eps, out)
    return restore(out)


def rms_norm(x: ArrayLike, weight: ArrayLike | None = None, eps: float = 1e-6) -> Array:
    """x / √(mean of x² + eps) · weight over the last axis.

    `x` is `[..., width]`, `weight` is `[width]` (default: ones). Zhang & Sennrich 2019.
    """
    rows, restore = _rows(_floats("x", x, least=1), -1)
    out = np.empty_like(rows)
    _core.rms_norm(rows, _weight(weight, rows.shape[1]), eps, out)
    return restore(out)


def gelu(x: ArrayLike, approximate: str = "none") -> Array:
    """x Φ(x), Φ the distribution function of the standard normal. Hendrycks & Gimpel 2016.

    `approximate="tanh"` takes Φ(x) ≈ (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, as GPT-2 does.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate: found {approximate!r}, expected 'none' or 'tanh'")
    return _activate("gelu" if approximate == "none" else "gelu_tanh", x)


def silu(x: ArrayLike) -> Array:
    """x σ(x) = x / (1 + e⁻ˣ)."""
    return _activate("silu", x)


def relu(x: ArrayLike) -> Array:
    """max(x, 0)."""
    return _activate("relu", x)


def sigmoid(x: ArrayLike) -> Array:
    """σ(x) = 1 / (1 + e⁻ˣ)."""
    return _activate("sigmoid", x)


def tanh(x: ArrayLike) -> Array:
    """The hyperbolic tangent."""
    return _activate("tanh", x)


def gated(activation: str, gate: ArrayLike, up: ArrayLike) -> Array:
    """act(gate) · up, the gated units of SwiGLU and its kin. Shazeer 2020.

    `activation` is a name of `hidden_act` in Transformers ("silu", "gelu", "gelu_pytorch_tanh", …); `gate`
    and `up` are `[..., width]`.
    """
    gate, up = _floats("gate", gate, least=1), _floats("up", up, least=1)
    if gate.shape != up.shape:
        raise ValueError(f"up: found shape {up.shape}, expected {gate.shape}, the shape of gate")
    rows, restore = _rows(np.concatenate([gate, up], axis=-1), -1)
    out = np.empty((rows.shape[0], gate.shape[-1]), np.float32)
    _core.gate(activation, rows, out)
    return restore(out)


def rope(x: ArrayLike, positions: ArrayLike | None = None, theta: float = 10000.0) -> Array:
    """Rotary position embedding by halves. Su et al. 2021.

    `x` is `[..., time, dim]` with an even dim, `positions` is `[time]` (default: 0, 1, …). With
    i < dim / 2, j = i + dim / 2 and the angle a = position · theta^(−2 i / dim):
    x[i], x[j] → x[i] cos a − x[j] sin a, x[j] cos a + x[i] sin a.
    """
    return _turn(_core.rope, "x", x, positions, theta)


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    causal: bool = False,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    kv_dtype: str = "float32",
) -> Array:
    """Scaled dot-product attention, softmax(q kᵀ / √d + mask) v. Vaswani et al. 2017.

    `q` is `[..., time, d]`, `k` is `[..., keys, d]`, `v` is `[..., keys, dim]`, with equal leading axes; the
    result is `[..., time, dim]`. The last of the leading axes are heads: `k` and `v` may have fewer of them,
    by a whole factor, and then query head h uses key head h // factor (grouped queries, Ainslie et al. 2023).

    - `causal`: the queries are the last `time` of the `keys` positions, and none sees a later one.
    - `mask`: broadcasts to `[..., time, keys]`; booleans say which keys are seen, numbers are added.
    - `scale`: instead of 1 / √d.
    - `window`: a query sees its own position and the `window` − 1 before it, and none earlier.
    - `kv_dtype`: what `k` and `v` are rounded to, as a model keeps them (`llmcore.load`): "float32",
      "bfloat16", or "int8", whole numbers within ±127 with a scale for each vector. What follows is float32.

    A query that sees no key gets zeros.
    """
    call = _Attention(q, k, causal, mask, scale, window, kv_dtype)
    v = call.keys_or_values("v", v)
    dim, width = v.shape[-1], call.q.shape[-1]
    # The kernel has one width for both: zeros change neither product.
    wide = max(dim, width)
    q, k, v = (_widen(x, wide) for x in (call.q, call.k, v))
    out = np.empty_like(q)
    _core.attention(q, k, v, call.bias, call.scale, causal, window, kv_dtype, out)
    return call.restore(out[..., :dim])


def attention_scores(
    q: ArrayLike,
    k: ArrayLike,
    causal: bool = False,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    kv_dtype: str = "float32",
) -> Array:
    """What `attention` takes the softmax of: q kᵀ / √d + mask, `[..., time, keys]`; −∞ where unseen."""
    return _Attention(q, k, causal, mask, scale, window, kv_dtype).weights()[0]


def attention_probs(
    q: ArrayLike,
    k: ArrayLike,
    causal: bool = False,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    kv_dtype: str = "float32",
) -> Array:
    """The weights that `attention` gives to the values: softmax of `attention_scores`."""
    return _Attention(q, k, causal, mask, scale, window, kv_dtype).weights()[1]


class _Attention:
    """The checked arguments of an attention call, as the kernel takes them: `[batch, time, heads, d]`."""

    def __init__(
        self,
        q: ArrayLike,
        k: ArrayLike,
        causal: bool,
        mask: ArrayLike | None,
        scale: float | None,
        window: int | None,
        kv_dtype: str = "float32",
    ) -> None:
        q = _floats("q", q, least=2)
        self.shape = q.shape
        time, d = q.shape[-2:]
        self.heads = q.shape[-3] if q.ndim > 2 else 1
        self.batch = math.prod(q.shape[:-3])
        self.kv_heads: int | None = None
        self.causal, self.window, self.kv_dtype = causal, window, kv_dtype
        self.q = self.laid_out(q, self.heads)
        k = _floats("k", k, least=2)
        if k.shape[-1] != d:
            raise ValueError(
                f"k: found shape {k.shape}, expected [..., keys, {d}] to fit q of shape {q.shape}"
            )
        self.keys = k.shape[-2]
        self.k = self.keys_or_values("k", k)
        if d == 0:
            raise ValueError(f"q: found shape {q.shape}, expected a last axis of at least 1")
        if causal and time > self.keys:
            raise ValueError(f"q: found {time} queries, expected at most {self.keys}, the keys, when causal")
        if window is not None and window < 1:
            raise ValueError(f"window: found {window}, expected at least 1")
        self.scale = 1 / math.sqrt(d) if scale is None else scale
        self.bias = None if mask is None else self._bias(mask, (*q.shape[:-1], self.keys))

    def keys_or_values(self, name: str, x: ArrayLike) -> Array:
        x = _floats(name, x, least=2)
        heads = x.shape[-3] if x.ndim > 2 else 1
        fits = (
            x.ndim == len(self.shape)
            and x.shape[:-3] == self.shape[:-3]
            and x.shape[-2] == self.keys
            and (heads == self.kv_heads if self.kv_heads is not None else self.heads % max(heads, 1) == 0)
            and (heads > 0 or self.heads == 0)
        )
        if not fits:
            leading = [*self.shape[:-3], *([f"heads of {self.heads}"] if len(self.shape) > 2 else [])]
            expected = ", ".join(map(str, [*leading, self.keys, "d"]))
            raise ValueError(
                f"{name}: found shape {x.shape}, expected [{expected}] to fit q of shape {self.shape}"
            )
        self.kv_heads = heads
        return self.laid_out(x, heads)

    def weights(self) -> tuple[Array, Array]:
        shape = (self.batch, self.heads, self.shape[-2], self.keys)
        scores, probs = np.empty(shape, np.float32), np.empty(shape, np.float32)
        if scores.size:
            masks = (self.bias, self.scale, self.causal, self.window)
            _core.attention_weights(self.q, self.k, *masks, self.kv_dtype, scores, probs)
        final = (*self.shape[:-1], self.keys)
        return scores.reshape(final), probs.reshape(final)

    def restore(self, out: Array) -> Array:
        out = np.ascontiguousarray(out.swapaxes(1, 2))
        return out.reshape(*self.shape[:-1], out.shape[-1])

    def laid_out(self, x: Array, heads: int) -> Array:
        return np.ascontiguousarray(x.reshape(self.batch, heads, *x.shape[-2:]).swapaxes(1, 2))

    def _bias(self, mask: ArrayLike, shape: tuple[int, ...]) -> Array:
        values = np.asarray(mask)
        if values.dtype == np.bool_:
            values = np.where(values, np.float32(0), np.float32(-np.inf))
        values = _floats("mask", values, least=0)
        try:
            values = np.broadcast_to(values, shape)
        except ValueError:
            raise ValueError(
                f"mask: found shape {values.shape}, expected one that broadcasts to {shape}"
            ) from None
        return np.ascontiguousarray(values).reshape(self.batch, self.heads, *shape[-2:])


def _floats(name: str, x: ArrayLike, least: int) -> Array:
    """`x` as a contiguous float32 array of at least `least` axes."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: found an array of {array.dtype}, expected real numbers")
    if array.ndim < least:
        raise ValueError(f"{name}: found shape {array.shape}, expected at least {least} axes")
    return np.ascontiguousarray(array, np.float32).reshape(array.shape)


def _is_bfloat16(precision: str) -> bool:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision: found {precision!r}, expected 'float32' or 'bfloat16'")
    return precision == "bfloat16"


def _vector(name: str, x: ArrayLike, width: int) -> Array:
    vector = _floats(name, x, least=1)
    if vector.shape != (width,):
        raise ValueError(f"{name}: found shape {vector.shape}, expected ({width},), the last axis of x")
    return vector


def _weight(weight: ArrayLike | None, width: int) -> Array:
    return np.ones(width, np.float32) if weight is None else _vector("weight", weight, width)


def _rows(x: Array, axis: int) -> tuple[Array, Callable[[Array], Array]]:
    """`x` as `[rows, width]` with `axis` last, and the way back."""
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: found {axis}, expected one of the {x.ndim} axes of x")
    moved = np.moveaxis(x, axis, -1)
    leading = moved.shape[:-1]

    def restore(rows: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(rows.reshape(*leading, rows.shape[1]), -1, axis))

    return np.ascontiguousarray(moved).reshape(math.prod(leading), moved.shape[-1]), restore


def _activate(name: str, x: ArrayLike) -> Array:
    x = _floats("x", x, least=0)
    out = x.reshape(-1).copy()
    _core.activate(name, out)
    return out.reshape(x.shape)


def _turn(
    kernel: Callable[[Array, Array, Array, NDArray[np.uint32]], None],
    name: str,
    x: ArrayLike,
    positions: ArrayLike | None,
    theta: float,
) -> Array:
    """`kernel` (rope, or back) on a copy of `x`, with the angles of `positions`."""
    x = _floats(name, x, least=2)
    *leading, time, dim = x.shape
    if dim % 2:
        raise ValueError(f"{name}: found {dim} as its last axis, expected an even number")
    where = np.arange(time) if positions is None else np.asarray(positions)
    if where.shape != (time,) or not (where.size == 0 or np.issubdtype(where.dtype, np.integer)):
        raise ValueError(f"positions: found {where.dtype} {where.shape}, expected {time} integers")
    angles = where[:, None] * theta ** (-np.arange(0, dim, 2) / max(dim, 1))
    out = np.moveaxis(x.reshape(math.prod(leading), time, dim), 0, 1).copy(order="C")
    kernel(
        out,
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
        np.arange(time, dtype=np.uint32),
    )
    return np.ascontiguousarray(np.moveaxis(out, 1, 0)).reshape(x.shape)


def _widen(x: Array, width: int) -> Array:
    """Zeros appended to the last axis."""
    if x.shape[-1] == width:
        return x
    out = np.zeros((*x.shape[:-1], width), np.float32)
    out[..., : x.shape[-1]] = x
    return out


def _broadcast(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ValueError(f"{name}: found leading axes {b}, expected axes that broadcast with {a}") from None
