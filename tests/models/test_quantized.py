"""A quantised checkpoint kept as it is stored, against the same weights expanded to float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

import llmcore

TEXT = json.loads((Path(__file__).parents[1] / "data" / "smollm2.json").read_text())["text"]["ids"][:512]


@pytest.fixture(scope="module")
def model(smollm2_path):
    return llmcore.load(smollm2_path)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def test_it_says_nearly_the_same(model, smollm2_path) -> None:
    """llama.cpp diverges by 0.0040 nats a token from the float32 weights; so much is the rounding of rows."""
    exact = log_softmax(llmcore.load(smollm2_path, dtype="float32").logits(TEXT))
    found = log_softmax(model.logits(TEXT))
    divergence = (np.exp(exact) * (exact - found)).sum(-1)
    assert divergence.mean() < 0.0045
    assert (exact.argmax(-1) == found.argmax(-1)).mean() > 0.94


@pytest.mark.parametrize(("kv_cache_dtype", "most"), [("bfloat16", 8e-5), ("int8", 2e-3)])
def test_rounding_keys_and_values_says_nearly_the_same(smollm2_path, kv_cache_dtype, most) -> None:
    """Of rounding them alone, on the float32 weights."""
    exact, found = (
        log_softmax(llmcore.load(smollm2_path, dtype="float32", kv_cache_dtype=dtype).logits(TEXT[:200]))
        for dtype in ("float32", kv_cache_dtype)
    )
    divergence = (np.exp(exact) * (exact - found)).sum(-1)
    assert 0 < divergence.mean() < most


def test_keys_and_values_take_the_memory_of_their_type(model, smollm2_path) -> None:
    head = {"float32": 64 * 4, "bfloat16": 64 * 2, "int8": 64 + 4}
    for kv_cache_dtype, size in head.items():
        loaded = llmcore.load(smollm2_path, kv_cache_dtype=kv_cache_dtype)
        assert loaded.info()["kv_bytes_per_position"] == 2 * 30 * 3 * size
    assert model.info()["kv_bytes_per_position"] == 2 * 30 * 3 * head["bfloat16"]
    with pytest.raises(ValueError, match="kv_cache_dtype: found 'int4'"):
        llmcore.load(smollm2_path, kv_cache_dtype="int4")


def test_it_takes_the_memory_of_the_file(model, smollm2_path) -> None:
    stored = smollm2_path.stat().st_size
    assert model.info()["weight_bytes"] < 1.05 * stored
    expanded = llmcore.load(smollm2_path, dtype="float32").info()["weight_bytes"]
    assert model.info()["weight_bytes"] < expanded / 5


def test_bits_depend_on_neither_threads_nor_batches_nor_steps(model, smollm2_path) -> None:
    ids = TEXT[:70]
    expected = model.logits(ids)
    np.testing.assert_array_equal(llmcore.load(smollm2_path, threads=1).logits(ids), expected)
    for chunk in (1, 9):
        np.testing.assert_array_equal(
            model.core.forward([np.array(ids, np.uint32)], [], chunk)[0][0], expected
        )
    prompts = [TEXT[:9], TEXT[20:60], TEXT[5:6]]
    alone = [model.generate(prompt, max_new_tokens=12).ids for prompt in prompts]
    assert [completion.ids for completion in model.generate(prompts, max_new_tokens=12)] == alone


def test_a_scale_that_is_not_finite_is_named(smollm2_path, tmp_path) -> None:
    tensors = GGUFReader(smollm2_path).tensors
    tensor = next(tensor for tensor in tensors if tensor.name == "blk.3.ffn_up.weight")
    data = bytearray(smollm2_path.read_bytes())
    row_bytes = tensor.n_bytes // 1536
    block = tensor.data_offset + 7 * row_bytes + 2 * 20
    data[block : block + 2] = b"\x00\x7c"
    (tmp_path / "broken.gguf").write_bytes(data)
    with pytest.raises(
        ValueError, match=r'broken.gguf: tensor "blk.3.ffn_up.weight": found inf at row 7, column 64'
    ):
        llmcore.load(tmp_path / "broken.gguf")
