"""The oracle of training: the gradient of every function of `reference`, and the steps of an optimiser.

A gradient `dx` has the shape of its `x`. A function `f_backward` takes `dy`, the gradient of what `f`
returns, then what `f` takes, and returns the gradients of its arrays in their order. A function `f_vjp` runs
`f` and returns its value and a function from `dy` to `dx`, which adds to the gradients of the parameters in
`grads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

import reference
from llmcore import blocks
from reference import Floats, Names, double, sigmoid

Vjp = Callable[[Floats], Floats]
Grads = dict[str, Floats]

# Elementary functions


def linear_backward(dy: Floats, x: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """y = x Wᵀ + b, `x` is `[rows, inputs]`, `weight` is `[outputs, inputs]`: dx, dW, db."""
    return double(dy) @ weight, double(dy).T @ x, double(dy).sum(axis=0)


def embedding_backward(dy: Floats, ids: NDArray[np.integer], count: int) -> Floats:
    """y = W[ids]: dW, of `count` rows; an id that occurs again adds to its row again."""
    dweight = np.zeros((count, dy.shape[-1]))
    np.add.at(dweight, ids, double(dy))
    return dweight


def gelu_derivative(x: Floats) -> Floats:
    x = double(x)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return (1 + reference.erf(x / math.sqrt(2))) / 2 + x * density


def gelu_new_derivative(x: Floats) -> Floats:
    x = double(x)
    scale = math.sqrt(2 / math.pi)
    tanh = np.tanh(scale * (x + 0.044715 * x**3))
    return (1 + tanh) / 2 + x / 2 * (1 - tanh**2) * scale * (1 + 3 * 0.044715 * x**2)


def swish_derivative(x: Floats, slope: float) -> Floats:
    """Of x · σ(slope · x)."""
    x = double(x)
    s = sigmoid(slope * x)
    return s + slope * x * s * (1 - s)


DERIVATIVES = {
    "gelu": gelu_derivative,
    "gelu_new": gelu_new_derivative,
    "quick_gelu": lambda x: swish_derivative(x, 1.702),
    "silu": lambda x: swish_derivative(x, 1.0),
    "relu": lambda x: (double(x) > 0).astype(np.float64),
    "tanh": lambda x: 1 - np.tanh(double(x)) ** 2,
    "sigmoid": lambda x: sigmoid(x) * (1 - sigmoid(x)),
}
"""Of `reference.ACTIVATIONS`: dx = dy · f′(x)."""


def activation_backward(dy: Floats, x: Floats, act: str) -> Floats:
    return double(dy) * DERIVATIVES[act](x)


def gated_backward(dy: Floats, gate: Floats, up: Floats, act: str) -> tuple[Floats, Floats]:
    """y = f(gate) · up: dgate, dup."""
    return activation_backward(dy * double(up), gate, act), double(dy) * reference.ACTIVATIONS[act](gate)


def softmax_backward(dy: Floats, y: Floats, axis: int = -1) -> Floats:
    """From the softmax itself, `y`, instead of what it was taken of."""
    dy, y = double(dy), double(y)
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))


def log_softmax_backward(dy: Floats, y: Floats, axis: int = -1) -> Floats:
    """From the logarithm of the softmax, `y`."""
    return double(dy) - np.exp(double(y)) * double(dy).sum(axis=axis, keepdims=True)


# Normalisation


def layer_norm_backward(
    dy: Floats, x: Floats, weight: Floats, bias: Floats, eps: float
) -> tuple[Floats, Floats, Floats]:
    """`x` is `[rows, width]`: dx, dweight, dbias."""
    x, dy = double(x), double(dy)
    scale = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    normal = (x - x.mean(axis=-1, keepdims=True)) * scale
    dnormal = dy * weight
    # What would shift or stretch the row is normalised away.
    shift = dnormal.mean(axis=-1, keepdims=True)
    stretch = normal * (dnormal * normal).mean(axis=-1, keepdims=True)
    return scale * (dnormal - shift - stretch), (dy * normal).sum(axis=0), dy.sum(axis=0)


def rms_norm_backward(dy: Floats, x: Floats, weight: Floats, eps: float) -> tuple[Floats, Floats]:
    """`x` is `[rows, width]`: dx, dweight."""
    x, dy = double(x), double(dy)
    scale = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    normal = x * scale
    dnormal = dy * weight
    dx = scale * (dnormal - normal * (dnormal * normal).mean(axis=-1, keepdims=True))
    return dx, (dy * normal).sum(axis=0)


# Attention


def rope_backward(dy: Floats, positions: NDArray[np.integer], theta: float = 10000.0) -> Floats:
    """A rotation's transpose turns back."""
    return reference.rope(dy, -positions, theta)


