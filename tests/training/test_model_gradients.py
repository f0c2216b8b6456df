"""The gradients of any decoder, in any layout of a checkpoint, against the NumPy oracle, which finite
differences prove (`test_reference_grad.py`); and the same bits however they are computed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import reference
import reference_grad
from llmcore import _core
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
from llmcore.checkpoint import Checkpoint
from llmcore.models.base import View
from llmcore.training import Dropout, TrainableModel
from random_decoders import decoders

POSITIONS = 40
# A layer norm of a few columns hardly depends on their size: its gradient would be what rounding leaves.
BLOCKS = decoders(POSITIONS, least_width=8)
LAYOUTS = ["apart", "fused", "transposed"]
"""Each parameter in a tensor of its own, as in Llama; what one product takes in one tensor, as in Phi-3;
that, stored `[inputs, outputs]`, as in GPT-2."""

seeds = st.integers(0, 1 << 30)
times = st.lists(st.integers(1, POSITIONS), min_size=1, max_size=4)


@dataclass
class Random:
    """A decoder with random parameters, and sequences to learn."""

    block: Decoder
    params: dict[str, np.ndarray]
    views: dict[str, View]
    tensors: dict[str, np.ndarray]
    ids: list[np.ndarray]
    labels: list[np.ndarray]

    @classmethod
    def of(cls, block: Decoder, layout: str, times: list[int], seed: int) -> Random:
        rng = np.random.default_rng(seed)
        params = {
            path: rng.normal(size=shape, scale=0.3).astype(np.float32)
            for path, shape in reference.shapes(block).items()
        }
        vocab = block.embed.vocab_size
        ids = [rng.integers(0, vocab, time) for time in times]
        labels = [
            np.where(rng.random(time) < 0.2, reference.IGNORED, rng.integers(0, vocab, time))
            for time in times
        ]
        return cls(block, params, *stored(params, layout), ids, labels)

    @property
    def count(self) -> int:
        return sum(int((labels[1:] != reference.IGNORED).sum()) for labels in self.labels)

    @property
    def batch(self) -> dict[str, list[np.ndarray]]:
        return {"input_ids": self.ids, "labels": self.labels}

    def model(self, precision: str = "float32", **options) -> TrainableModel:
        architecture = SimpleNamespace(
            build=lambda _: self.block, tensors=lambda _: self.views, max_positions=lambda _: POSITIONS
        )
        with TemporaryDirectory() as folder:
            save_file(self.tensors, Path(folder) / "model.safetensors")
            checkpoint = Checkpoint(
                Path(folder), _core.SafeTensors(folder), architecture, None, self.views, {}
            )
            return TrainableModel(checkpoint, precision=precision, **options)

    def oracle(self, **options) -> tuple[float, dict[str, np.ndarray]]:
        sequences = [
            (ids.tolist(), labels.tolist()) for ids, labels in zip(self.ids, self.labels, strict=True)
        ]
        return reference_grad.loss_and_grads(self.block, self.params, sequences, **options)

    def gradients(self, model: TrainableModel) -> dict[str, np.ndarray]:
        """Of what trains, by path."""
        assert {t.name: t.shape for t in model.parameters()} == {n: t.shape for n, t in self.tensors.items()}
        grads = {tensor.name: model.grad(tensor.name) for tensor in model.parameters() if tensor.trained}
        views = {path: view for path, view in self.views.items() if view.tensor in grads}
        return reference.into_parameters(views, reference.shapes(self.block), grads)


def stored(params: dict[str, np.ndarray], layout: str) -> tuple[dict[str, View], dict[str, np.ndarray]]:
    """Where parameters stand in a checkpoint of a layout, and its tensors."""
    views: dict[str, View] = {}
    parts: dict[str, list[np.ndarray]] = {}
    for path, value in params.items():
        name = path if layout == "apart" else re.sub(r"\.(q|k|v|gate|up)\.", ".fused.", path)
        transpose = layout == "transposed" and value.ndim == 2 and not path.startswith("embed")
        views[path] = View(name, transpose, first=sum(len(part) for part in parts.get(name, [])))
        parts.setdefault(name, []).append(value)
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    for view in views.values():
        if view.transpose and view.first == 0:
            whole[view.tensor] = np.ascontiguousarray(whole[view.tensor].T)
    return views, whole


def float32_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a multiple of what rounding to float32 may leave."""
    return float(np.abs(found - expected).max() / (1e-4 * np.abs(expected).max() + 1e-7))


@settings(max_examples=400)
@given(
    block=BLOCKS,
    layout=st.sampled_from(LAYOUTS),
    times=times,
    first=st.integers(0, 4),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    frozen=st.sampled_from(["", "embed*", "*norm*", "*.attn.*", "*.mlp.*", "*bias", "head*"]),
    checkpointing=st.booleans(),
    seed=seeds,
)
def test_gradients_are_the_oracle_s(
    block, layout, times, first, smoothing, frozen, checkpointing, seed
) -> None:
    drawn = Random.of(block, layout, times, seed)
    assume(drawn.count > 0)
    expected_loss, expected = drawn.oracle(label_smoothing=smoothing)
    still = {name for name in drawn.tensors if fnmatchcase(name, frozen)}
    model = drawn.model(frozen=sorted(still))
    model.checkpointing = checkpointing
    # In one call or in two.
    loss = sum(
        model.loss_and_grad(
            input_ids=drawn.ids[part],
            labels=drawn.labels[part],
            denominator=drawn.count,
            label_smoothing=smoothing,
        )
        for part in (slice(first), slice(first, None))
        if drawn.ids[part]
    )
    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    found = drawn.gradients(model)
    assert found.keys() == {path for path in expected if drawn.views[path].tensor not in still}
    for path, gradient in found.items():
        assert float32_error(gradient, expected[path]) <= 1, path


