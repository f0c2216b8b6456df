"""Every search that the reference implementation ran on the tiny models, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmcore

TINY = Path(__file__).parents[1] / "data" / "tiny"
MODELS = ["gpt2", "llama"]


def fixtures(model: str) -> dict:
    return json.loads((TINY / model / "expected.json").read_text())


CASES = [(model, case) for model in MODELS for case, value in fixtures(model).items() if "kwargs" in value]


@pytest.fixture(scope="module")
def models():
    return {name: llmcore.load(TINY / name, dtype="float32") for name in MODELS}


def check(completions, prompts, rows, scores):
    """Compares completions with padded rows of prompt and continuation, in which a prompt may begin late."""
    assert len(completions) == len(rows)
    per_prompt = len(rows) // len(prompts)
    for i, (completion, row) in enumerate(zip(completions, rows, strict=True)):
        prompt = prompts[i // per_prompt]
        start = max(map(len, prompts))
        assert row[start - len(prompt) : start] == prompt
        generated, filling = row[start:][: len(completion.ids)], row[start + len(completion.ids) :]
        assert completion.ids == generated
        assert len(set(filling)) <= 1
        assert completion.finish_reason == ("stop" if filling else completion.finish_reason)
        if scores is not None:
            assert completion.score == pytest.approx(scores[i], abs=1e-4)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_one_prompt(models, name, case):
    expected = fixtures(name)[case]
    prompt = fixtures(name)["greedy"]["sequences"][0][:29]
    completions = models[name].generate(prompt, **expected["kwargs"])
    if not isinstance(completions, list):
        completions = [completions]
    check(completions, [prompt], expected["sequences"], expected["sequences_scores"])


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_beam_searches(models, name):
    expected = fixtures(name)["beam3_batch"]
    results = models[name].generate(expected["prompts"], **expected["batch_kwargs"])
    completions = [completion for result in results for completion in result]
    check(completions, expected["prompts"], expected["sequences"], expected["sequences_scores"])


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_greedy_searches(models, name):
    expected = fixtures(name)["greedy_left_padded"]
    new = len(expected["sequences"][0]) - max(map(len, expected["prompts"]))
    completions = models[name].generate(expected["prompts"], max_new_tokens=new)
    check(completions, expected["prompts"], expected["sequences"], None)
