"""llmcore.ops as its users see it: shapes, dtypes, errors."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from llmcore import ops


def test_matmul_broadcasts_like_numpy():
    rng = np.random.default_rng(0)
    for a, b in [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (7, 4, 5)), ((0, 3, 4), (4, 5))]:
        a, b = rng.standard_normal(a), rng.standard_normal(b)
        out = ops.matmul(a, b)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, a @ b, atol=1e-5)


def test_inputs_are_left_alone():
    x = np.ones((2, 3), np.float32)
    for op in (ops.softmax, ops.log_softmax, ops.gelu, ops.rope, ops.layer_norm):
        op(x[:, :2])
    assert (x == 1).all()


def test_lists_integers_scalars_and_strided_arrays_are_taken():
    np.testing.assert_allclose(ops.softmax([0, 0]), [0.5, 0.5])
    assert ops.relu(-3).shape == ()
    x = np.arange(24, dtype=np.float64).reshape(4, 6)[::2, ::-3]
    np.testing.assert_allclose(ops.softmax(x), reference.softmax(x), atol=1e-6)


def test_attention_in_two_axes_is_one_head():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((5, 8)) for _ in range(3))
    out = ops.attention(q, k, v, causal=True)
    np.testing.assert_allclose(out, reference.attention(q[None], k[None], v[None], causal=True)[0], atol=1e-5)


def test_attention_over_batches_heads_and_values_of_another_width():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(s) for s in [(2, 3, 6, 5, 8), (2, 3, 2, 9, 8), (2, 3, 2, 9, 13)])
    mask = rng.random((2, 1, 1, 5, 9)) < 0.5
    out = ops.attention(q, k, v, mask=mask)
    assert out.shape == (2, 3, 6, 5, 13)
    np.testing.assert_allclose(out, reference.attention(q, k, v, mask=mask), atol=1e-5)
    np.testing.assert_allclose(ops.attention_probs(q, k).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: ops.matmul(x, np.ones((4, 2))), ValueError, ["b", "(4, 2)", "3"]),
        (lambda x: ops.matmul(np.ones((2, 1, 3)), np.ones((3, 3, 2))), ValueError, ["b", "(3,)"]),
        (lambda x: ops.softmax(x, axis=2), ValueError, ["axis", "2"]),
        (lambda x: ops.softmax(3.0), ValueError, ["x", "1 axes"]),
        (lambda x: ops.layer_norm(x, np.ones(4)), ValueError, ["weight", "(4,)", "(3,)"]),
        (lambda x: ops.rms_norm(x * 1j), TypeError, ["x", "complex"]),
        (lambda x: ops.gelu("a"), TypeError, ["x", "real numbers"]),
        (lambda x: ops.gelu(x, approximate="cubic"), ValueError, ["approximate", "cubic"]),
        (lambda x: ops.gated("mish", x, x), ValueError, ["activation", "mish", "silu"]),
        (lambda x: ops.gated("silu", x, x[:1]), ValueError, ["up", "(1, 3)"]),
        (lambda x: ops.rope(x), ValueError, ["x", "3", "even"]),
        (lambda x: ops.rope(np.ones((2, 4)), [0]), ValueError, ["positions", "2 integers"]),
        (lambda x: ops.attention(x, x[:, :2], x), ValueError, ["k", "(2, 2)"]),
        (lambda x: ops.attention(x, x, x[:1]), ValueError, ["v", "(1, 3)"]),
        (lambda x: ops.attention(x, x[:1], x[:1], causal=True), ValueError, ["2 queries", "1"]),
        (lambda x: ops.attention(x, x, x, mask=np.ones(4)), ValueError, ["mask", "(4,)", "(2, 2)"]),
        (lambda x: ops.attention(x, x, x, window=0), ValueError, ["window", "0"]),
        (lambda x: ops.attention(*[np.ones((2, 0))] * 3), ValueError, ["q", "(2, 0)"]),
        (lambda x: ops.attention(*[np.ones((h, 2, 4)) for h in (4, 3, 3)]), ValueError, ["k", "(3, 2, 4)"]),
    ],
)
def test_errors_say_what_was_found(call, error, words):
    with pytest.raises(error) as raised:
        call(np.ones((2, 3)))
    assert all(word in str(raised.value) for word in words), str(raised.value)
