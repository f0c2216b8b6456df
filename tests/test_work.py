"""What passes execute, against a count by hand, and limits that a machine may have."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmcore
from llmcore.work import Limits, Work

TINY = Path(__file__).parent / "data" / "tiny"


def test_gpt2():
    model = llmcore.load(TINY / "gpt2")
    config, vocabulary = model.config, model.core.vocab_size
    width, layers = config.n_embd, config.n_layer
    layer, head = 12 * width * width, vocabulary * width
    work = Work.of(model)
    assert work.layers == (layer,) * layers
    assert work.weight_bytes == 4 * (layers * layer + head)
    tokens = 5
    every = (layers - 1) * layer + 2 * width * width
    pairs = (layers - 1) * tokens * (tokens + 1) // 2 + tokens
    expected = 2 * (tokens * every + 10 * width * width + head) + 4 * pairs * width
    assert work.prefill_operations(tokens) == expected
    assert work.step_bytes(7) == work.weight_bytes + 7 * layers * 2 * 4 * width


def test_llama():
    """Fewer heads of keys and values, and a head of its own: no step reads the embedding, but for a row."""
    model = llmcore.load(TINY / "llama")
    config, work = model.config, Work.of(model)
    width, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    layer = 2 * width * (q + kv) + 3 * width * inner
    assert work.layers == (layer,) * config.num_hidden_layers
    assert (work.last_kv, work.attention_width) == (2 * width * kv, q)
    assert work.head == config.vocab_size * width
    assert work.weight_bytes == 4 * (config.num_hidden_layers * layer + work.head)


def test_quantised_weights_are_read_as_they_are_kept(smollm2_path):
    work = Work.of(llmcore.load(smollm2_path))
    weights = sum(work.layers) + work.head
    assert 20 / 32 < work.weight_bytes / weights < 1.2 * 20 / 32
    assert work.precision == "int8"
    assert Work.of(llmcore.load(smollm2_path, dtype="float32")).precision == "float32"


def test_limits():
    limits = Limits.measure(1)
    for limit in (*map(limits.operations, ("float32", "bfloat16", "int8")), limits.memory):
        assert 1e7 < limit < 1e15
    with pytest.raises(ValueError, match="threads: found 0, expected 1 to 1024"):
        Limits.measure(0)
