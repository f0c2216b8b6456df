"""Every backward kernel against the oracle, the same bits on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import SEEDS, close, normal, on_all_isas

import reference
import reference_grad
from llmcore import _core, gradients, ops

lenient = settings(max_examples=40)


def all_isas(function, *args, **kwargs) -> list[np.ndarray]:
    """Several results, each the same bits on every instruction set."""
    count = len(function(*args, **kwargs))
    return [on_all_isas(lambda i=i: function(*args, **kwargs)[i]) for i in range(count)]


@lenient
@given(*[st.sampled_from([0, 1, 3, 13, 16, 33, 70])] * 2, st.sampled_from([0, 1, 12, 65, 130]), SEEDS)
def test_matmul(m, n, k, seed):
    a, b, dout = normal(seed, m, k), normal(seed + 1, k, n), normal(seed + 2, m, n)
    da, db = all_isas(gradients.matmul, a, b, dout)
    close(da, reference.double(dout) @ b.T, 2e-5)
    close(db, reference.double(a).T @ dout, 2e-5)


def rounded(x: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


@lenient
@given(*[st.sampled_from([1, 3, 13, 16, 33, 70])] * 2, st.sampled_from([1, 2, 12, 65, 600]), SEEDS)
def test_matmul_in_bfloat16_is_that_of_rounded_factors(m, n, k, seed):
    a, b, dout = normal(seed, m, k), normal(seed + 1, k, n), normal(seed + 2, m, n)
    out = on_all_isas(ops.matmul, a, b, precision="bfloat16")
    close(out, reference.double(rounded(a)) @ rounded(b), 1e-5 + 1e-7 * k)
    da, db = all_isas(gradients.matmul, a, b, dout, precision="bfloat16")
    close(da, reference.double(rounded(dout)) @ rounded(b).T, 2e-5)
    close(db, reference.double(rounded(a)).T @ rounded(dout), 2e-5)


@lenient
@given(st.integers(0, 4), st.sampled_from([1, 2, 16, 37]), st.sampled_from([0.0, 0.1, 1.0]), SEEDS)
def test_cross_entropy(rows, classes, smoothing, seed):
    logits = normal(seed, rows, classes, scale=3)
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    labels[seed % 3 :: 3] = gradients.IGNORED
    loss = gradients.cross_entropy(logits, labels, label_smoothing=smoothing)[0]
    assert loss == pytest.approx(reference.cross_entropy(logits, labels, smoothing), abs=1e-5)
    gradient = on_all_isas(lambda: gradients.cross_entropy(logits, labels, label_smoothing=smoothing)[1])
    close(gradient, reference_grad.cross_entropy_backward(logits, labels, smoothing), 1e-6)
    assert not gradient[labels == gradients.IGNORED].any()


def test_cross_entropy_divides_by_what_it_is_told():
    logits = normal(0, 6, 9)
    labels = np.array([1, 2, gradients.IGNORED, 8, 0, 0])
    loss, gradient = gradients.cross_entropy(logits, labels)
    half_loss, half = gradients.cross_entropy(logits, labels, denominator=10)
    assert half_loss == pytest.approx(loss / 2)
    np.testing.assert_allclose(half, gradient / 2, rtol=1e-6)
    nothing, zeros = gradients.cross_entropy(logits, [gradients.IGNORED] * 6)
    assert nothing == 0 and not zeros.any()


@lenient
@given(st.sampled_from([0, 1, 5, 64, 65, 200]), st.sampled_from([3, 15, 16, 17, 100, 577]), SEEDS)
def test_norms(rows, width, seed):
    x, weight, dy = normal(seed, rows, width) + 1, normal(seed + 1, width), normal(seed + 2, rows, width)
    found = all_isas(gradients.layer_norm, x, weight, dy, eps=1e-2)
    for actual, expected in zip(
        found, reference_grad.layer_norm_backward(dy, x, weight, 0, 1e-2), strict=True
    ):
        close(actual, expected, 1e-4)
    found = all_isas(gradients.rms_norm, x, weight, dy, eps=1e-6)
    for actual, expected in zip(found, reference_grad.rms_norm_backward(dy, x, weight, 1e-6), strict=True):
        close(actual, expected, 1e-4)


@lenient
@given(st.sampled_from(sorted(reference.ACTIVATIONS)), st.integers(0, 40), st.sampled_from([1, 4]), SEEDS)
def test_activations(name, size, scale, seed):
    # relu has no slope at 0.
    x, dy = normal(seed, 2, size, scale=scale), normal(seed + 1, 2, size)
    x = np.where(np.abs(x) < 1e-3, np.float32(0.5), x)
    close(
        on_all_isas(gradients.activation, name, x, dy), reference_grad.activation_backward(dy, x, name), 2e-6
    )
    up = normal(seed + 2, 2, size)
    found = all_isas(gradients.gated, name, x, up, dy)
    for actual, expected in zip(found, reference_grad.gated_backward(dy, x, up, name), strict=True):
        close(actual, expected, 5e-6)


def test_activations_far_out_are_flat_or_straight():
    x = np.array([-np.inf, -1e30, -200, 200, 1e30, np.inf], np.float32)
    for name in reference.ACTIVATIONS:
        slope = on_all_isas(gradients.activation, name, x, np.ones_like(x))
        right = 0 if name in ("tanh", "sigmoid") else 1
        np.testing.assert_allclose(slope, [0] * 3 + [right] * 3, atol=1e-20, err_msg=name)
        if name != "relu":
            assert np.isnan(gradients.activation(name, np.full(3, np.nan), np.ones(3))).all(), name


@lenient
@given(st.integers(0, 30), st.integers(1, 2), st.sampled_from([2, 6, 34, 64]), SEEDS)
def test_rope_turns_back(time, heads, dim, seed):
    dy = normal(seed, heads, time, dim)
    positions = np.random.default_rng(seed).integers(0, 5000, time)
    close(on_all_isas(gradients.rope, dy, positions), reference_grad.rope_backward(dy, positions), 2e-6)


@lenient
@given(st.integers(0, 300), st.sampled_from([1, 16, 63, 130]), st.integers(1, 20), SEEDS)
def test_embedding(count, width, rows, seed):
    dy = normal(seed, count, width)
    indices = np.random.default_rng(seed).integers(0, rows, count)
    expected = np.zeros((rows, width), np.float32)
    for index, row in zip(indices, dy, strict=True):
        expected[index] += row
    np.testing.assert_array_equal(on_all_isas(gradients.embedding, indices, dy, rows), expected)


@lenient
@given(st.sampled_from([0, 1, 64, 65, 500]), st.sampled_from([1, 16, 63, 200]), SEEDS)
def test_row_sums(rows, width, seed):
    x, out = normal(seed, rows, width), normal(seed + 1, width)

    def add():
        total = out.copy()
        _core.add_row_sums(x, total)
        return total

    close(on_all_isas(add), out + x.sum(0, dtype=np.float64), 1e-5)


@st.composite
def attention_calls(draw):
    seed = draw(SEEDS)
    keys = draw(st.sampled_from([0, 1, 3, 16, 63, 64, 65, 130, 200]))
    time = draw(st.integers(0, keys) | st.just(keys))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3]))
    d = draw(st.sampled_from([1, 8, 24, 64, 80]))
    q = normal(seed, kv_heads * group, time, d, scale=draw(st.sampled_from([1, 4])))
    k, v = normal(seed + 1, kv_heads, keys, d), normal(seed + 2, kv_heads, keys, d)
    dout = normal(seed + 3, *q.shape)
    causal = draw(st.booleans())
    window = draw(st.none() | st.integers(1, 100)) if causal else None
    return (q, k, v, dout), {"causal": causal, "scale": draw(st.sampled_from([None, 0.3])), "window": window}


@lenient
@given(attention_calls())
def test_attention(call):
    (q, k, v, dout), options = call
    found = all_isas(gradients.attention, q, k, v, dout, **options)
    expected = reference_grad.attention_backward(dout, q, k, v, **options)
    # Where a query sees one key, dp − Δ is what rounding leaves of two equal numbers.
    largest = max(np.abs(x).max(initial=1) for x in expected)
    for actual, slope in zip(found, expected, strict=True):
        close(actual, slope, 2e-5 * largest)


@lenient
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 100)), max_size=4), st.booleans(), SEEDS)
def test_sequences_side_by_side_are_sequences_alone(lengths, causal, seed):
    """Packed rows of any lengths: the bits of each sequence are those that it has alone."""
    heads, kv_heads, d = 2, 1, 24
    spans, rows, keys = [], 0, 0
    for more, time in lengths:
        spans.append((rows, rows + time, keys, keys + time + more))
        rows, keys = rows + time + 1, keys + time + more + 2
    q, k, v = (
        normal(seed + i, n, h, d)
        for i, (n, h) in enumerate([(rows, heads), (keys, kv_heads), (keys, kv_heads)])
    )
    dout = normal(seed + 3, rows, heads, d)

    def run(spans, q, k, v, dout):
        out, dq, dk, dv = (np.full(x.shape, 7, np.float32) for x in (q, q, k, v))
        log_sums = np.full(q.shape[:2], 7, np.float32)
        _core.attention_rows(q, k, v, spans, 0.2, causal, None, out, log_sums)
        _core.attention_backward(q, k, v, spans, 0.2, causal, None, out, log_sums, dout, dq, dk, dv)
        return out, log_sums, dq, dk, dv

    together = run(spans, q, k, v, dout)
    for a, b, c, e in spans:
        alone = run([(0, b - a, 0, e - c)], q[a:b], k[c:e], v[c:e], dout[a:b])
        parts = [x[a:b] for x in together[:3]] + [x[c:e] for x in together[3:]]
        for part, one in zip(parts, alone, strict=True):
            np.testing.assert_array_equal(part, one)
        heads_first = [x.swapaxes(0, 1) for x in (q[a:b], k[c:e], v[c:e])]
        cached = ops.attention(*heads_first, causal=causal, scale=0.2)
        np.testing.assert_array_equal(alone[0].swapaxes(0, 1), cached)
        with np.errstate(divide="ignore"):
            scores = reference.attention_scores(*heads_first[:2], causal=causal, scale=0.2)
            close(alone[1], np.log(np.exp(scores).sum(-1)).T, 1e-5)
    # What belongs to no sequence is left alone.
    outside = np.setdiff1d(np.arange(keys), [i for *_, c, e in spans for i in range(c, e)])
    assert (together[3][outside] == 7).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: gradients.matmul(x, x, x), ["b", "(2, 3)"]),
        (lambda x: gradients.matmul(x, x.T, x), ["dout", "(2, 3)", "(2, 2)"]),
        (lambda x: gradients.matmul(x, x.T, x @ x.T, precision="float16"), ["precision", "float16"]),
        (lambda x: gradients.cross_entropy(x, [0, 3]), ["labels", "3", "0 to 2"]),
        (lambda x: gradients.cross_entropy(x, [0, -1]), ["labels", "-1", "-100"]),
        (lambda x: gradients.cross_entropy(x, [0]), ["labels", "2 integers"]),
        (lambda x: gradients.cross_entropy(x, [0, 1], label_smoothing=2), ["label_smoothing", "2"]),
        (lambda x: gradients.layer_norm(x, None, x.T), ["dy", "(3, 2)", "(2, 3)"]),
        (lambda x: gradients.activation("mish", x, x), ["activation", "mish"]),
        (lambda x: gradients.gated("silu", x, x, x.T), ["dout", "(3, 2)"]),
        (lambda x: gradients.attention(x, x, x, x.T), ["dout", "(3, 2)"]),
        (lambda x: gradients.attention(x, x, x[:, :2], x), ["v", "2"]),
        (lambda x: gradients.rope(x), ["dy", "3", "even"]),
        (lambda x: gradients.embedding([0, 5], x, 5), ["indices", "5", "0 to 4"]),
    ],
)
def test_errors_say_what_was_found(call, words):
    with pytest.raises(ValueError) as raised:
        call(np.ones((2, 3)))
    assert all(word in str(raised.value) for word in words), str(raised.value)
