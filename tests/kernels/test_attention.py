"""Attention over keys and values of every type against the oracle, with equal bits however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import SEEDS, close, lenient, normal, on_all_isas

import reference
from llmcore import ops

DTYPES = ["float32", "bfloat16", "int8"]
KV_DTYPES = st.sampled_from(DTYPES)


@st.composite
def attention_calls(draw):
    seed = draw(SEEDS)
    keys = draw(st.sampled_from([0, 1, 3, 16, 63, 64, 65, 130, 256, 300, 530]))
    time = draw(st.integers(0, min(keys, 30)) | st.just(keys))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 8, 13]))
    d = draw(st.sampled_from([1, 8, 24, 64, 80, 128]))
    q = normal(seed, kv_heads * group, time, d, scale=draw(st.sampled_from([1, 5])))
    k, v = normal(seed + 1, kv_heads, keys, d), normal(seed + 2, kv_heads, keys, d)
    options = {"causal": draw(st.booleans())}
    options["window"] = draw(st.none() | st.integers(1, 100)) if options["causal"] else None
    shape = draw(st.sampled_from([(keys,), (time, keys), (kv_heads * group, time, keys)]))
    rng = np.random.default_rng(seed)
    options["mask"] = draw(
        st.sampled_from([None, rng.random(shape) < 0.7, rng.standard_normal(shape).astype(np.float32)])
    )
    options["kv_dtype"] = draw(KV_DTYPES)
    return q, k, v, options


@lenient
@given(attention_calls())
def test_attention(call):
    q, k, v, options = call
    given = {name: value for name, value in options.items() if name != "kv_dtype"}
    k_stored, v_stored = (reference.stored(x, options["kv_dtype"]) for x in (k, v))
    expected = reference.attention(q, k_stored, v_stored, **given)
    close(on_all_isas(ops.attention, q, k, v, **options), expected, 2e-5)
    scores = on_all_isas(ops.attention_scores, q, k, **options)
    close(scores, reference.attention_scores(q, k_stored, **given), 2e-5)
    probs = on_all_isas(ops.attention_probs, q, k, **options)
    close(probs, reference.attention_probs(q, k_stored, **given), 2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_keys_and_values_are_rounded(dtype):
    q, k, v = (normal(i, 1, 9, 8) for i in range(3))
    exact = ops.attention(q, k, v)
    rounded = ops.attention(q, k, v, kv_dtype=dtype)
    assert 1e-4 < np.abs(exact - rounded).max() < 0.05
    with pytest.raises(
        ValueError, match="kv_dtype: found \"int4\", expected 'float32', 'bfloat16' or 'int8'"
    ):
        ops.attention(q, k, v, kv_dtype="int4")


@lenient
@given(attention_calls(), st.data())
def test_causal_attention_is_the_same_bits_in_any_split(call, data):
    q, k, v, options = call
    time, keys = q.shape[-2], k.shape[-2]
    mask = options["mask"]
    if mask is not None:
        mask = np.broadcast_to(mask, (q.shape[0], time, keys))
    options = {"causal": True, "window": options["window"], "kv_dtype": options["kv_dtype"]}
    whole = ops.attention(q, k, v, mask=mask, **options)
    cut = data.draw(st.integers(0, time))
    for rows, end in ((slice(0, cut), keys - time + cut), (slice(cut, time), keys)):
        part = None if mask is None else mask[:, rows, :end]
        out = ops.attention(q[:, rows], k[:, :end], v[:, :end], mask=part, **options)
        np.testing.assert_array_equal(out.view(np.uint32), whole[:, rows].view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_is_not_touched_by_what_it_does_not_see(dtype):
    q, k, v = (normal(i, 2, 70, 24) for i in range(3))
    clean = ops.attention(q, k, v, causal=True, kv_dtype=dtype)
    k[:, 66:], v[:, 66:] = np.nan, np.inf
    dirty = on_all_isas(ops.attention, q, k, v, causal=True, kv_dtype=dtype)
    np.testing.assert_array_equal(dirty[:, :66], clean[:, :66])
    assert not np.isfinite(dirty[:, 66:]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad, dtype):
    clean, x = normal(1, 3, 40), normal(0, 3, 40)
    x[1, 7] = bad
    assert np.isnan(ops.attention(x, x, x, kv_dtype=dtype)).any()
    assert not np.isfinite(ops.attention(clean, clean, x, kv_dtype=dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_queries_and_few_give_the_same_bits(dtype):
    """Tiles of 48 queries, tiles of 12, and one query whose spans are shared among threads."""
    q, k, v = normal(0, 6, 400, 16), normal(1, 2, 1200, 16), normal(2, 2, 1200, 16)
    whole = on_all_isas(ops.attention, q, k, v, causal=True, kv_dtype=dtype)
    for row in (0, 1, 399):
        end = 1200 - 400 + row + 1
        one = ops.attention(q[:, row : row + 1], k[:, :end], v[:, :end], causal=True, kv_dtype=dtype)
        np.testing.assert_array_equal(one[:, 0].view(np.uint32), whole[:, row].view(np.uint32))