@settings(max_examples=200)
@given(
    block=BLOCKS,
    layout=st.sampled_from(LAYOUTS),
    times=times,
    precision=st.sampled_from(["float32", "bfloat16"]),
    rate=st.sampled_from([0.0, 0.3]),
    seed=seeds,
)
def test_the_bits_depend_on_neither_threads_nor_neighbours(
    block, layout, times, precision, rate, seed
) -> None:
    drawn = Random.of(block, layout, times, seed)
    assume(drawn.count > 0)
    models = [drawn.model(precision, threads=threads) for threads in (1, 2)]
    losses, arenas = [], []
    for model in models:
        losses.append(model.loss_and_grad(**drawn.batch, dropout=Dropout(rate, seed)))
        with model.arena("grad") as flat:
            arenas.append(flat.copy())
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(arenas[0].view(np.uint32), arenas[1].view(np.uint32))

    model = models[0]
    for i, (ids, labels) in enumerate(zip(drawn.ids, drawn.labels, strict=True)):
        others = [np.full_like(row, reference.IGNORED) for row in drawn.labels]
        only = {"input_ids": drawn.ids, "labels": [*others[:i], labels, *others[i + 1 :]]}
        alone = {"input_ids": [ids], "labels": [labels]}
        assert model.evaluate(**only) == model.evaluate(**alone)
        losses = [
            model.loss_and_grad(**batch, denominator=1, dropout=Dropout(rate, seed, sequence=sequence))
            for batch, sequence in ((only, 0), (alone, i))
        ]
        assert losses[0] == losses[1]


# bfloat16

U = 2.0**-8
"""The most that rounding to bfloat16, of 8 significant bits, moves a number, relative to it."""


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


@contextmanager
def rounded_factors() -> Iterator[None]:
    """Lets the oracle round both factors of every product with a weight, forward and backward."""
    linear, backward = reference.linear, reference_grad.linear_backward

    def rounded_linear(params, path: str, x: np.ndarray) -> np.ndarray:
        weight = {f"{path}.weight": bfloat16(params[f"{path}.weight"])}
        return linear({**params, **weight}, path, bfloat16(x))

    def rounded_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray):
        dx, dweight, _ = backward(bfloat16(dy), bfloat16(x), bfloat16(weight))
        return dx, dweight, dy.sum(axis=0)

    with (
        mock.patch.object(reference, "linear", rounded_linear),
        mock.patch.object(reference_grad, "linear_backward", rounded_backward),
    ):
        yield


def gpt_like() -> Decoder:
    layer = Serial(Residual(LayerNorm(), Attention(4, bias=True)), Residual(LayerNorm(), Mlp(64, "gelu_new")))
    return Decoder(Embed(50, 32, POSITIONS), Repeat(layer, 2), LayerNorm(), Tied())


def llama_like() -> Decoder:
    attention = Attention(4, kv_heads=2, rope=Rope((1.0, 0.3, 0.1, 0.03)))
    layer = Serial(Residual(RmsNorm(), attention), Residual(RmsNorm(), GatedMlp(48)))
    return Decoder(Embed(50, 32), Repeat(layer, 2), RmsNorm(), Linear(50))


@pytest.mark.parametrize(
    ("block", "layout"), [(gpt_like(), "transposed"), (llama_like(), "apart")], ids=["gpt", "llama"]
)
def test_bfloat16_rounds_the_factors_of_products_and_nothing_else(block, layout) -> None:
    # A sum in float32 here and in float64 there may fall to either side of the middle between two of
    # bfloat16's numbers. That factor then differs by 2u, and all that follows a little; with few rows it is
    # rare.
    agree = []
    # The way from a parameter to the loss and back: four products a layer, and the head.
    products = 2 * (4 * block.layers.count + 1)
    for seed in range(20):
        drawn = Random.of(block, layout, [4, 3], seed)
        model = drawn.model("bfloat16")
        model.loss_and_grad(**drawn.batch)
        found, (_, exact) = drawn.gradients(model), drawn.oracle()
        with rounded_factors():
            _, expected = drawn.oracle()
        for path, gradient in found.items():
            np.testing.assert_allclose(
                gradient, expected[path], rtol=0, atol=2 * U * np.abs(expected[path]).max() + 1e-7
            )
            # Both factors of each product are off by u at most.
            np.testing.assert_allclose(
                gradient, exact[path], rtol=0, atol=products * 2 * U * np.abs(exact[path]).max() + 1e-7
            )
            agree.append(float32_error(gradient, expected[path]) <= 1)
    assert np.mean(agree) > 0.9
