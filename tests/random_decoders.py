"""Strategies that draw decoders: every composition of every block."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

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

ACTS = ["gelu", "gelu_new", "quick_gelu", "silu", "relu", "tanh"]
NORMS = st.sampled_from([LayerNorm(1e-5), LayerNorm(1e-5, bias=False), RmsNorm(1e-6)])


@st.composite
def attentions(draw) -> Attention:
    kv_heads = draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([1, 3, 8, 16, 20]))
    turned = draw(st.integers(0, head_dim // 2))
    frequencies = tuple(float(np.float32(0.7**i)) for i in range(turned))
    return Attention(
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=head_dim,
        bias=draw(st.booleans()),
        out_bias=draw(st.sampled_from([None, True, False])),
        rope=Rope(frequencies, draw(st.sampled_from([1.0, 1.25]))) if turned else None,
        scale=draw(st.sampled_from([None, 0.2])),
    )


@st.composite
def decoders(draw, positions: int, least_width: int = 1) -> Decoder:
    """Decoders with so many learned positions, or none."""
    act = st.sampled_from(ACTS)
    hidden = st.integers(1, 40)
    mlps = st.one_of(
        st.builds(Mlp, hidden, act, st.booleans()), st.builds(GatedMlp, hidden, act, st.booleans())
    )
    layer = draw(
        st.builds(
            lambda a, b, attention, mlp: Serial(Residual(a, attention), Residual(b, mlp)),
            NORMS,
            NORMS,
            attentions(),
            mlps,
        )
    )
    vocab = draw(st.integers(1, 60))
    embed = Embed(vocab, draw(st.integers(least_width, 40)), draw(st.sampled_from([None, positions])))
    head = draw(st.sampled_from([Tied(), Linear(vocab), Linear(vocab, bias=True)]))
    return Decoder(embed, Repeat(layer, draw(st.integers(0, 3))), draw(NORMS), head)
