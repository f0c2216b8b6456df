"""Every block type expands to the bits that the `gguf` package computes."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore._core import Gguf

Type = gguf.GGMLQuantizationType
BLOCKS = [
    *[Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.IQ4_NL],
    *[Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS],
]
# The types that the `gguf` package can write, and half a step of each for values in [-1, 1] and their
# float16 scale. (The symmetric types lose one step at the end opposite to the largest value.)
QUANTISED = {
    Type.F32: 0,
    Type.F16: 2**-12,
    Type.BF16: 2**-9,
    Type.Q4_0: 1.01 / 8,
    Type.Q4_1: 1.01 / 15,
    Type.Q5_0: 1.01 / 16,
    Type.Q5_1: 1.01 / 31,
    Type.Q8_0: 0.51 / 127 + 2**-12,
}


def write(path: Path, data: np.ndarray, dtype: Type) -> None:
    """One tensor `x` of the given bytes, `[..., blocks * bytes of a block]`."""
    writer = gguf.GGUFWriter(path, "test")
    writer.add_tensor("x", data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """NaNs need not have the same payload."""
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("dtype", BLOCKS, ids=lambda dtype: dtype.name)
@settings(max_examples=30)
@given(
    shape=st.lists(st.integers(0, 3), min_size=0, max_size=3),
    blocks=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bytes(tmp_path_factory, dtype, shape, blocks, seed):
    path = tmp_path_factory.mktemp("any") / "x.gguf"
    size, bytes_ = gguf.GGML_QUANT_SIZES[dtype]
    data = np.random.default_rng(seed).integers(0, 256, (*shape, blocks * bytes_), np.uint8)
    write(path, data, dtype)
    file = Gguf(path)
    assert file.info("x") == ((*shape, blocks * size), dtype.name)
    with np.errstate(all="ignore"):
        expected = np.empty((*shape, blocks * size), np.float32)
        if data.size:
            expected = gguf.quants.dequantize(data, dtype)
    assert_same_bits(file.read("x"), expected)


@pytest.mark.parametrize("dtype", [Type.F16, Type.BF16], ids=lambda dtype: dtype.name)
def test_every_half(tmp_path, dtype):
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(16, -1)
    write(tmp_path / "x.gguf", data, dtype)
    expected = gguf.quants.dequantize(data.view(np.float16) if dtype == Type.F16 else data, dtype)
    assert_same_bits(Gguf(tmp_path / "x.gguf").read("x"), expected)


@pytest.mark.parametrize("dtype", QUANTISED, ids=lambda dtype: dtype.name)
def test_what_was_quantised_comes_back(tmp_path, dtype):
    values = np.random.default_rng(0).uniform(-1, 1, (7, 512)).astype(np.float32)
    data = gguf.quants.quantize(values, dtype)
    write(tmp_path / "x.gguf", data, dtype)
    found = Gguf(tmp_path / "x.gguf").read("x")
    assert_same_bits(found, gguf.quants.dequantize(data, dtype))
    np.testing.assert_allclose(found, values, rtol=0, atol=QUANTISED[dtype])
