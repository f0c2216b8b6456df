"""The tokenizers of Transformers' names, over GPT-2's true vocabulary and SmolLM2's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_torch import Tensor, fake_torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore import AutoTokenizer, GPT2Tokenizer

LOVE = [40, 1842, 8300]
END = 50256


@pytest.fixture(scope="module")
def gpt2_files(gpt2_folder: Path) -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(gpt2_folder)


@pytest.fixture
def gpt2(gpt2_files):
    """GPT-2's tokenizer, which a test may change."""
    return GPT2Tokenizer(gpt2_files.core, model_max_length=gpt2_files.model_max_length)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(smollm2_path)


def test_one_text(gpt2):
    assert gpt2.encode("I love programming") == LOVE
    assert gpt2("I love programming") == {"input_ids": LOVE, "attention_mask": [1, 1, 1]}
    assert gpt2("I love programming", return_attention_mask=False) == {"input_ids": LOVE}
    encoding = gpt2("I love programming", return_tensors="np")
    assert encoding.input_ids.tolist() == [LOVE] and encoding.attention_mask.tolist() == [[1, 1, 1]]
    assert encoding.input_ids.dtype == encoding.attention_mask.dtype == np.int64
    assert encoding.to("cpu") is encoding
    with pytest.raises(AttributeError, match="token_type_ids"):
        encoding.token_type_ids  # noqa: B018
    assert gpt2.tokenize("I love") == ["I", "Ġlove"]


def test_pt_gives_tensors_where_torch_is(gpt2, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert isinstance(gpt2.encode("I love", return_tensors="pt"), np.ndarray)
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    ids = gpt2.encode("I love programming", return_tensors="pt")
    assert isinstance(ids, Tensor) and ids.array.tolist() == [LOVE]
    assert gpt2.decode(Tensor(ids.array[0])) == "I love programming"
    assert gpt2.batch_decode(ids) == gpt2.decode(ids) == ["I love programming"]
    assert gpt2.convert_ids_to_tokens(Tensor(ids.array[0])) == ["I", "Ġlove", "Ġprogramming"]


def test_padding(gpt2):
    texts = ["I", "I love programming"]
    assert gpt2(texts).input_ids == [[40], LOVE]
    with pytest.raises(ValueError, match="pad_token: found none"):
        gpt2(texts, padding=True)
    with pytest.raises(ValueError, match="padding: found texts of unequal lengths"):
        gpt2(texts, return_tensors="np")
    gpt2.pad_token = gpt2.eos_token
    assert gpt2(texts, padding=True) == {
        "input_ids": [[40, END, END], LOVE],
        "attention_mask": [[1, 0, 0], [1, 1, 1]],
    }
    gpt2.padding_side = "left"
    encoding = gpt2(texts, padding="longest", return_tensors="np")
    assert encoding.input_ids.tolist() == [[END, END, 40], LOVE]
    assert encoding.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert gpt2("I", padding="max_length", max_length=3, padding_side="right").input_ids == [40, END, END]
    with pytest.raises(ValueError, match="padding: found 'longst', expected one of"):
        gpt2(texts, padding="longst")
    with pytest.raises(ValueError, match="padding_side: found 'top'"):
        gpt2(texts, padding=True, padding_side="top")


def test_truncation(gpt2):
    assert gpt2.encode("I love programming", truncation=True, max_length=2) == LOVE[:2]
    assert gpt2.encode("I love programming", max_length=2) == LOVE[:2]
    assert gpt2.encode("I love programming", truncation=False, max_length=2) == LOVE
    gpt2.model_max_length = 1
    assert gpt2(["I love", "I"], truncation=True).input_ids == [[40], [40]]
    with pytest.raises(ValueError, match="truncation: found 'middle'"):
        gpt2.encode("I", truncation="middle")


def test_what_is_put_around_a_text_survives_truncation(tmp_path, gpt2_folder):
    shutil.copytree(gpt2_folder, tmp_path, dirs_exist_ok=True)
    settings = {"add_bos_token": True, "add_eos_token": True, "padding_side": "left", "model_max_length": 7}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer"} | settings)
    )
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, pad_token="!")
    assert (tokenizer.padding_side, tokenizer.model_max_length, tokenizer.pad_token_id) == ("left", 7, 0)
    assert tokenizer.encode("I love programming") == [END, *LOVE, END]
    assert tokenizer.encode("I love programming", max_length=4) == [END, *LOVE[:2], END]
    assert tokenizer.encode("I love programming", max_length=3, add_special_tokens=False) == LOVE
    with pytest.raises(ValueError, match="max_length: found 1, expected at least the 2 tokens"):
        tokenizer.encode("I love programming", max_length=1)