def turn_backward(dy: Floats, rope: blocks.Rope) -> Floats:
    """Each pair turns back, and is scaled as it was; what is not turned passes through."""
    back = blocks.Rope(tuple(-frequency for frequency in rope.frequencies), rope.scale)
    return reference.turn(dy, back)


def attention_backward(
    dy: Floats, q: Floats, k: Floats, v: Floats, scale: float | None = None, **kwargs
) -> tuple[Floats, Floats, Floats]:
    """dq, dk, dv; the heads of a group add to the gradients of the key and value that they share."""
    kv_heads, group = k.shape[-3], q.shape[-3] // k.shape[-3]

    def each_head(x: Floats) -> Floats:
        return np.repeat(double(x), group, axis=-3)

    def of_group(dx: Floats) -> Floats:
        return dx.reshape(*dx.shape[:-3], kv_heads, group, *dx.shape[-2:]).sum(axis=-3)

    probs = reference.attention_probs(q, k, scale=scale, **kwargs)
    dv = of_group(probs.swapaxes(-1, -2) @ double(dy))
    dscores = softmax_backward(double(dy) @ each_head(v).swapaxes(-1, -2), probs)
    dscores = dscores * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return dscores @ each_head(k), of_group(dscores.swapaxes(-1, -2) @ double(q)), dv


# The loss


def cross_entropy_backward(
    logits: Floats,
    labels: NDArray[np.integer],
    label_smoothing: float = 0.0,
    denominator: float | None = None,
) -> Floats:
    """The gradient of `reference.cross_entropy`: softmax less the wanted distribution, in rows that count."""
    wanted, counted = reference.wanted(logits, labels, label_smoothing)
    count = max(counted.sum(), 1) if denominator is None else denominator
    return np.where(counted[:, None], reference.softmax(logits) - wanted, 0) / count


# Blocks


def add(grads: Grads, path: str, gradient: Floats) -> None:
    grads[path] = grads.get(path, 0) + gradient


def linear_vjp(params, path: str, x: Floats, grads: Grads) -> tuple[Floats, Vjp]:
    def back(dy: Floats) -> Floats:
        dx, dweight, dbias = linear_backward(dy, x, double(params[f"{path}.weight"]))
        add(grads, f"{path}.weight", dweight)
        if f"{path}.bias" in params:
            add(grads, f"{path}.bias", dbias)
        return dx

    return reference.linear(params, path, x), back


def in_turn(backs: Iterable[Vjp]) -> Vjp:
    """The last first."""
    order = list(backs)[::-1]

    def back(dy: Floats) -> Floats:
        for step in order:
            dy = step(dy)
        return dy

    return back


