"""`generate` under Transformers' names: its searches, its defaults, and the arrays that it returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmcore import AutoModelForCausalLM, GenerationConfig
from llmcore.hf.options import merge

TINY = Path(__file__).parents[1] / "data" / "tiny"
EXPECTED = {name: json.loads((TINY / name / "expected.json").read_text()) for name in ("gpt2", "llama")}
CASES = [
    (name, case) for name, cases in EXPECTED.items() for case, value in cases.items() if "kwargs" in value
]
SCORES = {"return_dict_in_generate": True, "output_scores": True}
ENDS = {"gpt2": [24, 60, 148], "llama": [4, 39, 105]}


@pytest.fixture(scope="module")
def models():
    return {name: AutoModelForCausalLM.from_pretrained(TINY / name, dtype="float32") for name in EXPECTED}


@pytest.fixture
def gpt2(models):
    """The model with a configuration that a test may change."""
    model = models["gpt2"]
    model.generation_config = GenerationConfig(**model.generation_config.to_dict())
    yield model
    model.generation_config = GenerationConfig.from_pretrained(TINY / "gpt2")


def left_padded(prompts, pad=0):
    longest = max(map(len, prompts))
    ids = np.array([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def assert_is(output, want):
    assert output.sequences.dtype == np.int64
    np.testing.assert_array_equal(output.sequences, want["sequences"])
    if want.get("sequences_scores") is None:
        assert output.sequences_scores is None
    else:
        np.testing.assert_allclose(output.sequences_scores, want["sequences_scores"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_searches_are_those_of_transformers(models, name, case):
    want = EXPECTED[name][case]
    prompt = [want["sequences"][0][:29]]
    output = models[name].generate(prompt, return_dict_in_generate=True, **want["kwargs"])
    assert_is(output, want)
    np.testing.assert_array_equal(models[name].generate(prompt, **want["kwargs"]), want["sequences"])


@pytest.mark.parametrize("name", EXPECTED)
def test_left_padded_prompts_stay_left_padded(models, name):
    want = EXPECTED[name]["greedy_left_padded"]
    ids, mask = left_padded(want["prompts"])
    length = len(want["sequences"][0]) - ids.shape[1]
    output = models[name].generate(
        ids, attention_mask=mask, max_new_tokens=length, return_dict_in_generate=True
    )
    assert_is(output, want)
    np.testing.assert_array_equal(
        models[name].generate(ids, attention_mask=mask, max_length=len(want["sequences"][0])),
        output.sequences,
    )


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("scores", [False, True])
def test_beams_of_a_batch(models, name, scores):
    want = EXPECTED[name]["beam3_batch"]
    ids, mask = left_padded(want["prompts"])
    options = {"return_dict_in_generate": True, "output_scores": scores, **want["batch_kwargs"]}
    assert_is(models[name].generate(ids, attention_mask=mask, **options), want)


# Defaults and precedence


def test_twenty_tokens_greedily_unless_said_otherwise(gpt2):
    sequence = gpt2.generate([[5, 6, 7]])
    assert sequence.shape == (1, 23)
    np.testing.assert_array_equal(gpt2.generate([[5, 6, 7]], temperature=0.5, top_p=0.1), sequence)
    assert gpt2.generate([[5, 6, 7]], max_length=9).shape == (1, 9)
    assert gpt2.generate([[5, 6, 7]], max_new_tokens=4, max_length=9).shape == (1, 7)


def test_the_call_wins_over_configs_and_they_over_the_defaults(gpt2):
    ids = [[5, 6, 7]]
    gpt2.generation_config.max_new_tokens = 3
    assert gpt2.generate(ids).shape == (1, 6)
    assert gpt2.generate(ids, GenerationConfig(max_length=8)).shape == (1, 8)
    assert gpt2.generate(ids, generation_config=GenerationConfig(max_length=8), max_new_tokens=1).shape == (
        1,
        4,
    )
    assert gpt2.generate(ids, max_new_tokens=None).shape == (1, 23)
    own, given = GenerationConfig(num_beams=2, top_k=5, eos_token_id=1), GenerationConfig(num_beams=3)
    assert merge((own, given), {"eos_token_id": None}) == {"num_beams": 3, "top_k": 5}
    assert merge((own, None), {"num_beams": 4}) == {"num_beams": 4, "top_k": 5, "eos_token_id": 1}
    assert merge((), {}) == {"top_k": 50}


def test_an_end_token_can_be_switched_off(gpt2):
    first = int(gpt2.generate([[5, 6, 7]])[0, 3])
    gpt2.generation_config.eos_token_id = [first]
    assert gpt2.generate([[5, 6, 7]]).shape == (1, 4)
    assert gpt2.generate([[5, 6, 7]], eos_token_id=None).shape == (1, 23)


def test_several_sequences_without_beams_are_that_many_beams(gpt2):
    options = {"max_new_tokens": 6, "num_return_sequences": 3, "return_dict_in_generate": True}
    output = gpt2.generate([[5, 6, 7]], **options)
    beams = gpt2.generate([[5, 6, 7]], num_beams=3, **options)
    np.testing.assert_array_equal(output.sequences, beams.sequences)
    np.testing.assert_array_equal(output.sequences_scores, beams.sequences_scores)


def test_min_length_counts_the_prompt_and_its_padding(gpt2):
    ids, mask = [[0, 0, 5, 6, 7]], [[0, 0, 1, 1, 1]]
    free = gpt2.generate(ids, attention_mask=mask)[0].tolist()
    end = free[8]
    assert end not in free[5:8]
    options = {"attention_mask": mask, "eos_token_id": end}
    for length in (None, 1, 8):
        assert gpt2.generate(ids, min_length=length, **options)[0].tolist() == free[:9]
    assert gpt2.generate(ids, min_length=9, **options)[0, 8] != end
    # The number of new tokens wins.
    assert gpt2.generate(ids, min_length=9, min_new_tokens=3, **options)[0].tolist() == free[:9]


def test_generation_begins_with_bos_without_a_prompt(gpt2):
    np.testing.assert_array_equal(gpt2.generate(), gpt2.generate(inputs=[[1]]))
    with pytest.raises(ValueError, match="bos_token_id"):
        gpt2.generate(bos_token_id=None)


# Padding


def test_padding_is_found_if_its_token_ends_no_sequence(gpt2):
    ids, mask = left_padded([[5, 6, 7], [7]], pad=9)
    masked = gpt2.generate(ids, attention_mask=mask)
    np.testing.assert_array_equal(gpt2.generate(ids, pad_token_id=9), masked)
    unmasked = gpt2.generate(ids, attention_mask=np.ones_like(ids))
    assert (unmasked[1] != masked[1]).any()
    np.testing.assert_array_equal(gpt2.generate(ids, pad_token_id=9, eos_token_id=[2, 9]), unmasked)
    np.testing.assert_array_equal(gpt2.generate(ids), unmasked)


def test_right_padding_stays_between_prompt_and_continuation(gpt2):
    ids, mask = np.array([[5, 6, 7], [7, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]])
    output = gpt2.generate(ids, attention_mask=mask, max_new_tokens=5)
    np.testing.assert_array_equal(output[:, :3], ids)
    np.testing.assert_array_equal(output[1, 3:], gpt2.generate([[7]], max_new_tokens=5)[0, 1:])


@pytest.mark.parametrize(
    ("options", "fill"),
    [
        ({"pad_token_id": 77}, 77),
        ({"pad_token_id": 0}, 0),
        ({}, None),
        ({"num_beams": 2, "pad_token_id": 77}, 77),
        # Transformers' beam search reads a padding token 0 as none.
        ({"num_beams": 2, "pad_token_id": 0}, None),
    ],
)
def test_what_follows_the_end(models, options, fill):
    for name, ends in ENDS.items():
        ids, mask = left_padded(EXPECTED[name]["beam3_batch"]["prompts"])
        output = models[name].generate(
            ids,
            attention_mask=mask,
            eos_token_id=ends,
            max_new_tokens=16,
            pad_token_id=options.get("pad_token_id", None),
            num_beams=options.get("num_beams", 1),
        )
        want = ends[0] if fill is None else fill
        new = output[:, ids.shape[1] :]
        lengths = [next((i + 1 for i, id in enumerate(row) if id in ends), len(row)) for row in new]
        assert min(lengths) < max(lengths)
        for row, length in zip(new, lengths, strict=True):
            assert (row[length:] == want).all()


def test_nothing_to_fill_up_with_is_an_error(gpt2):
    def stop(ids, scores):
        return ids[0, 0] == 5

    options = {"stopping_criteria": [stop], "eos_token_id": None, "max_new_tokens": 3}
    with pytest.raises(ValueError, match="pad_token_id: found none"):
        gpt2.generate([[5, 6], [6, 7]], **options)
    assert gpt2.generate([[5, 6], [6, 7]], pad_token_id=9, **options)[0, 3:].tolist() == [9, 9]


# Scores


def test_greedy_scores_are_those_that_tokens_were_chosen_by(gpt2):
    ids, mask = left_padded([[5, 6, 7], [7]])
    end = int(gpt2.generate([[7]])[0, 3])
    output = gpt2.generate(
        ids,
        attention_mask=mask,
        eos_token_id=end,
        repetition_penalty=1.5,
        logits_processor=[lambda _, scores: np.where(np.arange(160) == 9, -np.inf, scores)],
        **SCORES,
    )
    assert output.beam_indices is None and output.sequences_scores is None
    assert len(output.scores) == output.sequences.shape[1] - 3
    ended = [False, False]
    for step, chosen in zip(output.scores, output.sequences[:, 3:].T, strict=True):
        assert step.shape == (2, 160) and step.dtype == np.float32
        for row in range(2):
            assert ended[row] or step[row].argmax() == chosen[row]
            assert not ended[row] or not step[row].any()
            ended[row] |= bool(chosen[row] == end)
    assert ended == [False, True]
    first = gpt2([[7]]).logits[0, -1].copy()
    first[9] = -np.inf
    first[7] *= 1.5 if first[7] < 0 else 1 / 1.5
    np.testing.assert_allclose(output.scores[0][1], first, rtol=1e-6)


def test_beam_scores_add_up_to_the_scores_of_sequences(models):
    for name, ends in ENDS.items():
        ids, mask = left_padded(EXPECTED[name]["beam3_batch"]["prompts"])
        output = models[name].generate(
            ids,
            attention_mask=mask,
            eos_token_id=ends,
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=12,
            length_penalty=0.7,
            no_repeat_ngram_size=2,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert output.beam_indices.dtype == np.int32
        assert output.beam_indices.shape == (9, output.sequences.shape[1] - ids.shape[1])
        assert all(step.shape == (12, 160) for step in output.scores)
        for row, (indices, tokens) in enumerate(
            zip(output.beam_indices, output.sequences[:, ids.shape[1] :], strict=True)
        ):
            length = int((indices >= 0).sum())
            assert (indices[:length] // 4 == row // 3).all() and (indices[length:] == -1).all()
            chosen = [output.scores[t][indices[t], tokens[t]] for t in range(length)]
            assert sum(chosen) / length**0.7 == pytest.approx(output.sequences_scores[row], abs=1e-5)


def test_scores_of_sampling_are_what_was_drawn_from(gpt2):
    options = {"do_sample": True, "temperature": 0.5, "top_k": 7, "seed": 3, "num_return_sequences": 2}
    output = gpt2.generate([[5, 6, 7]], max_new_tokens=4, **SCORES, **options)
    logits = gpt2([[5, 6, 7]]).logits[0, -1] / np.float32(0.5)
    kept = np.sort(np.argsort(logits)[-7:])
    for row in range(2):
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(output.scores[0][row])), kept)
        np.testing.assert_allclose(output.scores[0][row, kept], logits[kept], rtol=1e-6)
    for step, tokens in zip(output.scores, output.sequences[:, 3:].T, strict=True):
        assert np.isfinite(step[[0, 1], tokens]).all()
    np.testing.assert_array_equal(gpt2.generate([[5, 6, 7]], max_new_tokens=4, **options), output.sequences)


# Callables


def test_processors_and_criteria_see_batches_of_one(gpt2):
    def no_sevens(ids, scores):
        assert ids.dtype == np.int64 and ids.shape[0] == 1 and scores.shape == (1, 160)
        scores[:, 7::10] = -np.inf
        return scores

    def long_enough(ids, scores):
        return np.array([ids.shape[1] >= 6])

    ids, mask = left_padded([[5, 6, 8], [6]])
    output = gpt2.generate(
        ids, None, no_sevens, [long_enough], attention_mask=mask, max_new_tokens=30, pad_token_id=159
    )
    # The criterion sees no padding: the shorter prompt goes on for longer.
    assert output.shape == (2, 8) and (output[0, 6:] == 159).all() and (output[1, 3:] != 159).all()
    assert not (output[:, 3:] % 10 == 7).any()


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beam": 2}, "num_beam: found an unknown option, .*did you mean 'num_beams'"),
        ({"logprobs": 2}, "logprobs: found an unknown option"),
        ({"max_length": 3}, "max_length: found 3, expected more than the 3 tokens"),
        ({"max_length": 9.5}, "max_length: found 9.5, expected a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "9"}, "max_new_tokens: found '9'"),
        ({"eos_token_id": "</s>"}, "eos_token_id: found "),
        ({"eos_token_id": [2, -1]}, "eos_token_id: found "),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_beams": 2, "do_sample": True}, "num_beams"),
        ({"num_beams": 2, "num_beam_groups": 2} | SCORES, "output_scores: found num_beam_groups = 2"),
        ({"generation_config": GenerationConfig(top_p=2.0)}, "top_p"),
    ],
)
def test_wrong_options_are_errors_that_name_them(gpt2, options, message):
    with pytest.raises(ValueError, match=message):
        gpt2.generate([[5, 6, 7]], **options)


def test_a_config_knows_its_options():
    config = GenerationConfig(num_beams=2)
    assert (config.num_beams, config.top_k, config.to_dict()) == (2, None, {"num_beams": 2})
    assert config == GenerationConfig(num_beams=2) != GenerationConfig()
    assert repr(config) == "GenerationConfig(num_beams=2)"
    with pytest.raises(ValueError, match="did you mean 'num_beams'"):
        GenerationConfig(nun_beams=2)
    with pytest.raises(AttributeError, match="did you mean 'num_beams'"):
        config.nun_beams = 2
    with pytest.raises(AttributeError, match="nun_beams"):
        print(config.nun_beams)
