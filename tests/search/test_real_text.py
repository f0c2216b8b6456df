"""A real model: what it says, and the text of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmcore

PROMPTS = json.loads((Path(__file__).parents[1] / "data" / "smollm2.json").read_text())["prompts"]


@pytest.fixture(scope="module")
def model(smollm2_path):
    return llmcore.load(smollm2_path, dtype="float32")


@pytest.fixture(params=PROMPTS, ids=[prompt["text"][:12] for prompt in PROMPTS])
def prompt(request):
    return request.param


def test_greedy_search(model, prompt):
    completion = model.generate(prompt["ids"], max_new_tokens=48)
    assert completion.ids == prompt["greedy"]
    assert completion.text == prompt["greedy_text"].removesuffix("<|im_end|>")
    assert completion.finish_reason == ("stop" if len(completion.ids) < 48 else "length")


def test_beam_search(model, prompt):
    completions = model.generate(prompt["ids"], max_new_tokens=24, num_beams=5, num_return_sequences=5)
    for completion, row, score in zip(completions, prompt["beam5"], prompt["beam5_scores"], strict=True):
        assert completion.ids == row[: len(completion.ids)]
        assert set(row[len(completion.ids) :]) <= {2}
        assert completion.score == pytest.approx(score, abs=1e-4)


def test_a_batch_of_texts(model):
    texts = [prompt["text"] for prompt in PROMPTS[:3]]
    completions = model.generate(texts, max_new_tokens=12)
    assert [completion.ids for completion in completions] == [prompt["greedy"][:12] for prompt in PROMPTS[:3]]


def test_a_stop_string_ends_the_text_before_it(model):
    text = PROMPTS[0]["text"]
    whole = model.generate(text, max_new_tokens=20).text
    stop = "ready to st"
    assert stop in whole
    pieces = list(model.stream(text, max_new_tokens=20, stop_strings=["never", stop]))
    completion = model.generate(text, max_new_tokens=20, stop_strings=stop)
    assert completion.text == whole[: whole.index(stop)] == "".join(piece.text for piece in pieces)
    assert completion.finish_reason == pieces[-1].finish_reason == "stop"
    # Of " ready", " to" and " start" only the first space could not become the stop string.
    assert [piece.text for piece in pieces][-3:] == [" ", "", ""]
    beams = model.generate(text, max_new_tokens=20, stop_strings=stop, num_beams=3, num_return_sequences=3)
    assert not any(stop in beam.text for beam in beams)


def test_a_stream_never_shows_half_a_character(model):
    ids = model.tokenizer.encode("👍🏽 naïve 日本")
    forced = iter(ids)

    def force(_, logits):
        logits[next(forced)] = 1e9
        return logits

    pieces = list(model.stream("Say: ", max_new_tokens=len(ids), eos_token_id=[], logits_processor=force))
    assert "".join(piece.text for piece in pieces) == "👍🏽 naïve 日本"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece.text for piece in pieces)