def block_vjp(block, params, names: Names, x: Floats, grads: Grads) -> tuple[Floats, Vjp]:
    """`reference.run_block` and its gradient."""
    match type(block).__name__:
        case "Serial":
            backs = []
            for inner in block.blocks:
                x, back = block_vjp(inner, params, names, x, grads)
                backs.append(back)
            return x, in_turn(backs)
        case "Residual":
            y, back = block_vjp(blocks.Serial(*block.blocks), params, names, x, grads)
            return x + y, lambda dy: dy + back(dy)
        case "Repeat":
            path = names.path(block.name or "layers")
            backs = []
            for i in range(block.count):
                x, back = block_vjp(block.block, params, Names(f"{path}.{i}"), x, grads)
                backs.append(back)
            return x, in_turn(backs)
        case "LayerNorm" | "RmsNorm":
            return norm_vjp(block, params, names.path(block.name or "norm"), x, grads)
        case "Attention":
            return attention_vjp(block, params, names.path(block.name or "attn"), x, grads)
        case "Mlp":
            path = names.path(block.name or "mlp")
            hidden, back_up = linear_vjp(params, f"{path}.up", x, grads)
            y, back_down = linear_vjp(params, f"{path}.down", reference.ACTIVATIONS[block.act](hidden), grads)
            return y, lambda dy: back_up(activation_backward(back_down(dy), hidden, block.act))
        case "GatedMlp":
            path = names.path(block.name or "mlp")
            gate, back_gate = linear_vjp(params, f"{path}.gate", x, grads)
            up, back_up = linear_vjp(params, f"{path}.up", x, grads)
            y, back_down = linear_vjp(
                params, f"{path}.down", reference.ACTIVATIONS[block.act](gate) * up, grads
            )

            def back(dy: Floats) -> Floats:
                dgate, dup = gated_backward(back_down(dy), gate, up, block.act)
                return back_gate(dgate) + back_up(dup)

            return y, back
        case kind:
            raise ValueError(f"no oracle for {kind}")


def norm_vjp(block, params, path: str, x: Floats, grads: Grads) -> tuple[Floats, Vjp]:
    weight, bias = params[f"{path}.weight"], params.get(f"{path}.bias", 0.0)

    def back(dy: Floats) -> Floats:
        if isinstance(block, blocks.RmsNorm):
            dx, dweight = rms_norm_backward(dy, x, weight, block.eps)
        else:
            dx, dweight, dbias = layer_norm_backward(dy, x, weight, bias, block.eps)
            if f"{path}.bias" in params:
                add(grads, f"{path}.bias", dbias)
        add(grads, f"{path}.weight", dweight)
        return dx

    if isinstance(block, blocks.RmsNorm):
        return reference.rms_norm(x, weight, block.eps), back
    return reference.layer_norm(x, weight, bias, block.eps), back


def attention_vjp(block, params, path: str, x: Floats, grads: Grads) -> tuple[Floats, Vjp]:
    kv_heads = block.kv_heads or block.heads
    head_dim = block.head_dim or x.shape[1] // block.heads

    def apart(rows: Floats, count: int) -> Floats:
        return rows.reshape(len(x), count, head_dim).swapaxes(0, 1)

    def together(heads: Floats) -> Floats:
        return heads.swapaxes(0, 1).reshape(len(x), -1)

    flat, backs = {}, {}
    for part in ("q", "k", "v"):
        flat[part], backs[part] = linear_vjp(params, f"{path}.{part}", x, grads)
    q, k, v = apart(flat["q"], block.heads), apart(flat["k"], kv_heads), apart(flat["v"], kv_heads)
    if block.rope is not None:
        q, k = reference.turn(q, block.rope), reference.turn(k, block.rope)
    options = {"causal": block.causal, "scale": block.scale}
    y, back_out = linear_vjp(params, f"{path}.o", together(reference.attention(q, k, v, **options)), grads)

    def back(dy: Floats) -> Floats:
        dq, dk, dv = attention_backward(apart(back_out(dy), block.heads), q, k, v, **options)
        if block.rope is not None:
            dq, dk = turn_backward(dq, block.rope), turn_backward(dk, block.rope)
        return sum(backs[part](together(d)) for part, d in (("q", dq), ("k", dk), ("v", dv)))

    return y, back


