"""SmolLM2-135M-Instruct, the real thing, against what Transformers computes from the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import llmcore

EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "smollm2.json").read_text())
PROMPTS = EXPECTED["prompts"]
END = 2


@pytest.fixture(scope="module")
def model(smollm2_path):
    return llmcore.load(smollm2_path, dtype="float32")


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt["text"][:20])
def test_ids(model, prompt):
    assert model.tokenizer.encode(prompt["text"]) == prompt["ids"]
    assert model.tokenizer.decode(prompt["ids"]) == prompt["text"]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt["text"][:20])
def test_logits(model, prompt):
    logits = model.logits(prompt["ids"])[-1].astype(np.float64)
    assert np.argsort(-logits, kind="stable")[: len(prompt["top_ids"])].tolist() == prompt["top_ids"]
    np.testing.assert_allclose(logits[prompt["top_ids"]], prompt["top_logits"], rtol=0, atol=2e-3)
    assert np.logaddexp.reduce(logits) == pytest.approx(prompt["logsumexp"], abs=2e-3)


def test_the_likelihood_of_a_text(model):
    text = EXPECTED["text"]
    assert model.score(text["ids"]).nll == pytest.approx(text["nll"], abs=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt["text"][:20])
def test_greedy(model, prompt):
    completion = model.generate(prompt["text"], max_new_tokens=48)
    assert completion.ids == prompt["greedy"]
    assert completion.text == prompt["greedy_text"].removesuffix("<|im_end|>")
    assert completion.finish_reason == ("stop" if completion.ids[-1] == END else "length")


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt["text"][:20])
def test_beams(model, prompt):
    beams = model.generate(prompt["ids"], num_beams=5, num_return_sequences=5, max_new_tokens=24)
    # What follows an end token is filling.
    expected = [ids[: ids.index(END) + 1] if END in ids else ids for ids in prompt["beam5"]]
    assert [beam.ids for beam in beams] == expected
    assert [beam.score for beam in beams] == pytest.approx(prompt["beam5_scores"], abs=1e-4)


def test_a_batch_is_each_alone(model):
    texts = [prompt["text"] for prompt in PROMPTS]
    together = model.generate(texts, max_new_tokens=12)
    assert [one.ids for one in together] == [model.generate(text, max_new_tokens=12).ids for text in texts]
