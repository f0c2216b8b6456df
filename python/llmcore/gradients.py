"""The gradients of the functions of `llmcore.ops`, by the kernels that models train with.

Each takes the arguments of its forward function and the gradient at its result, and returns those at its
arguments. What `llmcore.ops` says of arrays, errors and equal bits holds here too.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcore import _core
from llmcore.ops import Array, _Attention, _floats, _is_bfloat16, _rows, _turn, _weight

__all__ = [
    "IGNORED",
    "activation",
    "attention",
    "cross_entropy",
    "embedding",
    "gated",
    "layer_norm",
    "matmul",
    "rms_norm",
    "rope",
]

IGNORED = -100
"""The label of a row that counts nothing."""


def matmul(a: ArrayLike, b: ArrayLike, dout: ArrayLike, *, precision: str = "float32") -> tuple[Array, Array]:
    """dout · bᵀ and aᵀ · dout, the gradients of a · b.

    `a` is `[m, k]`, `b` is `[k, n]`, `dout` is `[m, n]`; the results are as `a` and `b`.
    """
    a, b, dout = _matrix("a", a), _matrix("b", b), _matrix("dout", dout)
    bfloat16 = _is_bfloat16(precision)
    _like("b", b, (a.shape[1], b.shape[1]))
    _like("dout", dout, (a.shape[0], b.shape[1]))
    da, db = np.empty_like(a), np.empty_like(b)
    _core.matmul(dout, False, b, True, da, False, bfloat16)
    _core.matmul(a, True, dout, False, db, False, bfloat16)
    return da, db


def cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, label_smoothing: float = 0.0, denominator: float | None = None
) -> tuple[float, Array]:
    """The mean over rows of −Σ t ln softmax(logits), and its gradient (softmax(logits) − t) / rows.

    `logits` is `[rows, classes]`, `labels` is `[rows]`; t is 1 at the label and 0 elsewhere, or, smoothed
    by ε, (1 − ε) of that plus ε / classes (Szegedy et al. 2016). A row labelled −100 counts nothing. The mean
    is over the rows that count, or their sum is divided by `denominator`.
    """
    logits = _matrix("logits", logits).copy()
    rows, classes = logits.shape
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: found {label_smoothing}, expected 0 to 1")
    where = _integers("labels", labels, rows)
    if (bad := where[((where < 0) | (where >= classes)) & (where != IGNORED)]).size:
        raise ValueError(f"labels: found {bad[0]}, expected {IGNORED}, or 0 to {classes - 1}")
    counted = np.count_nonzero(where != IGNORED) if denominator is None else denominator
    scale = 1 / counted if counted else 0.0
    losses = np.empty(rows, np.float32)
    _core.cross_entropy(logits, where.astype(np.int32), label_smoothing, scale, losses)
    return float(losses.sum(dtype=np.float64) * scale), logits


def layer_norm(
    x: ArrayLike, weight: ArrayLike | None, dy: ArrayLike, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """The gradients at x, weight and bias. `x` and `dy` are `[..., width]`."""
    rows, restore = _rows(_floats("x", x, least=1), -1)
    dy = _same("dy", dy, np.shape(x)).reshape(rows.shape)
    width = rows.shape[1]
    dx, dweight, dbias = np.empty_like(rows), np.zeros(width, np.float32), np.zeros(width, np.float32)
    _core.layer_norm_backward(rows, _weight(weight, width), eps, dy, dx, dweight, dbias)
    return restore(dx), dweight, dbias


def rms_norm(x: ArrayLike, weight: ArrayLike | None, dy: ArrayLike, eps: float = 1e-6) -> tuple[Array, Array]:
    """The gradients at x and weight. `x` and `dy` are `[..., width]`."""
    rows, restore = _rows(_floats("x", x, least=1), -1)
    dy = _same("dy", dy, np.shape(x)).reshape(rows.shape)
    width = rows.shape[1]
    dx, dweight = np.empty_like(rows), np.zeros(width, np.float32)
    _core.rms_norm_backward(rows, _weight(weight, width), eps, dy, dx, dweight)
    return restore(dx), dweight


def activation(name: str, x: ArrayLike, dy: ArrayLike) -> Array:
    """dy · act'(x). `name` is one of `hidden_act` in Transformers; `x` and `dy` are of one shape."""
    x = _floats("x", x, least=0)
    dx = _same("dy", dy, x.shape).reshape(-1).copy()
    _core.activate_backward(name, x.reshape(-1), dx)
    return dx.reshape(x.shape)


