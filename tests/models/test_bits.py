"""One numeric truth: a sequence's logits are the same bits however and wherever they are computed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmcore
from llmcore import _core

TINY = Path(__file__).parents[1] / "data" / "tiny"
MODELS = ["gpt2", "llama"]
VOCAB = 160


KV_DTYPES = ["float32", "bfloat16", "int8"]


@pytest.fixture(scope="module", params=[(model, kv) for model in MODELS for kv in KV_DTYPES], ids="-".join)
def models(request):
    """The same model limited to one thread, and not limited."""
    model, kv_cache_dtype = request.param
    return [
        llmcore.load(TINY / model, dtype="float32", kv_cache_dtype=kv_cache_dtype, threads=threads).core
        for threads in (1, None)
    ]


@pytest.fixture(autouse=True)
def restored_isa():
    before = _core.isa()
    yield
    _core.set_isa(before)


def sequences(longest: int = 120) -> st.SearchStrategy[np.ndarray]:
    ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=longest)
    return ids.map(lambda ids: np.array(ids, np.uint32))


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


@settings(max_examples=20)
@given(
    batch=st.lists(sequences(), min_size=1, max_size=4),
    chunk=st.sampled_from([1, 2, 3, 16, 63, 64, 65, 512]),
    isa=st.sampled_from(_core.available_isas()),
    unlimited=st.booleans(),
)
def test_the_same_bits(models, batch, chunk, isa, unlimited):
    _core.set_isa("portable")
    truth = [models[0].forward([ids])[0][0] for ids in batch]
    _core.set_isa(isa)
    model = models[unlimited]
    for ids, expected in zip(batch, truth, strict=True):
        (logits,), _ = model.forward([ids], chunk=chunk)
        np.testing.assert_array_equal(bits(logits), bits(expected))
    # A pass that is looked at takes the whole batch at once.
    together, _ = model.forward(batch, capture=["embed"])
    for logits, expected in zip(together, truth, strict=True):
        np.testing.assert_array_equal(bits(logits), bits(expected))


def digest(model: str) -> str:
    """A digest of the logits of a fixed batch."""
    rng = np.random.default_rng(0)
    batch = [rng.integers(0, VOCAB, n).astype(np.uint32) for n in (120, 1, 64, 65)]
    digest = hashlib.sha256()
    for kv_cache_dtype in KV_DTYPES:
        core = llmcore.load(TINY / model, kv_cache_dtype=kv_cache_dtype).core
        together, _ = core.forward(batch, capture=["embed"])
        digest.update(b"".join(logits.tobytes() for logits in together))
    return digest.hexdigest()


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("isa", _core.available_isas())
def test_processes_of_any_threads_and_instruction_set(threads, isa):
    code = f"import json, test_bits; print(json.dumps([test_bits.digest(m) for m in {MODELS}]))"
    env = os.environ | {
        "LLMCORE_THREADS": str(threads),
        "LLMCORE_ISA": isa,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    printed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == [digest(model) for model in MODELS]


@pytest.mark.parametrize("kv_cache_dtype", KV_DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_forked_sequences_are_those_of_their_own(model, kv_cache_dtype):
    """Beams fork, write into shared blocks, and end; their scores are those of passes of their own."""
    loaded = llmcore.load(TINY / model, kv_cache_dtype=kv_cache_dtype)
    prompt = np.random.default_rng(1).integers(0, VOCAB, 60).tolist()
    found = loaded.generate(
        prompt, num_beams=4, num_return_sequences=4, max_new_tokens=20, length_penalty=0.0, eos_token_id=[]
    )
    assert len({tuple(beam.ids) for beam in found}) == 4
    for beam in found:
        logprobs = loaded.score(prompt + beam.ids).logprobs[len(prompt) - 1 :]
        assert logprobs.sum(dtype=np.float64) == pytest.approx(beam.score, abs=1e-4)


def test_probs_are_what_the_pass_computes():
    """The rounding of keys is seen in what hooks capture, and nothing else is."""
    ids = np.random.default_rng(2).integers(0, VOCAB, 40)
    exact, rounded = (
        llmcore.load(TINY / "llama", kv_cache_dtype=dtype).forward(ids, "layers.0.attn.*")[1]
        for dtype in ("float32", "int8")
    )
    np.testing.assert_array_equal(exact["layers.0.attn.q"], rounded["layers.0.attn.q"])
    seen = np.tri(40, dtype=bool)
    scores = [captured["layers.0.attn.scores"][:, seen] for captured in (exact, rounded)]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.3
    np.testing.assert_allclose(rounded["layers.0.attn.probs"].sum(-1), 1, rtol=1e-5)
