"""Decoders of any composition against the NumPy oracle, and the same bits however they are run."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import reference
from llmcore import _core
from llmcore.blocks import Decoder, describe
from random_decoders import decoders

POSITIONS = 200


def compile_random(block: Decoder, seed: int) -> tuple[_core.Model, dict[str, np.ndarray]]:
    """The compiled model with random parameters, and those."""
    rng = np.random.default_rng(seed)
    params = {
        path: rng.normal(size=shape, scale=0.5).astype(np.float32)
        for path, shape in reference.shapes(block).items()
    }
    with TemporaryDirectory() as folder:
        save_file(params, Path(folder) / "model.safetensors")
        views = json.dumps({path: {"tensor": path} for path in params})
        source = _core.SafeTensors(folder)
        model = _core.Model(json.dumps(describe(block)), source, views, POSITIONS)
    assert {path: tuple(shape) for path, shape in model.parameters()} == reference.shapes(block)
    return model, params


@settings(max_examples=60)
@given(block=decoders(POSITIONS), seed=st.integers(0, 1 << 30), time=st.sampled_from([1, 2, 17, 70, 130]))
def test_logits_are_the_oracle_s(block, seed, time):
    model, params = compile_random(block, seed)
    ids = np.random.default_rng(seed).integers(0, block.embed.vocab_size, time).astype(np.uint32)
    expected = reference.decoder(block, params, ids)
    logits, _ = model.forward([ids])
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=2e-4 * scale)


@settings(max_examples=30)
@given(
    block=decoders(POSITIONS),
    seed=st.integers(0, 1 << 30),
    times=st.lists(st.integers(1, 80), min_size=2, max_size=4),
)
def test_captured_sites_and_a_batch_change_no_bits(block, seed, times):
    model, _ = compile_random(block, seed)
    rng = np.random.default_rng(seed)
    batch = [rng.integers(0, block.embed.vocab_size, time).astype(np.uint32) for time in times]
    alone = [model.forward([ids])[0][0] for ids in batch]
    together, captured = model.forward(batch, model.sites())
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))
    assert captured["embed"][0].shape == (sum(times), block.embed.width)
