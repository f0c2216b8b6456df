"""Generation as Python sees it: options, sampling, callables, log-probabilities, streams."""

from __future__ import annotations

import gc
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import llmcore
from llmcore.generation import DEFAULT_MAX_NEW_TOKENS, Options

GPT2 = Path(__file__).parents[1] / "data" / "tiny" / "gpt2"


@pytest.fixture(scope="module")
def model():
    return llmcore.load(GPT2, dtype="float32")


def test_the_call_wins_over_the_checkpoint_and_the_checkpoint_over_the_defaults():
    checkpoint = {
        "temperature": 0.6,
        "do_sample": True,
        "max_length": 99,
        "eos_token_id": [1, 2],
        "vocab_size": 5,
    }
    config = Options.resolve({"temperature": 0.9, "top_k": None}, checkpoint)
    assert (config.temperature, config.do_sample, config.max_length, config.top_k) == (0.9, True, 99, 0)
    assert config.eos_token_id == [1, 2]
    assert config.max_new_tokens is None
    config = Options.resolve({"max_new_tokens": 3}, checkpoint)
    assert (config.max_new_tokens, config.max_length) == (3, None)
    assert Options.resolve({}, {}).max_new_tokens == DEFAULT_MAX_NEW_TOKENS


def test_naming_an_option_of_one_search_chooses_it():
    assert Options.resolve({"top_p": 0.9}, {}).do_sample
    assert not Options.resolve({"top_p": 0.9, "do_sample": False}, {}).do_sample
    assert not Options.resolve({}, {"top_p": 0.9}).do_sample
    assert not Options.resolve({"num_beams": 4}, {"do_sample": True}).do_sample
    assert Options.resolve({"seed": 1}, {}).do_sample
    assert not Options.resolve({"num_beams": 4, "seed": 1}, {"do_sample": True}).do_sample
    assert Options.resolve({"num_beams": 4, "seed": 1, "top_k": 9}, {}).do_sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 3}, r"max_tokens: .*did you mean"),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            r"num_return_sequences: found 3, expected at most num_beams",
        ),
        ({"num_beams": 2, "do_sample": True}, r"num_beams: found 2"),
        ({"temperature": 0.0}, r"temperature: found 0"),
        ({"temperature": "hot"}, r"temperature: found 'hot', expected a number"),
        ({"top_k": -1}, r"top_k: found -1, expected a whole number"),
        ({"max_new_tokens": 0}, r"max_new_tokens: found 0"),
        ({"max_length": 2}, r"max_length: found 2"),
        ({"eos_token_id": [1, "x"]}, r"eos_token_id: found \[1, 'x'\]"),
        ({"early_stopping": "soon"}, r"early_stopping: found 'soon'"),
        ({"logit_bias": {999: 1.0}}, r"logit_bias: found token id 999"),
        ({"logit_bias": {9: float("nan")}}, r"logit_bias: found NaN"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids: found an empty list"),
        ({"stop_strings": "x"}, r"stop_strings: .* without a tokenizer"),
        ({"logits_processor": 3}, r"logits_processor: found"),
        ({"stopping_criteria": ["x"]}, r"stopping_criteria: found"),
    ],
)
def test_options_are_checked_by_name(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate([1, 2], **options)
    with pytest.raises(ValueError, match=message):
        model.stream([1, 2], **options)


@pytest.mark.parametrize("prompt", [[], [160], [-1], [1.5], [0] * 128, [[1], []], [[1], [0] * 200]])
def test_prompts_are_checked(model, prompt):
    with pytest.raises(ValueError, match="prompt"):
        model.generate(prompt)


def test_the_end_of_the_context_is_a_length(model):
    completion = model.generate([1] * 120, max_new_tokens=50)
    assert (len(completion.ids), completion.finish_reason) == (8, "length")


def test_greedy_is_the_argmax_of_the_logits(model):
    prompt = [3, 1, 4]
    ids = model.generate(prompt, max_new_tokens=9).ids
    logits = model.logits(prompt + ids)
    assert ids == logits[len(prompt) - 1 : -1].argmax(axis=1).tolist()


def test_samples_depend_on_the_seed_alone(model):
    prompts = [[1, 2, 3], [4], [5, 6] * 20]
    options = {
        "do_sample": True,
        "seed": 7,
        "max_new_tokens": 12,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.95,
    }
    together = model.generate(prompts, num_return_sequences=3, **options)
    for prompt, samples in zip(prompts, together, strict=True):
        assert model.generate(prompt, num_return_sequences=2, **options) == samples[:2]
    single = llmcore.load(GPT2, dtype="float32", threads=1)
    assert single.generate(prompts, num_return_sequences=3, **options) == together
    other = model.generate(prompts, num_return_sequences=3, **{**options, "seed": 8})
    assert other != together
    assert len({tuple(sample.ids) for sample in together[0]}) == 3


def test_samples_without_a_seed_differ(model):
    first, second = (model.generate([1, 2], do_sample=True, max_new_tokens=20) for _ in range(2))
    assert first.ids != second.ids


def test_samples_follow_the_distribution(model):
    prompt = [9, 8, 7]
    count = 1000
    samples = model.generate(
        prompt, do_sample=True, seed=1, max_new_tokens=1, num_return_sequences=count, top_k=4
    )
    logits = model.logits(prompt)[-1].astype(np.float64)
    best = np.argsort(-logits)[:4]
    p = np.exp(logits[best]) / np.exp(logits[best]).sum()
    seen = np.array([sum(sample.ids == [token] for sample in samples) for token in best])
    assert seen.sum() == count
    assert (np.abs(seen - count * p) < 4 * np.sqrt(count * p * (1 - p))).all()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}])