def decoder_vjp(block: blocks.Decoder, params, ids, grads: Grads) -> tuple[Floats, Vjp]:
    """`reference.decoder` and its gradient; what it returns is that of the embedded tokens."""
    tied = "head.weight" not in params
    params = {"head.weight": params["embed.weight"], **params}
    x = double(params["embed.weight"])[ids]
    if block.embed.positions is not None:
        x = x + params["embed.positions"][: len(ids)]
    names = Names()
    x, back_layers = block_vjp(block.layers, params, names, x, grads)
    x, back_norm = block_vjp(block.norm, params, names, x, grads)
    logits, back_head = linear_vjp(params, "head", x, grads)

    def back(dy: Floats) -> Floats:
        dx = back_layers(back_norm(back_head(dy)))
        add(grads, "embed.weight", embedding_backward(dx, ids, block.embed.vocab_size))
        if block.embed.positions is not None:
            places = np.arange(len(ids))
            add(grads, "embed.positions", embedding_backward(dx, places, block.embed.positions))
        if tied:
            add(grads, "embed.weight", grads.pop("head.weight"))
        return dx

    return logits, back


def loss_and_grads(
    block: blocks.Decoder, params, batch: Iterable[tuple[list[int], list[int]]], **options
) -> tuple[float, Grads]:
    """The mean loss of the labels that count, over sequences of ids with a label each, and its gradients: a
    label is what the logits one place before it should say."""
    batch = list(batch)
    counted = sum(label != reference.IGNORED for _, labels in batch for label in labels[1:])
    loss, grads = 0.0, {}
    for ids, labels in batch:
        logits, back = decoder_vjp(block, params, np.asarray(ids), grads)
        wanted = np.array([*labels[1:], reference.IGNORED])
        loss += reference.cross_entropy(logits, wanted, denominator=counted, **options)
        back(cross_entropy_backward(logits, wanted, denominator=counted, **options))
    return loss, grads


# The optimiser


def clip(grads: Grads, most: float) -> float:
    """Scales gradients so that their norm, all taken together, is at most `most`; returns what it was.

    As torch's `clip_grad_norm_`, which adds 1e-6 to the norm that it divides by."""
    norm = math.sqrt(sum(float((double(g) ** 2).sum()) for g in grads.values()))
    scale = min(1.0, most / (norm + 1e-6))
    for path in grads:
        grads[path] = grads[path] * scale
    return norm


class AdamW:
    """Adam (Kingma and Ba 2015) with decoupled decay (Loshchilov and Hutter 2019)."""

    def __init__(
        self,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.steps = 0
        self.first: Grads = {}
        self.second: Grads = {}

    def step(self, params: Grads, grads: Grads, no_decay: Iterable[str] = ()) -> None:
        """Changes `params`."""
        self.steps += 1
        beta1, beta2 = self.betas
        for path, g in grads.items():
            self.first[path] = beta1 * self.first.get(path, 0) + (1 - beta1) * g
            self.second[path] = beta2 * self.second.get(path, 0) + (1 - beta2) * g**2
            m = self.first[path] / (1 - beta1**self.steps)
            v = self.second[path] / (1 - beta2**self.steps)
            decay = 0.0 if path in no_decay else self.weight_decay
            params[path] = params[path] * (1 - self.lr * decay) - self.lr * m / (np.sqrt(v) + self.eps)


class Sgd:
    """Stochastic gradient descent with momentum, as torch has it: v ← μ v + g, w ← w − lr v."""

    def __init__(self, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity: Grads = {}

    def step(self, params: Grads, grads: Grads) -> None:
        """Changes `params`."""
        for path, g in grads.items():
            g = g + self.weight_decay * params[path]
            self.velocity[path] = self.momentum * self.velocity[path] + g if path in self.velocity else g
            params[path] = params[path] - self.lr * self.velocity[path]
