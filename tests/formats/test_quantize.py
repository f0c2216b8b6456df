"""Float32 to blocks: the bytes that NumPy computes step by step; errors below those of plain rounding."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore import _core

F = np.float32
UNCOVERED = [F(-0.3), F(0.3), F(0.9), F(1.5)]
TYPES = ["Q8_0", "Q4_0", "Q4_1"]


def halves(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def inverse(d):
    return np.where(np.abs(d) > F(1e-30), F(1) / np.where(d == 0, F(1), d), F(0)).astype(F)


def codes(x, d, m):
    return np.rint(np.clip((x - m) * inverse(d), F(0), F(15)))


def total(terms):
    """Sums of `terms [32, blocks]` in order, each step rounded."""
    out = np.zeros(terms.shape[1], F)
    for term in terms:
        out = out + term
    return out


def fitted(x, d, m, has_min):
    q = codes(x, d, m) - F(0 if has_min else 8)
    q_sum, x_sum, qq, xq = (total(terms) for terms in (q, x, q * q, x * q))
    if not has_min:
        d = np.where(qq > 0, xq / np.where(qq > 0, qq, F(1)), F(0))
        return d, d * F(-8)
    spread = F(32) * qq - q_sum * q_sum
    d = np.where(spread > 0, (F(32) * xq - x_sum * q_sum) / np.where(spread > 0, spread, F(1)), F(0))
    return d, (x_sum - d * q_sum) / F(32)


def search(x, has_min):
    """The step and the minimum of blocks `x [32, blocks]`."""
    low, high = x.min(0), x.max(0)
    span = high - low
    step, end = span / F(15), np.where(high < -low, low, high)
    best_d, best_m = (step, low) if has_min else (end, end)
    least = np.full(x.shape[1], np.inf, F)
    for guess in range(16 if has_min else 8):
        other, this = UNCOVERED[guess // 4], UNCOVERED[guess % 4]
        if has_min:
            d, m = (span - step * (other + this)) / F(15), low + step * other
        else:
            d = end / (this - F(8) if guess < 4 else F(7) - this)
            m = d * F(-8)
        for _ in range(2):
            d, m = fitted(x, d, m, has_min)
        difference = x - (d * codes(x, d, m) + m)
        error = total(difference * difference)
        better = error < least
        least = np.where(better, error, least)
        best_d, best_m = np.where(better, d, best_d), np.where(better, m, best_m)
    return best_d, best_m


def oracle(x, dtype):
    """The bytes of rows `x [rows, k]`."""
    blocks = x.reshape(-1, 32).T
    if dtype == "Q8_0":
        scale = halves(d := np.abs(blocks).max(0) / F(127))
        parts = [scale[:, None].view(np.uint8), np.rint(blocks * inverse(d)).T.astype(np.int8).view(np.uint8)]
    else:
        d, m = search(blocks, dtype == "Q4_1")
        heads = [halves(d), halves(m)] if dtype == "Q4_1" else [halves(d)]
        d = heads[0].astype(F)
        q = codes(blocks, d, heads[1].astype(F) if dtype == "Q4_1" else d * F(-8)).T.astype(np.uint8)
        parts = [head[:, None].view(np.uint8) for head in heads] + [q[:, :16] | q[:, 16:] << 4]
    return np.concatenate(parts, 1).reshape(len(x), -1)


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=40)
@given(
    rows=st.integers(1, 3),
    blocks=st.integers(1, 35),
    scale=st.sampled_from([1e-8, 1e-3, 0.02, 1.0, 300.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bytes(dtype, rows, blocks, scale, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, 32 * blocks)) * scale + scale * rng.choice([0, 0, 2])).astype(F)
    x[rng.random(x.shape) < rng.choice([0, 0.1, 1], p=[0.5, 0.4, 0.1])] = 0
    np.testing.assert_array_equal(_core.quantize(x, dtype), oracle(x, dtype))


@pytest.mark.parametrize(("dtype", "most"), [("Q8_0", 1.0), ("Q4_0", 0.9), ("Q4_1", 0.8)])
def test_the_error_beside_plain_rounding(dtype, most):
    x = (np.random.default_rng(0).standard_normal((50, 768)) * 0.02).astype(F)
    kind = gguf.GGMLQuantizationType[dtype]
    found, plain = _core.quantize(x, dtype), gguf.quants.quantize(x, kind)
    errors = [np.square(gguf.quants.dequantize(data, kind) - x).sum() for data in (found, plain)]
    assert errors[0] <= most * errors[1]
    if dtype == "Q8_0":
        np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_blocks_cannot_hold(dtype):
    x = np.ones((2, 64), F)
    for bad in (np.nan, np.inf, 3e38):
        x[1, 40] = bad
        with pytest.raises(ValueError, match=r"found .* of row 1, expected finite numbers that float16 has"):
            _core.quantize(x, dtype)
    with pytest.raises(ValueError, match="rows of 48, expected a multiple of 32"):
        _core.quantize(np.ones((2, 48), F), dtype)
    assert _core.quantize(np.ones((0, 64), F), dtype).shape[0] == 0


def test_another_type():
    with pytest.raises(ValueError, match="Q8_0, Q4_0 or Q4_1"):
        _core.quantize(np.ones((1, 256), F), "Q4_K")
