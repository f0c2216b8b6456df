"""New models: each tensor is drawn as Transformers draws it, and the same bits come of a seed everywhere."""

from __future__ import annotations

import hashlib
import json
import math
from fnmatch import fnmatch
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import llmcore
from llmcore.training import initialise
from llmcore.training.initialise import new_model, normal

TINY = Path(__file__).parents[1] / "data" / "tiny"

# Small, yet large enough for the moments of its tensors to be sharp.
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 300}
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "attention_bias": True,
    "pad_token_id": 7, "initializer_range": 0.05,
}  # fmt: skip
# What a class of Transformers initialises with: the first pattern that matches counts.
EXPECTED = {
    "gpt2": {"*.ln_*.weight": 1, "*.bias": 0, "*.c_proj.weight": (0.02 / math.sqrt(6),), "*": (0.02,)},
    "llama": {"*norm.weight": 1, "*.bias": 0, "*": (0.05,)},
}


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_tensors_are_drawn_as_in_transformers(config, tmp_path):
    tensors = load_file(new_model(config, tmp_path / "new") / "model.safetensors")
    model = llmcore.load(tmp_path / "new", trainable=True)
    assert {tensor.name: tensor.shape for tensor in model.parameters()} == {
        name: values.shape for name, values in tensors.items()
    }
    for name, values in tensors.items():
        rules = EXPECTED[config["model_type"]].items()
        expected = next(rule for pattern, rule in rules if fnmatch(name, pattern))
        if not isinstance(expected, tuple):
            assert np.all(values == expected), name
            continue
        if name == "model.embed_tokens.weight":
            assert np.all(values[7] == 0)
            values = np.delete(values, 7, axis=0)
        scaled = values.astype(np.float64).ravel() / expected[0]
        # Each bound is five standard deviations of what it bounds.
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(np.mean(scaled**power) - moment) < 5 * math.sqrt(variance / scaled.size), (name, power)


def test_it_begins_knowing_nothing(tmp_path):
    for config in (GPT2, LLAMA):
        model = llmcore.load(new_model(config, tmp_path / "new"), trainable=True)
        loss = model.loss_and_grad(input_ids=[list(range(100))])
        assert loss == pytest.approx(math.log(300), abs=0.25)
        assert len(model.generate([1, 2], max_new_tokens=3).ids) == 3


def test_a_seed_gives_the_same_bits(tmp_path):
    def data(name, **options):
        return (new_model(GPT2, tmp_path / name, **options) / "model.safetensors").read_bytes()

    assert data("a", seed=1) == data("b", seed=1)
    assert data("a", seed=1) != data("c", seed=2)
    # These bits are not to change, on any machine, in any version.
    found = hashlib.sha256(normal(0, "transformer.wte.weight", 3_000_000, 0.02).tobytes()).hexdigest()
    assert found == "f5f0f991c2a97878f4f5b2b7edf8977016591993d9b06f83d3282d6b741b45c0"


def test_a_tensor_depends_on_its_name_alone(tmp_path):
    few = load_file(new_model(GPT2, tmp_path / "few") / "model.safetensors")
    many = load_file(new_model(GPT2 | {"n_layer": 4}, tmp_path / "many") / "model.safetensors")
    assert all(np.array_equal(few[name], many[name]) for name in few if not name.endswith("c_proj.weight"))
    assert len({values.tobytes() for name, values in few.items() if name.endswith("c_fc.weight")}) == 3
    assert np.array_equal(normal(0, "a", 9, 1), normal(0, "a", 3_000_000, 1)[:9])


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_the_inverse_of_the_distribution_function(p):
    expected = NormalDist().inv_cdf(p)
    assert initialise._quantile(np.array([p]))[0] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(st.floats(0, exclude_min=True, allow_infinity=False, allow_subnormal=False))
def test_the_logarithm(x):
    assert initialise._log(np.array([x]))[0] == pytest.approx(math.log(x), rel=1e-12, abs=1e-13)


def test_what_is_stored_with_it(tmp_path, gpt2_folder):
    text = tmp_path / "text.txt"
    text.write_text("a tokenizer of few words, of a few words only\n" * 9)
    trained = llmcore.Tokenizer.train(text, 260, progress=False)
    config = {key: value for key, value in GPT2.items() if key != "vocab_size"} | {"mine": 1}
    folder = new_model(config, tmp_path / "new", tokenizer=trained)
    saved = json.loads((folder / "config.json").read_text())
    assert saved == config | {"vocab_size": 260, "architectures": ["GPT2LMHeadModel"], "dtype": "float32"}
    assert llmcore.load(folder).tokenizer.encode("few words") == trained.encode("few words")

    for tokenizer in (gpt2_folder, gpt2_folder / "tokenizer.json", str(gpt2_folder)):
        new_model(config | {"vocab_size": 50304}, folder, tokenizer=tokenizer)
        assert llmcore.load(folder).tokenizer.vocab_size == 50257
    with pytest.raises(ValueError, match=r"config: vocab_size: found 300, expected at least 50257"):
        new_model(GPT2, folder, tokenizer=gpt2_folder)
    with pytest.raises(ValueError, match=r"tokenizer: found '.*vocab\.json', expected a tokenizer\.json"):
        new_model(config, folder, tokenizer=gpt2_folder / "vocab.json")


def test_a_config_of_a_file(tmp_path):
    new_model(TINY / "llama" / "config.json", tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved == json.loads((TINY / "llama" / "config.json").read_text())
    assert llmcore.load(tmp_path / "new").config == llmcore.load(TINY / "llama").config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"config: model_type: found 'mamba'"),
        ({"n_embd": 65}, r"config: n_head: found 4, expected a divisor of n_embd = 65"),
        ({"activation_function": "swoosh"}, r"config: .*swoosh"),
        ({"initializer_range": 0}, r"config: initializer_range: found 0, expected a number > 0"),
        ({"pad_token_id": "x"}, r"config: pad_token_id: found 'x', expected an id"),
    ],
)
def test_a_config_that_is_wrong(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        new_model(GPT2 | changes, tmp_path / "new")
    assert not (tmp_path / "new").exists()