def gated(name: str, gate: ArrayLike, up: ArrayLike, dout: ArrayLike) -> tuple[Array, Array]:
    """The gradients of act(gate) · up at gate and up, all `[..., width]`."""
    gate = _floats("gate", gate, least=1)
    up, dout = _same("up", up, gate.shape), _same("dout", dout, gate.shape)
    width = gate.shape[-1]
    rows = math.prod(gate.shape[:-1])
    gate_up = np.concatenate([gate, up], axis=-1).reshape(rows, 2 * width)
    dgate_up = np.empty_like(gate_up)
    _core.gate_backward(name, gate_up, dout.reshape(rows, width), dgate_up)
    dgate, dup = dgate_up[:, :width], dgate_up[:, width:]
    return dgate.reshape(gate.shape).copy(), dup.reshape(gate.shape).copy()


def rope(dy: ArrayLike, positions: ArrayLike | None = None, theta: float = 10000.0) -> Array:
    """The gradient at the input of `llmcore.ops.rope`: `dy` turned back by the same angles."""
    return _turn(_core.rope_backward, "dy", dy, positions, theta)


def embedding(indices: ArrayLike, dy: ArrayLike, rows: int) -> Array:
    """The gradient of looking `indices` `[n]` up in a table `[rows, width]`; `dy` is `[n, width]`."""
    dy = _matrix("dy", dy)
    where = _integers("indices", indices, len(dy))
    if (bad := where[(where < 0) | (where >= rows)]).size:
        raise ValueError(f"indices: found {bad[0]}, expected 0 to {rows - 1}")
    table = np.zeros((rows, dy.shape[1]), np.float32)
    _core.add_to_rows(dy, where.astype(np.uint32), table)
    return table


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    dout: ArrayLike,
    causal: bool = False,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of `llmcore.ops.attention` at q, k and v.

    `q` and `dout` are `[..., time, d]`, `k` and `v` are `[..., keys, d]`. The probabilities are computed
    again by tiles of 64 queries and 64 keys, from the saved logarithms of their sums (Dao et al. 2022).
    """
    call = _Attention(q, k, causal, None, scale, window)
    values = call.keys_or_values("v", v)
    if values.shape != call.k.shape:
        raise ValueError(
            f"v: found a last axis of {values.shape[-1]}, expected {call.k.shape[-1]}, that of k"
        )
    batch, time, heads, d = call.q.shape
    keys, kv_heads = call.k.shape[1:3]
    queries = call.q.reshape(batch * time, heads, d)
    slopes = call.laid_out(_same("dout", dout, call.shape), heads).reshape(queries.shape)
    k_rows, v_rows = (x.reshape(batch * keys, kv_heads, d) for x in (call.k, values))
    spans = [(i * time, (i + 1) * time, i * keys, (i + 1) * keys) for i in range(batch)]
    inputs = (queries, k_rows, v_rows, spans, call.scale, causal, window)
    out, log_sums = np.empty_like(queries), np.empty(queries.shape[:2], np.float32)
    _core.attention_rows(*inputs, out, log_sums)
    dq, dk, dv = (np.empty_like(x) for x in inputs[:3])
    _core.attention_backward(*inputs, out, log_sums, slopes, dq, dk, dv)
    dk, dv = (np.ascontiguousarray(x.reshape(call.k.shape).swapaxes(1, 2)) for x in (dk, dv))
    return call.restore(dq.reshape(call.q.shape)), dk.reshape(np.shape(k)), dv.reshape(np.shape(v))


def _matrix(name: str, x: ArrayLike) -> Array:
    matrix = _floats(name, x, least=2)
    if matrix.ndim != 2:
        raise ValueError(f"{name}: found shape {matrix.shape}, expected two axes")
    return matrix


def _like(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name}: found shape {x.shape}, expected {shape}")


def _same(name: str, x: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = _floats(name, x, least=0)
    _like(name, array, shape)
    return array


def _integers(name: str, x: ArrayLike, count: int) -> NDArray[np.int64]:
    array = np.asarray(x)
    if array.shape != (count,) or not (array.size == 0 or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name}: found {array.dtype} {array.shape}, expected {count} integers")
    return array.astype(np.int64)