def test_log_probabilities_are_the_models_own(model, options):
    prompt = [2, 7, 1]
    completion = model.generate(prompt, max_new_tokens=6, logprobs=3, suppress_tokens=[5], **options)
    logits = model.logits(prompt + completion.ids).astype(np.float64)[len(prompt) - 1 : -1]
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert [entry.id for entry in completion.logprobs] == completion.ids
    for entry, row in zip(completion.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.id], abs=1e-5)
        best = np.argsort(-row)[:3]
        assert [token for token, _ in entry.top] == best.tolist()
        assert [value for _, value in entry.top] == pytest.approx(row[best], abs=1e-5)
    assert model.generate(prompt, max_new_tokens=2).logprobs is None


@pytest.mark.parametrize("num_beams", [1, 3])
def test_callables_see_the_sequence_and_change_the_search(model, num_beams):
    lengths = []

    def only_even(ids, logits):
        assert ids.dtype == np.int64 and ids[:2].tolist() == [8, 9]
        assert logits.dtype == np.float32 and logits.shape == (160,)
        lengths.append(len(ids))
        return np.where(np.arange(160) % 2 == 0, logits, -np.inf)

    completion = model.generate(
        [8, 9],
        num_beams=num_beams,
        max_new_tokens=30,
        eos_token_id=[],
        logits_processor=only_even,
        stopping_criteria=[lambda ids: len(ids) == 9],
    )
    assert len(completion.ids) == 7 and all(token % 2 == 0 for token in completion.ids)
    assert completion.finish_reason == "stop"
    assert set(lengths) == set(range(2, 9))


def test_a_callable_may_use_the_model(model):
    """Contrastive search against the model without the prompt's beginning."""
    prompt = [3, 5, 7, 9]

    def contrast(ids, logits):
        return logits - 0.5 * model.logits(ids[2:])[-1]

    ids = model.generate(prompt, max_new_tokens=5, logits_processor=contrast).ids
    logits = [
        model.logits(prompt + ids[:n])[-1] - 0.5 * model.logits((prompt + ids[:n])[2:])[-1] for n in range(5)
    ]
    assert ids == [int(row.argmax()) for row in logits]


@pytest.mark.parametrize("option", ["logits_processor", "stopping_criteria"])
def test_what_a_callable_raises_comes_through(model, option):
    def fail(*_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        model.generate([1, 2], **{option: fail})


@pytest.mark.parametrize("result", [None, np.zeros(3), "x", np.full(160, np.nan)])
def test_what_a_processor_returns_is_checked(model, result):
    with pytest.raises((ValueError, TypeError)):
        model.generate([1, 2], logits_processor=lambda ids, logits: result)


def test_a_stream_adds_up(model):
    options = {"max_new_tokens": 9, "logprobs": 1}
    pieces = list(model.stream([4, 2], **options))
    completion = model.generate([4, 2], **options)
    assert [token for piece in pieces for token in piece.ids] == completion.ids
    assert [entry for piece in pieces for entry in piece.logprobs] == completion.logprobs
    assert [piece.finish_reason for piece in pieces] == [None] * 8 + ["length"]
    seen = []
    assert model.generate([4, 2], callback=seen.append, **options) == completion
    assert seen == pieces
    beams = list(model.stream([4, 2], num_beams=2, num_return_sequences=2, max_new_tokens=5))
    assert [(piece.index, len(piece.ids), piece.finish_reason) for piece in beams] == [
        (0, 5, "length"),
        (1, 5, "length"),
    ]


def test_closing_a_stream_ends_it(model):
    stream = model.stream([1, 2], max_new_tokens=100, eos_token_id=[])
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    unstarted = model.stream([1, 2])
    del unstarted
    gc.collect()
    assert model.generate([1, 2], max_new_tokens=1).ids


def test_streams_of_one_model_interleave(model):
    expected = [model.generate([i, i + 1], max_new_tokens=10).ids for i in range(3)]
    streams = [model.stream([i, i + 1], max_new_tokens=10) for i in range(3)]
    rounds = list(zip(*streams, strict=True))
    assert [
        [token for piece in pieces for token in piece.ids] for pieces in zip(*rounds, strict=True)
    ] == expected
    results = {}
    threads = [
        threading.Thread(
            target=lambda i=i: results.update({i: model.generate([i, i + 1], max_new_tokens=10).ids})
        )
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(3)] == expected


def test_control_c(model):
    """A search that would take minutes is interrupted from a timer."""
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            model.generate([[1, 2]] * 500, max_new_tokens=120, num_beams=20, eos_token_id=[])
    timer.join()


@pytest.mark.parametrize("prompt", [5, None, b"text", {"text": 1}])
def test_a_prompt_of_another_type(model, prompt):
    with pytest.raises(TypeError, match=r"prompt: found \w+, expected a text, token ids"):
        model.generate(prompt)
    with pytest.raises(TypeError, match=r"prompt: found"):
        model.stream(prompt)


def test_a_sequence_too_long_for_its_logits_is_refused_at_once(model):
    """Not after the context has been computed, nor with memory for the logits of all of it."""
    with pytest.raises(
        ValueError, match="tokens: found a sequence of 100000000 tokens, expected at most 128"
    ):
        model.logits(np.ones(100_000_000, np.uint32))


@pytest.mark.parametrize("ids", [5, None, [1.5, 2.5], "text", [[1, 2], [3]], [1 << 70], [True]])
def test_ids_that_are_none(model, ids):
    """Nothing is rounded, and the error names the argument."""
    with pytest.raises(ValueError, match=r"ids: found .*expected token ids in one dimension"):
        model.forward(ids)
    if not isinstance(ids, str):
        with pytest.raises(ValueError, match=r"text: found .*expected token ids in one dimension"):
            model.score(ids)
