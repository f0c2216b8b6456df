"""Tiny random models against what Transformers computes: logits, hidden states, attentions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcore
from llmcore import Score

TINY = Path(__file__).parents[1] / "data" / "tiny"
MODELS = ["gpt2", "llama"]


@pytest.fixture(scope="module", params=MODELS)
def tiny(request):
    folder = TINY / request.param
    expected = load_file(folder / "expected.safetensors")
    rows = [
        ids[mask.astype(bool)].tolist()
        for ids, mask in zip(expected["input_ids"], expected["attention_mask"], strict=True)
    ]
    return llmcore.load(folder, dtype="float32"), expected, rows


def test_logits(tiny):
    model, expected, rows = tiny
    for i, (ids, logits) in enumerate(zip(rows, model.logits(rows), strict=True)):
        np.testing.assert_allclose(logits, expected["logits"][i, : len(ids)], rtol=0, atol=2e-5)


def test_hidden_states(tiny):
    model, expected, rows = tiny
    layers = model.config.n_layer if hasattr(model.config, "n_layer") else model.config.num_hidden_layers
    # The last hidden state of Transformers is the one after the last norm.
    paths = ["embed", *(f"layers.{i}" for i in range(layers - 1)), "norm"]
    for i, ids in enumerate(rows):
        _, seen = model.forward(ids, capture=["embed", "layers.*", "norm"])
        for n, path in enumerate(paths):
            np.testing.assert_allclose(
                seen[path], expected[f"hidden_states.{n}"][i, : len(ids)], rtol=0, atol=5e-5, err_msg=path
            )


def test_attentions(tiny):
    model, expected, rows = tiny
    for i, ids in enumerate(rows):
        n = len(ids)
        _, seen = model.forward(ids, capture=["layers.*.attn.probs"])
        for layer, probs in enumerate(seen.values()):
            np.testing.assert_allclose(
                probs, expected[f"attentions.{layer}"][i, :, :n, :n], rtol=0, atol=5e-5
            )


def test_one_path_may_be_captured_by_itself(tiny):
    model, _, rows = tiny
    _, seen = model.forward(rows[0], capture="layers.*")
    assert list(seen) == ["layers.0", "layers.1"]


def test_capturing_changes_no_bits(tiny):
    model, _, rows = tiny
    plain = model.logits(rows[0])
    hooked, seen = model.forward(rows[0], capture=model.sites)
    assert sorted(seen) == sorted(model.sites)
    np.testing.assert_array_equal(hooked, plain)


def test_a_pattern_that_names_no_site(tiny):
    model, _, rows = tiny
    with pytest.raises(ValueError, match=r"layers\.9\.attn"):
        model.forward(rows[0], capture=["layers.9.attn"])


def test_ids_are_checked(tiny):
    model, _, _ = tiny
    for ids in ([160], [-1], [1 << 40], [0.5]):
        with pytest.raises(ValueError, match=r"ids: found"):
            model.logits(ids)
    with pytest.raises(TypeError, match="ids: found list_iterator, expected token ids"):
        model.logits(iter([1]))
    with pytest.raises(ValueError, match="at most"):
        model.logits([0] * (model.max_positions + 1))


def test_a_perplexity_beyond_all_numbers_is_infinite():
    assert Score([1, 2], np.array([-1000.0], np.float32)).perplexity == np.inf


def test_score_sums_the_log_probabilities(tiny):
    model, _, rows = tiny
    ids = rows[0]
    logits = model.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = logprobs[np.arange(len(ids) - 1), ids[1:]]
    score = model.score(ids)
    np.testing.assert_allclose(score.logprobs, expected, rtol=0, atol=1e-5)
    assert score.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-5)


def test_a_score_beyond_the_context_goes_on_in_windows(tiny):
    model, _, rows = tiny
    n = model.max_positions
    ids = (rows[0] * n)[: 2 * n + 7]
    logprobs = model.score(ids).logprobs
    assert logprobs.shape == (len(ids) - 1,)
    np.testing.assert_array_equal(logprobs[n - 1 : 2 * n - 2], model.score(ids[n - 1 : 2 * n - 1]).logprobs)
