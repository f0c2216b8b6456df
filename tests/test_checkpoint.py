"""Checkpoints that are wrong: every error names the file, the field, what was found and what was expected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import llmcore

TINY = Path(__file__).parent / "data" / "tiny"


@pytest.fixture
def llama(tmp_path):
    """A copy of the tiny llama to spoil."""
    folder = tmp_path / "llama"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / "llama" / name, folder / name)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"config\.json: model_type: found 'mamba', expected 'gpt2' or 'llama'"),
        ({"model_type": None}, r"config\.json: model_type: found None"),
        ({"hidden_size": "32"}, r"config\.json: hidden_size: found '32', expected int"),
        ({"hidden_size": True}, r"config\.json: hidden_size: found True, expected int"),
        ({"hidden_size": -1}, r"config\.json: hidden_size: found -1, expected a whole number from 1"),
        ({"num_hidden_layers": 1 << 60}, r"config\.json: num_hidden_layers: found 1152921504606846976"),
        ({"vocab_size": 1 << 60}, r"config\.json: vocab_size: found 1152921504606846976"),
        ({"num_key_value_heads": 3}, r"config\.json: num_key_value_heads: found 3, expected a divisor of"),
        ({"hidden_act": "swoosh"}, r"config\.json: .*swoosh"),
        ({"rms_norm_eps": -1.0}, r"config\.json: rms_norm_eps: found -1.0, expected a number ≥ 0"),
        ({"rms_norm_eps": float("nan")}, r"config\.json: rms_norm_eps: found nan"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, r"config\.json: rope_type: found 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"config\.json: rope_parameters\.factor: found None"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}},
            r"config\.json: rope_theta: found 1.0, expected a number > 1",
        ),
        ({"pretraining_tp": 2}, r"pretraining_tp: found 2, expected 1"),
        (
            {"vocab_size": 161},
            r"shape of \"model\.embed_tokens\.weight\": found \[160, 32\], expected \[161, 32\]",
        ),
        ({"num_hidden_layers": 3}, r"model\.layers\.2"),
    ],
)
def test_a_config_that_is_wrong(llama, changes, message):
    edit_config(llama, **changes)
    with pytest.raises(ValueError, match=message):
        llmcore.load(llama)


def test_a_config_that_is_no_json(llama):
    (llama / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: found .*line 1.*, expected JSON"):
        llmcore.load(llama)
    (llama / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json: found"):
        llmcore.load(llama)


def test_a_folder_without_a_config(llama):
    (llama / "config.json").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"config\.json"):
        llmcore.load(llama)


@pytest.mark.parametrize(
    ("pickle", "message"),
    [
        (None, r"llama: weights: found none, expected model\.safetensors or model\.safetensors\.index\.json"),
        ("pytorch_model.bin", r"found only pytorch_model\.bin \(pickles are never read\), expected model"),
        ("model.pt", r"found only model\.pt \(pickles are never read\)"),
    ],
)
def test_a_folder_without_weights(llama, pickle, message):
    (llama / "model.safetensors").unlink()
    if pickle:
        (llama / pickle).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        llmcore.load(llama)


def test_what_is_not_read_is_said(llama):
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(llama, lambda tensors: tensors.update({bias: np.zeros(32, np.float32)}))
    with pytest.warns(UserWarning, match=rf"model\.safetensors: found 1 tensor that nothing reads: {bias}$"):
        llmcore.load(llama)
    edit_config(llama, num_hidden_layers=1)
    with pytest.warns(UserWarning, match=r"found 10 tensors that nothing reads: model\.layers\.0.*, …"):
        llmcore.load(llama)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.bias", "transformer.h.0.attn.masked_bias"],
)
def test_buffers_are_no_parameters(llama, name):
    edit_tensors(llama, lambda tensors: tensors.update({name: np.zeros(2, np.float32)}))
    edit_config(llama, tie_word_embeddings=True)  # which leaves the head of the file
    llmcore.load(llama)


@pytest.mark.parametrize("use", ["generate", "score", "chat"])
def test_text_needs_a_tokenizer(llama, use):
    model = llmcore.load(llama)
    argument = [{"role": "user", "content": "x"}] if use == "chat" else "text"
    with pytest.raises(
        FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json; .* needs a tokenizer"
    ):
        getattr(model, use)(argument)


def test_a_model_says_what_it_is(llama):
    model = llmcore.load(llama)
    count = model.info()["parameters"]
    assert repr(model) == f"<llmcore.Model: llama, {count:,} parameters, from {str(llama)!r}>"


def test_a_missing_tensor(llama):
    edit_tensors(llama, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(ValueError, match=r"model\.safetensors.*model\.layers\.1\.mlp\.down_proj\.weight"):
        llmcore.load(llama)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"]
)
def test_a_weight_that_is_no_number(llama, name, value):
    def spoil(tensors):
        tensors[name].reshape(-1)[-1] = value

    edit_tensors(llama, spoil)
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: tensor \"{name}\": found (NaN|-?inf).*finite"
    ):
        llmcore.load(llama)


def test_a_transposed_tensor(llama):
    def spoil(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    edit_tensors(llama, spoil)
    with pytest.raises(
        ValueError, match=r"shape of \"model\.layers\.0\.mlp\.up_proj\.weight\": found \[32, 80\]"
    ):
        llmcore.load(llama)


def test_options_of_load():
    with pytest.raises(ValueError, match="dtype: found 'int3'"):
        llmcore.load(TINY / "llama", dtype="int3")
    with pytest.raises(ValueError, match="threads: found 0"):
        llmcore.load(TINY / "llama", threads=0)
    with pytest.raises(TypeError, match="source: found int, expected a path or a name"):
        llmcore.load(5)
    with pytest.raises(ValueError, match="threads: found '2'"):
        llmcore.load(TINY / "llama", threads="2")


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"eos_token_id": "x"}, r"eos_token_id: found \['x'\]"),
        ({"max_length": 3}, r"max_length: found 3"),
        ({"do_sample": True, "temperature": 0.0}, r"temperature: found 0"),
    ],
)
def test_a_generation_config_that_is_wrong(llama, generation, message):
    (llama / "generation_config.json").write_text(json.dumps(generation))
    model = llmcore.load(llama)
    with pytest.raises(ValueError, match=r"llama/generation_config\.json: " + message):
        model.generate([1, 2, 3])
    given = dict.fromkeys(generation, 5) | {"do_sample": False}
    assert len(model.generate([1, 2, 3], **given).ids) > 0


def test_end_tokens_of_a_generation_config(llama):
    """Any token of a list ends, and the call wins."""
    ids = llmcore.load(llama).generate([1, 2, 3], max_new_tokens=8, eos_token_id=[]).ids
    other = next(token for token in range(160) if token not in ids)
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [other, ids[2]]}))
    model = llmcore.load(llama)
    ended = model.generate([1, 2, 3], max_new_tokens=8)
    assert (ended.ids, ended.finish_reason) == (ids[: ids.index(ids[2]) + 1], "stop")
    assert model.generate([1, 2, 3], max_new_tokens=8, eos_token_id=other).ids == ids


def test_a_generation_config_may_leave_options_of_sampling(llama):
    """They are not looked at where nothing is sampled."""
    (llama / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.0}')
    assert len(llmcore.load(llama).generate([1, 2, 3], max_new_tokens=2).ids) == 2


def test_a_base_model_has_no_prefix(llama):
    """Names without the prefix of the class that saved them are found, too."""
    ids = [1, 2, 3]
    expected = llmcore.load(llama).logits(ids)

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(llama, strip)
    np.testing.assert_array_equal(llmcore.load(llama).logits(ids), expected)
