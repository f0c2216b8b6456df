"""The gradients of the oracle: finite differences in float64, and what torch computed for the tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import reference
import reference_grad
from llmcore.blocks import (
    Attention,
    Decoder,
    Embed,
    GatedMlp,
    LayerNorm,
    Linear,
    Mlp,
    Repeat,
    Residual,
    RmsNorm,
    Rope,
    Serial,
    Tied,
)
from llmcore.models import gpt2, llama
from llmcore.models.base import read_config

TINY = Path(__file__).parent / "data" / "tiny"
STEP = 1e-5
"""Of a finite difference; its error is of the order of the square, 1e-10, and of 1e-16 / 1e-5."""

sizes = st.integers(1, 7)
seeds = st.integers(0, 2**32)
acts = st.sampled_from(list(reference.ACTIVATIONS))
ropes = st.builds(
    lambda n, scale: Rope(tuple(0.7**i for i in range(n)), scale), st.integers(0, 2), st.just(1.25)
)


def slope(f: Callable[[np.ndarray], float], x: np.ndarray, direction: np.ndarray) -> float:
    """How fast `f` grows from `x` in a direction."""
    return (f(x + STEP * direction) - f(x - STEP * direction)) / (2 * STEP)


def check(
    f: Callable[..., np.ndarray], gradients: Callable[..., object], *arrays: np.ndarray, seed: int
) -> None:
    """`gradients(dy)` are those of `f(*arrays)`: along random directions, with a random `dy`."""
    rng = np.random.default_rng(seed)
    dy = rng.normal(size=np.shape(f(*arrays)))
    found = gradients(dy)
    found = found if isinstance(found, tuple) else (found,)
    assert [g.shape for g in found] == [x.shape for x in arrays]
    for i, (x, gradient) in enumerate(zip(arrays, found, strict=True)):
        for _ in range(3):
            direction = rng.normal(size=x.shape)

            def along(moved: np.ndarray, i: int = i) -> float:
                return float((dy * f(*arrays[:i], moved, *arrays[i + 1 :])).sum())

            expected = slope(along, x, direction)
            np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-7)


@given(rows=sizes, inputs=sizes, outputs=sizes, seed=seeds)
def test_linear(rows: int, inputs: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = (
        rng.normal(size=(rows, inputs)),
        rng.normal(size=(outputs, inputs)),
        rng.normal(size=outputs),
    )
    check(
        lambda x, weight, bias: reference.linear({"w.weight": weight, "w.bias": bias}, "w", x),
        lambda dy: reference_grad.linear_backward(dy, x, weight),
        x, weight, bias, seed=seed,
    )  # fmt: skip


@given(count=sizes, width=sizes, ids=st.lists(st.integers(0, 6), max_size=9), seed=seeds)
def test_embedding(count: int, width: int, ids: list[int], seed: int) -> None:
    places = np.array([id % count for id in ids], int)
    weight = np.random.default_rng(seed).normal(size=(count, width))
    check(
        lambda weight: weight[places],
        lambda dy: reference_grad.embedding_backward(dy, places, count),
        weight,
        seed=seed,
    )


@given(act=acts, rows=sizes, width=sizes, spread=st.sampled_from([0.1, 1.0, 10.0]), seed=seeds)
def test_activations(act: str, rows: int, width: int, spread: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(rows, width), scale=spread)
    # Where a rectifier bends it has no derivative.
    x = np.where(np.abs(x) < 1e-3, 1e-3, x)
    check(reference.ACTIVATIONS[act], lambda dy: reference_grad.activation_backward(dy, x, act), x, seed=seed)


@given(act=acts, rows=sizes, width=sizes, seed=seeds)
def test_gated(act: str, rows: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gate, up = rng.normal(size=(rows, width)), rng.normal(size=(rows, width))
    gate = np.where(np.abs(gate) < 1e-3, 1e-3, gate)
    check(
        lambda gate, up: reference.ACTIVATIONS[act](gate) * up,
        lambda dy: reference_grad.gated_backward(dy, gate, up, act),
        gate,
        up,
        seed=seed,
    )


@given(shape=st.tuples(sizes, sizes, sizes), axis=st.sampled_from([0, 1, -1]), seed=seeds)
def test_softmax(shape: tuple[int, ...], axis: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=shape, scale=2)
    for f, backward in (
        (reference.softmax, reference_grad.softmax_backward),
        (reference.log_softmax, reference_grad.log_softmax_backward),
    ):
        y = f(x, axis)
        check(lambda x, f=f: f(x, axis), lambda dy, b=backward, y=y: b(dy, y, axis), x, seed=seed)


@given(rows=sizes, width=st.integers(2, 9), eps=st.sampled_from([1e-6, 1e-3, 1.0]), seed=seeds)
def test_norms(rows: int, width: int, eps: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.normal(size=(rows, width)), rng.normal(size=width), rng.normal(size=width)
    # A row with no variance has no derivative but for eps.
    x[:, 0] += 2
    check(
        lambda *given: reference.layer_norm(*given, eps),
        lambda dy: reference_grad.layer_norm_backward(dy, x, weight, bias, eps),
        x, weight, bias, seed=seed,
    )  # fmt: skip
    check(
        lambda *given: reference.rms_norm(*given, eps),
        lambda dy: reference_grad.rms_norm_backward(dy, x, weight, eps),
        x, weight, seed=seed,
    )  # fmt: skip


@given(heads=sizes, time=sizes, half=st.integers(1, 4), rest=st.integers(0, 2), rope=ropes, seed=seeds)
def test_rotations(heads: int, time: int, half: int, rest: int, rope: Rope, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, positions = rng.normal(size=(heads, time, 2 * half)), rng.integers(0, 1000, time)
    check(
        lambda x: reference.rope(x, positions),
        lambda dy: reference_grad.rope_backward(dy, positions),
        x,
        seed=seed,
    )
    x = rng.normal(size=(heads, time, 2 * len(rope.frequencies) + rest))
    check(lambda x: reference.turn(x, rope), lambda dy: reference_grad.turn_backward(dy, rope), x, seed=seed)


@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    time=sizes,
    past=st.integers(0, 4),
    d=sizes,
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 5]),
    scale=st.sampled_from([None, 0.3]),
    masked=st.sampled_from([None, "bool", "bias"]),
    seed=seeds,
)
def test_attention(kv_heads, group, time, past, d, causal, window, scale, masked, seed) -> None:
    rng = np.random.default_rng(seed)
    keys = time + past
    q = rng.normal(size=(2, kv_heads * group, time, d))
    k, v = rng.normal(size=(2, kv_heads, keys, d)), rng.normal(size=(2, kv_heads, keys, d))
    # A query that sees no key is among them.
    masks = {None: None, "bool": rng.random((time, keys)) < 0.5, "bias": rng.normal(size=(time, keys))}
    options = {"causal": causal, "window": window, "scale": scale, "mask": masks[masked]}
    check(
        lambda *given: reference.attention(*given, **options),
        lambda dy: reference_grad.attention_backward(dy, q, k, v, **options),
        q, k, v, seed=seed,
    )  # fmt: skip


@given(
    rows=sizes,
    vocab=sizes,
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    denominator=st.sampled_from([None, 13.0]),
    seed=seeds,
)
def test_cross_entropy(rows: int, vocab: int, smoothing: float, denominator: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, vocab), scale=3)
    labels = np.where(rng.random(rows) < 0.3, reference.IGNORED, rng.integers(0, vocab, rows))
    check(
        lambda logits: np.array(reference.cross_entropy(logits, labels, smoothing, denominator)),
        lambda dy: dy * reference_grad.cross_entropy_backward(logits, labels, smoothing, denominator),
        logits,
        seed=seed,
    )


norms = st.sampled_from([LayerNorm(1e-5), LayerNorm(1e-5, bias=False), RmsNorm(1e-6)])
mlps = st.one_of(
    st.builds(Mlp, sizes, acts.filter(lambda act: act != "relu"), st.booleans()),
    st.builds(GatedMlp, sizes, acts.filter(lambda act: act != "relu"), st.booleans()),
)
attentions = st.builds(
    lambda kv, group, bias, out, rope: Attention(kv * group, kv, 5, bias=bias, out_bias=out, rope=rope),
    st.integers(1, 2), st.integers(1, 2), st.booleans(), st.sampled_from([None, True, False]),
    st.none() | ropes,
)  # fmt: skip


@settings(max_examples=60)
@given(
    norm=st.tuples(norms, norms, norms),
    attention=attentions,
    mlp=mlps,
    layers=st.integers(0, 2),
    positions=st.sampled_from([None, 9]),
    head=st.sampled_from([Tied(), Linear(6), Linear(6, bias=True)]),
    ids=st.lists(st.integers(0, 5), min_size=2, max_size=6),
    seed=seeds,
)
def test_whole_decoders(norm, attention, mlp, layers, positions, head, ids, seed) -> None:
    layer = Serial(Residual(norm[0], attention), Residual(norm[1], mlp))
    block = Decoder(Embed(6, 4, positions), Repeat(layer, layers), norm[2], head)
    rng = np.random.default_rng(seed)
    params = {path: rng.normal(size=shape) for path, shape in reference.shapes(block).items()}
    labels = [reference.IGNORED if rng.random() < 0.2 else int(rng.integers(6)) for _ in ids[1:]] + [3]
    batch = [(ids, labels), ([1, 2], [0, 1])]
    _, grads = reference_grad.loss_and_grads(block, params, batch)
    assert {path: g.shape for path, g in grads.items()} == reference.shapes(block)
    logits, _ = reference_grad.decoder_vjp(block, params, np.array(ids), {})
    np.testing.assert_array_equal(logits, reference.decoder(block, params, np.array(ids)))
    for path, value in params.items():
        direction = rng.normal(size=value.shape)

        def along(moved: np.ndarray, path: str = path) -> float:
            return reference_grad.loss_and_grads(block, {**params, path: moved}, batch)[0]

        expected = slope(along, value, direction)
        found = (grads[path] * direction).sum()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=path)


# The tiny models, by the names of their checkpoints


@pytest.mark.parametrize("module", [gpt2, llama], ids=["gpt2", "llama"])
def test_tiny_models_train_as_in_torch(module) -> None:
    folder = TINY / module.__name__.rsplit(".", 1)[-1]
    config = read_config(module.Config, json.loads((folder / "config.json").read_text()), "config.json")
    block, views = module.build(config), module.tensors(config)
    shapes = reference.shapes(block)
    tensors, train = (
        load_file(folder / "expected.safetensors"),
        json.loads((folder / "expected.json").read_text())["train"],
    )
    params = reference.into_parameters(views, shapes, load_file(folder / "model.safetensors"))

    def expected(prefix: str) -> dict[str, np.ndarray]:
        named = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        return reference.into_parameters(views, shapes, named)

    batch = list(zip(tensors["train.input_ids"].tolist(), tensors["train.labels"].tolist(), strict=True))
    optimizer = reference_grad.AdamW(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step, (loss, norm) in enumerate(zip(train["losses"], train["grad_norms"], strict=True)):
        found, grads = reference_grad.loss_and_grads(block, params, batch)
        if step == 0:
            for path, gradient in expected("grad.").items():
                most = 1e-4 * np.abs(gradient).max() + 1e-7
                np.testing.assert_allclose(grads[path], gradient, rtol=0, atol=most, err_msg=path)
        assert abs(found - loss) < 1e-4
        assert abs(reference_grad.clip(grads, 1.0) - norm) < 1e-4
        optimizer.step(params, grads)
    for path, value in expected("after10.").items():
        # A bias of all keys changes no attention: its gradient is rounding, which AdamW makes steps of.
        if not path.endswith("attn.k.bias"):
            np.testing.assert_allclose(params[path], value, rtol=0, atol=1e-4, err_msg=path)
