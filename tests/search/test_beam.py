"""Beam search against its NumPy oracle, over the options that the fixtures do not cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from beam_reference import beam_search
from hypothesis import given, settings
from hypothesis import strategies as st

import llmcore

GPT2 = Path(__file__).parents[1] / "data" / "tiny" / "gpt2"
VOCAB = 160


@pytest.fixture(scope="module")
def model():
    return llmcore.load(GPT2, dtype="float32")


@pytest.fixture(scope="module")
def logits_after(model):
    seen = {}

    def after(ids):
        key = tuple(ids)
        if key not in seen:
            seen[key] = model.logits(ids)[-1]
        return seen[key].copy()

    return after


options = st.fixed_dictionaries(
    {
        "num_beams": st.sampled_from([2, 4, 6]),
        "num_beam_groups": st.sampled_from([1, 1, 2]),
        "diversity_penalty": st.sampled_from([0.0, 0.3, 5.0]),
        "max_new_tokens": st.integers(1, 10),
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]),
        "early_stopping": st.sampled_from([False, True, "never"]),
        # Few, or so many that most of the best continuations end.
        "eos_token_id": st.one_of(
            st.lists(st.integers(0, VOCAB - 1), max_size=4, unique=True),
            st.lists(st.integers(0, VOCAB - 1), min_size=50, max_size=64, unique=True),
        ),
    }
)
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)


def check(completions, expected):
    assert [completion.ids for completion in completions] == [ids for ids, _ in expected]
    assert [completion.score for completion in completions] == pytest.approx(
        [score for _, score in expected], abs=1e-4
    )


# The same draws every time: the oracle's logarithms differ in their last bits, which may reorder near equals.
@settings(max_examples=400, deadline=None, derandomize=True)
@given(prompt=prompts, options=options)
def test_equals_the_oracle(model, logits_after, prompt, options):
    expected = beam_search(logits_after, prompt, num_return_sequences=options["num_beams"], **options)
    check(model.generate(prompt, num_return_sequences=len(expected), **options), expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(prompt=prompts, options=options)
def test_processors_act_on_log_probabilities_without_renormalising(model, logits_after, prompt, options):
    def process(ids, scores):
        scores[7] += np.float32(2.5)
        occurred = np.unique(ids)
        row = scores[occurred]
        scores[occurred] = np.where(row < 0, row * np.float32(1.4), row / np.float32(1.4))
        used, counts = np.unique(np.array(ids[len(prompt) :], int), return_counts=True)
        scores[used] -= np.float32(0.25) + np.float32(0.5) * counts.astype(np.float32)
        scores[[3, 99]] = -np.inf
        return scores

    expected = beam_search(
        logits_after, prompt, num_return_sequences=options["num_beams"], process=process, **options
    )
    completions = model.generate(
        prompt,
        num_return_sequences=len(expected),
        logit_bias={7: 2.5},
        repetition_penalty=1.4,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        suppress_tokens=[3, 99],
        **options,
    )
    check(completions, expected)


def test_one_group_is_plain_beam_search_bit_for_bit(model):
    plain = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}
    grouped = model.generate([5, 6, 7], num_beam_groups=1, diversity_penalty=9.0, **plain)
    assert grouped == model.generate([5, 6, 7], **plain)


def test_several_sequences_without_sampling_or_beams_are_the_best_of_as_many_beams(model):
    few = {"num_return_sequences": 3, "max_new_tokens": 8}
    assert model.generate([1, 2], **few) == model.generate([1, 2], num_beams=3, **few)
