"""The models of Transformers' names: logits and what else a padded batch gives, loading, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from llmcore import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

TINY = Path(__file__).parents[1] / "data" / "tiny"
CLASSES = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


@pytest.fixture(scope="module", params=CLASSES)
def tiny(request):
    folder = TINY / request.param
    return CLASSES[request.param].from_pretrained(folder, dtype="float32"), load_file(
        folder / "expected.safetensors"
    )


@pytest.fixture(scope="module")
def gpt2():
    return GPT2LMHeadModel.from_pretrained(TINY / "gpt2")


def test_a_padded_batch_is_what_transformers_computes(tiny):
    model, expected = tiny
    ids, mask = expected["input_ids"], expected["attention_mask"]
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    real = mask.astype(bool)
    assert output.logits.dtype == np.float32
    np.testing.assert_allclose(output.logits[real], expected["logits"][real], rtol=0, atol=2e-5)
    assert len(output.hidden_states) == sum(name.startswith("hidden_states") for name in expected)
    for i, state in enumerate(output.hidden_states):
        np.testing.assert_allclose(state[real], expected[f"hidden_states.{i}"][real], rtol=0, atol=5e-5)
    square = real[:, :, None] & real[:, None, :]
    assert len(output.attentions) == sum(name.startswith("attentions") for name in expected)
    for i, probabilities in enumerate(output.attentions):
        want = expected[f"attentions.{i}"]
        assert probabilities.shape == want.shape
        for head in range(want.shape[1]):
            np.testing.assert_allclose(
                probabilities[:, head][square], want[:, head][square], rtol=0, atol=5e-5
            )


@settings(max_examples=25)
@given(data=st.data())
def test_a_row_is_computed_as_if_alone_and_unpadded(tiny, data):
    model, _ = tiny
    batch, time = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    ids = np.array(data.draw(st.lists(st.integers(0, 159), min_size=batch * time, max_size=batch * time)))
    ids = ids.reshape(batch, time)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=batch * time, max_size=batch * time)))
    mask = mask.reshape(batch, time)
    mask[:, data.draw(st.integers(0, time - 1))] = True
    padded = model(ids, mask, output_hidden_states=True, output_attentions=True)
    for i, real in enumerate(mask):
        alone = model(ids[i, real], output_hidden_states=True, output_attentions=True)
        np.testing.assert_array_equal(padded.logits[i, real], alone.logits[0])
        assert not padded.logits[i, ~real].any()
        for state, single in zip(padded.hidden_states, alone.hidden_states, strict=True):
            np.testing.assert_array_equal(state[i, real], single[0])
            assert not state[i, ~real].any()
        for square, single in zip(padded.attentions, alone.attentions, strict=True):
            np.testing.assert_array_equal(square[i][:, real][:, :, real], single[0])
            assert not square[i][:, ~real].any() and not square[i][:, :, ~real].any()


def test_an_output_is_an_object_a_mapping_and_a_tuple(gpt2):
    output = gpt2([[1, 2, 3]])
    assert list(output) == ["logits"] and len(output) == 1 and "attentions" not in output
    assert output["logits"] is output[0] is output.logits
    assert output.hidden_states is None
    with pytest.raises(KeyError):
        output["attentions"]
    output = gpt2([[1, 2, 3]], output_attentions=True)
    assert [name for name, _ in output.items()] == ["logits", "attentions"]
    assert output[:2] == (output.logits, output.attentions) == output.to_tuple()
    assert isinstance(gpt2([[1, 2, 3]], return_dict=False), tuple)
    np.testing.assert_array_equal(gpt2([[1, 2, 3]], use_cache=True).logits, gpt2([[1, 2, 3]]).logits)


def test_ids_may_be_lists_or_arrays_of_any_width(gpt2):
    want = gpt2(np.array([[3, 1, 4]])).logits
    for ids in ([[3, 1, 4]], [3, 1, 4], np.array([[3, 1, 4]], np.uint8), ((3, 1, 4),)):
        np.testing.assert_array_equal(gpt2(ids).logits, want)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2], [3]], None, "input_ids: found rows of unequal lengths"),
        ([[[1]]], None, "input_ids: found int64 of shape"),
        ([[1.0, 2.0]], None, "input_ids: found float64"),
        (np.zeros((0, 3), int), None, "input_ids: found int64 of shape"),
        ([[]], None, "row 0"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], "no tokens in row 1"),
        ([[1, 2]], [[1, 1, 1]], r"attention_mask: found the shape \[1, 3\]"),
        ([[1, 2]], [[1, 2]], "attention_mask: found other values"),
        ([[1, 160]], None, "160"),
        ([[1, -1]], None, "-1"),
        ([[1] * 129], None, "129"),
        ({"input_ids": [[1]]}, None, "unpack it"),
    ],
)
def test_wrong_batches_are_errors_that_say_what_was_found(gpt2, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        gpt2(ids, mask)


def test_auto_gives_the_class_of_the_architecture():
    for name, kind in CLASSES.items():
        assert type(AutoModelForCausalLM.from_pretrained(str(TINY / name))) is kind


def test_a_class_of_another_architecture_is_an_error():
    with pytest.raises(ValueError, match="found model_type 'gpt2', expected 'llama' for LlamaForCausalLM"):
        LlamaForCausalLM.from_pretrained(TINY / "gpt2")


def test_arguments_of_loading():
    folder = TINY / "gpt2"
    harmless = {"device_map": "auto", "attn_implementation": "eager", "low_cpu_mem_usage": True}
    harmless |= {"use_safetensors": True, "local_files_only": True, "dtype": None}
    model = GPT2LMHeadModel.from_pretrained(
        folder, torch_dtype="auto", trust_remote_code=True, threads=1, **harmless
    )
    assert model.to("cpu").eval() is model and model.device == "cpu"
    assert model.num_parameters() == sum(
        array.size for array in load_file(folder / "model.safetensors").values()
    )
    halved = GPT2LMHeadModel.from_pretrained(folder, kv_cache_dtype="bfloat16").model.core
    assert 2 * halved.kv_bytes_per_position() == model.model.core.kv_bytes_per_position()
    with pytest.raises(TypeError, match="load_in_8bit"):
        GPT2LMHeadModel.from_pretrained(folder, load_in_8bit=True)
    for name, value in {
        "dtype": "float16",
        "kv_cache_dtype": "int4",
        "device_map": "cuda",
        "attn_implementation": "flash",
    }.items():
        with pytest.raises(ValueError, match=f"{name}: found '{value}'"):
            GPT2LMHeadModel.from_pretrained(folder, **{name: value})
    with pytest.raises(ValueError, match="device: found 'cuda'"):
        model.to("cuda")
    with pytest.raises(TypeError, match="labels"):
        model([[1]], labels=[[1]])


def test_config_says_what_config_json_says_and_the_defaults():
    config = GPT2LMHeadModel.from_pretrained(TINY / "gpt2").config
    said = json.loads((TINY / "gpt2" / "config.json").read_text())
    assert (config.n_embd, config.vocab_size, config.eos_token_id) == (32, 160, 2)
    assert said.items() <= config.to_dict().items()


def test_a_checkpoint_without_a_tokenizer_loads():
    assert AutoModelForCausalLM.from_pretrained(TINY / "llama")([[1]]).logits.shape == (1, 1, 160)