def test_special_tokens(gpt2):
    assert (gpt2.bos_token, gpt2.eos_token_id, gpt2.unk_token_id, gpt2.pad_token) == (
        "<|endoftext|>",
        END,
        END,
        None,
    )
    assert gpt2.all_special_ids == [END] and gpt2.all_special_tokens == ["<|endoftext|>"]
    gpt2.pad_token_id = 0
    assert gpt2.pad_token == "!" and gpt2.special_tokens_map["pad_token"] == "!"
    with pytest.raises(ValueError, match=r"pad_token: found '\[PAD\]', expected a token of the vocabulary"):
        gpt2.pad_token = "[PAD]"
    with pytest.raises(ValueError, match="eos_token_id: found 50257, expected an id below 50257"):
        gpt2.eos_token_id = 50257
    gpt2.eos_token = None
    assert gpt2.eos_token_id is None


def test_decoding(gpt2):
    assert gpt2.decode(40) == "I"
    assert gpt2.decode(gpt2.encode("I ."), clean_up_tokenization_spaces=True) == "I ."
    assert gpt2.decode(np.array(LOVE)) == gpt2.decode(tuple(LOVE)) == "I love programming"
    assert gpt2.decode([LOVE, [40]]) == ["I love programming", "I"]
    assert gpt2.batch_decode(np.array([LOVE, LOVE])) == ["I love programming"] * 2
    assert gpt2.decode([*LOVE, END, END]) == "I love programming<|endoftext|><|endoftext|>"
    assert gpt2.decode([*LOVE, END, END], skip_special_tokens=True) == "I love programming"
    gpt2.pad_token_id = 0
    assert gpt2.decode([0, 0, *LOVE], skip_special_tokens=True) == "I love programming"
    assert gpt2.decode([]) == ""
    with pytest.raises(ValueError, match="token_ids: found float64"):
        gpt2.decode([1.5])


@settings(deadline=None)
@given(text=st.text())
def test_decoding_gives_the_text_back(gpt2_files, text):
    assert gpt2_files.decode(gpt2_files.encode(text)) == text


def test_tokens_and_ids(gpt2):
    assert gpt2.convert_tokens_to_ids("Ġlove") == 1842
    assert gpt2.convert_tokens_to_ids(["I", "no such token"]) == [40, END]
    assert gpt2.convert_ids_to_tokens(1842) == "Ġlove"
    assert gpt2.convert_ids_to_tokens([40, END], skip_special_tokens=True) == ["I"]
    assert len(gpt2) == gpt2.vocab_size == len(gpt2.get_vocab()) == 50257
    assert gpt2.get_vocab()["Ġlove"] == 1842


def test_wrong_arguments(gpt2, gpt2_folder, tmp_path):
    with pytest.raises(TypeError, match="stride"):
        gpt2("I", stride=1)
    with pytest.raises(TypeError, match="text: found list"):
        gpt2.encode(["I"])
    with pytest.raises(TypeError, match="revision"):
        GPT2Tokenizer.from_pretrained(gpt2_folder, revision="main")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_chat(smollm2):
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    text = smollm2.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    ids = smollm2.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    # What a user writes does not end the turn.
    assert ids.count(smollm2.convert_tokens_to_ids("<|im_end|>")) == text.count("<|im_end|>") - 1
    encoding = smollm2.apply_chat_template(messages, add_generation_prompt=True, return_tensors="np")
    assert encoding.input_ids.tolist() == [ids] and encoding.attention_mask.all()
    both = smollm2.apply_chat_template([messages, messages * 2], padding=True, padding_side="left")
    assert len(both.input_ids[0]) == len(both.input_ids[1]) and both.attention_mask[0][0] == 0
    assert len(smollm2.apply_chat_template([messages], tokenize=False)) == 1


def test_a_chat_without_a_template_is_an_error(gpt2):
    with pytest.raises(ValueError, match="no chat template"):
        gpt2.apply_chat_template([{"role": "user", "content": "Hi"}])
