"""Every kernel against the oracle, on every instruction set of the machine, with equal bits on all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from llmcore import _core, ops

# Nothing, one, around a vector of 16, around a register tile, around a block of 64.
SIZES = st.sampled_from([0, 1, 2, 5, 12, 13, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100])
SEEDS = st.integers(0, 2**32 - 1)

lenient = settings(max_examples=60)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def on_all_isas(function, *args, **kwargs) -> np.ndarray:
    """The result of an op, which is the same bits on every instruction set."""
    before = _core.isa()
    try:
        results = []
        for isa in _core.available_isas():
            _core.set_isa(isa)
            results.append(function(*args, **kwargs))
    finally:
        _core.set_isa(before)
    for result in results[1:]:
        # Of a NaN only that it is one is the same.
        np.testing.assert_array_equal(np.isnan(result), np.isnan(results[0]))
        seen = ~np.isnan(result)
        np.testing.assert_array_equal(result[seen].view(np.uint32), results[0][seen].view(np.uint32))
    return results[-1]


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@lenient
@given(SIZES, SIZES, st.sampled_from([0, 1, 7, 16, 255, 256, 257, 600]), SEEDS)
def test_matmul(m, n, k, seed):
    a, b = normal(seed, m, k), normal(seed + 1, k, n)
    close(on_all_isas(ops.matmul, a, b), reference.double(a) @ b, 1e-6 + 1e-7 * k)


@lenient
@given(SIZES, SIZES, st.booleans(), SEEDS)
def test_matmul_of_a_row_is_the_same_bits_among_any_rows(rows, n, tall, seed):
    a, b = normal(seed, rows + 500 * tall + 1, 300), normal(seed + 1, 300, n)
    whole = ops.matmul(a, b)
    row = seed % len(a)
    np.testing.assert_array_equal(ops.matmul(a[row : row + 1], b)[0], whole[row])
    np.testing.assert_array_equal(ops.matmul(a[row:], b), whole[row:])


@lenient
@given(SIZES, SIZES, st.sampled_from([0.1, 5.0, 100.0]), SEEDS)
def test_softmax(rows, width, scale, seed):
    x = normal(seed, rows, width, scale=scale)
    close(on_all_isas(ops.softmax, x), reference.softmax(x), 1e-6)
    with np.errstate(divide="ignore"):
        close(on_all_isas(ops.log_softmax, x), reference.log_softmax(x), 1e-6 * scale + 1e-6)
    close(ops.softmax(x, axis=0), reference.softmax(x, axis=0), 1e-6)


@lenient
@given(SIZES, st.sampled_from([1, 2, 15, 16, 17, 100, 577]), st.booleans(), SEEDS)
def test_norms(rows, width, offset, seed):
    x = normal(seed, rows, width) + 10 * offset
    weight, bias = normal(seed + 1, width), normal(seed + 2, width)
    actual = on_all_isas(ops.layer_norm, x, weight, bias, eps=1e-5)
    # At width 1 and 2 the variance may be as small as the rounding of the mean.
    close(actual, reference.layer_norm(x, weight, bias, 1e-5), 2e-3 if width < 3 else 2e-5)
    close(on_all_isas(ops.rms_norm, x, weight, eps=1e-6), reference.rms_norm(x, weight, 1e-6), 2e-6)


@lenient
@given(
    st.sampled_from(sorted(reference.ACTIVATIONS)), st.integers(0, 100), st.sampled_from([1, 10, 60]), SEEDS
)
def test_activations(name, size, scale, seed):
    x = normal(seed, 2, size, scale=scale)

    def activate(x):
        out = x.copy()
        _core.activate(name, out.reshape(-1))
        return out

    expected = reference.ACTIVATIONS[name](x)
    close(on_all_isas(activate, x), expected, 1e-6)
    up = normal(seed + 1, 2, size)
    close(on_all_isas(ops.gated, name, x, up), expected * up, 2e-6)


def test_activations_at_the_ends():
    x = np.array([0.0, -0.0, 1e-30, -1e-30, 90, -90, 1e30, -1e30, np.inf], np.float32)
    for name in ("gelu", "gelu_tanh", "silu"):
        out = on_all_isas(lambda x, name=name: ops._activate(name, x), x)
        np.testing.assert_allclose(out[:8], [0, 0, 5e-31, -5e-31, 90, 0, 1e30, 0], rtol=1e-6, atol=1e-36)
        assert out[8] == np.inf
    nan = np.array([np.nan], np.float32)
    for op in (ops.gelu, ops.silu, ops.relu, ops.tanh, ops.sigmoid, ops.softmax, ops.log_softmax):
        assert np.isnan(on_all_isas(op, nan)), op.__name__


@lenient
@given(st.integers(0, 40), st.integers(1, 3), st.sampled_from([2, 6, 32, 34, 64, 128]), SEEDS)
def test_rope(time, heads, dim, seed):
    x = normal(seed, heads, time, dim)
    positions = np.random.default_rng(seed).integers(0, 5000, time)
    close(on_all_isas(ops.rope, x, positions), reference.rope(x, positions), 2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    x = normal(0, 3, 40)
    x[1, 7] = bad
    for op in (ops.softmax, ops.layer_norm, ops.rms_norm):
        out = on_all_isas(op, x)
        assert np.isnan(out[1]).any() and np.isfinite(out[[0, 2]]).all()
