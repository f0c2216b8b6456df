"""Converting between GGUF and the Hugging Face layout: no bit of a weight changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_layouts import IDS, TINY, copy, with_biases, write_gguf

import llmcore
from llmcore._core import Gguf, SafeTensors
from llmcore.checkpoint import open_checkpoint
from llmcore.convert import to_folder, to_gguf
from llmcore.gguf_file import write_gguf as write_gguf_file
from llmcore.rope import llama3_factors, llama3_parameters


def tiny(name, folder, **changes):
    """A tiny checkpoint; with biases, if it is a llama with an `attention_bias`."""
    tensors = load_file(TINY / name / "model.safetensors")
    if changes.get("attention_bias"):
        tensors = with_biases(tensors)
    if changes.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    return copy(name, folder, tensors, **changes)


CHECKPOINTS = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "plain": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}),
    "yarn of all positions": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    "yarn": (
        "llama",
        {"rope_parameters": None, "rope_theta": 500.0,
         "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0,
                          "original_max_position_embeddings": 64}},
    ),
}  # fmt: skip


@pytest.fixture(params=CHECKPOINTS)
def source(request, tmp_path):
    name, changes = CHECKPOINTS[request.param]
    return tiny(name, tmp_path / request.param, **changes)


def test_there_and_back(source, tmp_path):
    """Weights are the same bits, and so are logits but for Llama 3's rotary factors, which GGUF rounds."""
    to_gguf(open_checkpoint(source), tmp_path / "x.gguf")
    to_folder(open_checkpoint(tmp_path / "x.gguf"), tmp_path / "back")
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(tmp_path / "back" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)

    expected = llmcore.load(source).logits(IDS)
    tolerance = 1e-5 if "rope_freqs.weight" in Gguf(tmp_path / "x.gguf").names() else 0
    np.testing.assert_allclose(
        llmcore.load(tmp_path / "x.gguf").logits(IDS), expected, rtol=0, atol=tolerance
    )
    # The parameters of the factors are found again, so that a folder has the very numbers.
    config, saved = llmcore.load(source).config, llmcore.load(tmp_path / "back").config
    if source.name != "gpt2":
        assert saved.rope_type == config.rope_type
        assert config.rope.items() - {("rope_type", "default")} <= saved.rope.items()
        assert np.float32(saved.rms_norm_eps) == np.float32(config.rms_norm_eps)
    assert np.array_equal(llmcore.load(tmp_path / "back").logits(IDS), expected)

    # And once more, from GGUF.
    to_gguf(open_checkpoint(tmp_path / "back"), tmp_path / "y.gguf")
    first, second = Gguf(tmp_path / "x.gguf"), Gguf(tmp_path / "y.gguf")
    assert first.names() == second.names()
    assert all(np.array_equal(first.read(name), second.read(name)) for name in first.names())
    assert first.metadata() | {"general.name": "back"} == second.metadata()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_it_is_what_llama_cpp_converts_to(name, tmp_path):
    """As `test_layouts` writes it with the package `gguf`, by its own table of names."""
    theirs = gguf.GGUFReader(write_gguf(tmp_path / "theirs.gguf", TINY / name))
    to_gguf(open_checkpoint(TINY / name), tmp_path / "ours.gguf")
    ours = gguf.GGUFReader(tmp_path / "ours.gguf")
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type
        assert tensor.shape.tolist() == expected[tensor.name].shape.tolist()
        if tensor.name == "rope_freqs.weight":  # theirs is a quotient of rounded numbers
            np.testing.assert_allclose(tensor.data, expected[tensor.name].data, rtol=1e-6)
        else:
            assert np.array_equal(tensor.data, expected[tensor.name].data), tensor.name
    for key, field in theirs.fields.items():
        if key.startswith(("general", name)):
            assert ours.fields[key].types == field.types, key
            assert ours.fields[key].contents() == field.contents(), key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_half_precision(name, dtype, tmp_path):
    kind = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    to_gguf(open_checkpoint(TINY / name), tmp_path / "x.gguf", dtype)
    file = Gguf(tmp_path / "x.gguf")
    for tensor in file.names():
        shape, stored = file.info(tensor)
        assert stored == ("F32" if len(shape) == 1 or tensor == "position_embd.weight" else kind)
    assert file.get("general.file_type") == {"F16": 1, "BF16": 32}[kind]

    # "auto" keeps what is there, and rounding again changes nothing.
    to_folder(open_checkpoint(TINY / name), tmp_path / "hf", dtype)
    half = SafeTensors(tmp_path / "hf")
    assert {half.info(tensor)[1] for tensor in half.names()} == {kind}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == dtype
    to_gguf(open_checkpoint(tmp_path / "hf"), tmp_path / "y.gguf")
    again = Gguf(tmp_path / "y.gguf")
    for tensor in file.names():
        assert again.info(tensor) == file.info(tensor)
        if file.info(tensor)[1] == kind:
            assert np.array_equal(again.read(tensor), file.read(tensor))
    to_folder(open_checkpoint(tmp_path / "hf"), tmp_path / "again")
    files = [tmp_path / folder / "model.safetensors" for folder in ("hf", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_tokenizer_comes_along(tmp_path, gpt2_folder):
    folder = tmp_path / "gpt2"
    shutil.copytree(gpt2_folder, folder)
    copy("gpt2", folder, load_file(TINY / "gpt2" / "model.safetensors"))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: found a token of id 50256, expected ids below 160"
    ):
        to_gguf(open_checkpoint(folder), tmp_path / "x.gguf")

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wte.weight"] = np.ones((50260, 32), np.float32)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    ends = {"vocab_size": 50260, "eos_token_id": [50256, 3], "bos_token_id": 50256}
    (folder / "config.json").write_text(json.dumps(config | ends))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    to_gguf(open_checkpoint(folder), tmp_path / "x.gguf")
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    expected = {
        "model": "gpt2", "pre": "gpt-2", "eos_token_id": 50256, "eot_token_id": 3, "bos_token_id": 50256,
        "add_bos_token": False, "add_eos_token": False,
    }  # fmt: skip
    for key, value in expected.items():
        assert fields[f"tokenizer.ggml.{key}"].contents() == value, key
    assert fields["tokenizer.ggml.tokens"].contents()[50255:] == [
        "Ġgazed", "<|endoftext|>", "[PAD50257]", "[PAD50258]", "[PAD50259]"
    ]  # fmt: skip
    assert fields["tokenizer.ggml.token_type"].contents()[50255:] == [1, 3, 5, 5, 5]
    assert len(fields["tokenizer.ggml.merges"].contents()) == 50000

    before, after = llmcore.load(folder), llmcore.load(tmp_path / "x.gguf")
    text = Path(__file__).read_text() + " 漢字 é<|endoftext|>"
    assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    assert after.tokenizer.chat_template == "{{ messages }}"
    assert after.checkpoint.generation["eos_token_id"] == [50256, 3]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "gpt2",
            {"activation_function": "relu"},
            r"config\.json: activation_function: found 'relu', expected",
        ),
        ("llama", {"hidden_act": "gelu"}, r"config\.json: hidden_act: found 'gelu', expected 'silu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 2.0}},
            r"config\.json: rope_parameters\.attention_factor: found 2\.0, expected null",
        ),
    ],
)
def test_what_gguf_has_no_words_for(name, changes, message, tmp_path):
    source = tiny(name, tmp_path / name, **changes)
    with pytest.raises(ValueError, match=message):
        to_gguf(open_checkpoint(source), tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_what_is_asked_for_wrongly(tmp_path):
    to_gguf(open_checkpoint(TINY / "gpt2"), tmp_path / "x.gguf")
    with pytest.raises(ValueError, match=r"x\.gguf: found a GGUF file, expected a folder with safetensors"):
        to_gguf(open_checkpoint(tmp_path / "x.gguf"), tmp_path / "y.gguf")
    with pytest.raises(ValueError, match=r"dtype: found 'int8', expected 'auto', 'float32'"):
        to_gguf(open_checkpoint(TINY / "gpt2"), tmp_path / "y.gguf", "int8")


def test_factors_of_no_llama(tmp_path):
    to_gguf(open_checkpoint(TINY / "llama"), tmp_path / "x.gguf")
    file = Gguf(tmp_path / "x.gguf")
    tensors = {name: file.read(name) for name in file.names()}
    tensors["rope_freqs.weight"] = np.array([1, 2, 3, 5], np.float32)
    write_gguf_file(tmp_path / "y.gguf", file.metadata(), tensors)
    with pytest.raises(ValueError, match=r"y\.gguf: rope_freqs: found other factors, expected Llama 3's"):
        to_folder(open_checkpoint(tmp_path / "y.gguf"), tmp_path / "back")


@pytest.mark.parametrize(
    ("theta", "factor", "context"), [(5e5, 8.0, 8192), (5e5, 32.0, 8192), (1e4, 4.0, 64)]
)
def test_parameters_of_factors(theta, factor, context):
    parameters = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": context,
    }  # fmt: skip
    assert llama3_parameters(64, theta, llama3_factors(64, theta, parameters).tolist()) == parameters
