"""Weights of 16 bits: float16 is exact, and bfloat16 is what rounding both factors of every product gives."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import llmcore
import reference
from llmcore import _core
from llmcore.checkpoint import open_checkpoint
from llmcore.convert import to_folder, to_gguf

TINY = Path(__file__).parents[1] / "data" / "tiny"
MODELS = ["gpt2", "llama"]
VOCAB = 160
IDS = np.random.default_rng(0).integers(0, VOCAB, 70).astype(np.uint32)

U = 2.0**-8
"""The most that rounding to bfloat16, of 8 significant bits, moves a number, relative to it."""


@pytest.fixture(scope="module", params=MODELS)
def tiny(request) -> Path:
    return TINY / request.param


@pytest.fixture(scope="module")
def stored(tiny, tmp_path_factory) -> dict[str, Path]:
    """The checkpoint in 16 bits, by format and type."""
    folder = tmp_path_factory.mktemp("sixteen")
    checkpoint = open_checkpoint(tiny)
    for dtype in ("float16", "bfloat16"):
        to_folder(checkpoint, folder / dtype, dtype)
        to_gguf(checkpoint, folder / f"{dtype}.gguf", dtype)
    return {path.name: path for path in folder.iterdir()}


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def oracle(model: llmcore.Model, tiny: Path, ids: np.ndarray) -> np.ndarray:
    """The logits in float64, of matrices and rows rounded to bfloat16."""
    shapes = {path: tuple(shape) for path, shape in model.core.parameters()}
    tensors = load_file(tiny / "model.safetensors")
    params = reference.into_parameters(model.checkpoint.views, shapes, tensors)
    for path, values in params.items():
        if values.ndim == 2 and path != "embed.positions":
            params[path] = bfloat16(values)
    linear = reference.linear
    with mock.patch.object(reference, "linear", lambda params, path, x: linear(params, path, bfloat16(x))):
        return reference.decoder(model.checkpoint.module.build(model.config), params, ids)


def test_bfloat16_rounds_both_factors_of_products_and_nothing_else(tiny) -> None:
    model = llmcore.load(tiny, dtype="bfloat16", kv_cache_dtype="float32")
    found, expected = model.logits(IDS), oracle(model, tiny, IDS)
    exact = llmcore.load(tiny, dtype="float32").logits(IDS)
    # A sum on the other side of the middle between two of bfloat16's numbers moves a factor by 2 u.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * U * np.abs(expected).max())
    assert np.abs(found - expected).mean() < np.abs(exact - expected).mean() / 4


@pytest.mark.parametrize("name", ["float16", "float16.gguf"])
def test_float16_gives_the_bits_of_float32(stored, name) -> None:
    kept, expanded = (
        llmcore.load(stored[name], dtype=dtype, kv_cache_dtype="float32") for dtype in ("auto", "float32")
    )
    np.testing.assert_array_equal(kept.logits(IDS), expanded.logits(IDS))
    assert kept.info()["weight_bytes"] < 0.6 * expanded.info()["weight_bytes"]


def test_bfloat16_on_disk_is_bfloat16_in_memory(stored, tiny) -> None:
    kept, rounded = llmcore.load(stored["bfloat16.gguf"]), llmcore.load(tiny, dtype="bfloat16")
    np.testing.assert_array_equal(kept.logits(IDS), rounded.logits(IDS))
    assert kept.info()["weight_bytes"] == rounded.info()["weight_bytes"]
    # A folder has its vectors in 16 bits too.
    kept, rounded = (llmcore.load(stored["bfloat16"], dtype=dtype) for dtype in ("auto", "bfloat16"))
    np.testing.assert_array_equal(kept.logits(IDS), rounded.logits(IDS))


@settings(max_examples=30)
@given(
    batch=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=80), min_size=1, max_size=4),
    chunk=st.sampled_from([1, 2, 3, 16, 65, 512]),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    limited=st.booleans(),
    isa=st.sampled_from(_core.available_isas()),
)
def test_the_same_bits(loaded, batch, chunk, dtype, limited, isa) -> None:
    """`vdpbf16ps` is emulated where it is missing, so even the instruction set changes nothing."""
    rows = [np.array(ids, np.uint32) for ids in batch]
    truth = loaded[dtype, True]
    expected = [truth.forward([ids])[0][0] for ids in rows]
    before = _core.isa()
    _core.set_isa(isa)
    try:
        model = loaded[dtype, limited]
        found = [model.forward([ids], chunk=chunk)[0][0] for ids in rows]
        together = model.forward(rows, capture=["embed"])[0]
    finally:
        _core.set_isa(before)
    for logits, again, all_at_once in zip(expected, found, together, strict=True):
        np.testing.assert_array_equal(again, logits)
        np.testing.assert_array_equal(all_at_once, logits)


@pytest.fixture(scope="module")
def loaded(stored) -> dict[tuple[str, bool], _core.Model]:
    """By type, and whether limited to one thread."""
    return {
        (dtype, limited): llmcore.load(stored[dtype], threads=1 if limited else None).core
        for dtype in ("float16", "bfloat16")
        for limited in (True, False)
    }


def test_quantised_weights_become_bfloat16_too(smollm2_path) -> None:
    kept, rounded = llmcore.load(smollm2_path), llmcore.load(smollm2_path, dtype="bfloat16")
    parameters = 134_515_008
    assert rounded.info()["weight_bytes"] == pytest.approx(2 * parameters, rel=0.001)
    ids = list(range(1000, 1040))
    agree = rounded.logits(ids).argmax(-1) == kept.logits(ids).argmax(-1)
    assert agree.mean() > 0.85


def test_a_model_trains_in_float32(tiny) -> None:
    with pytest.raises(ValueError, match=r"dtype: found 'bfloat16', expected .*precision='bfloat16'"):
        llmcore.load(tiny, dtype="bfloat16", trainable=True)
