"""The tokenizer in a GGUF file's metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmcore.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_file(smollm2_path)


def test_roles_come_from_the_file(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.vocab_size == 49152
    assert tokenizer.special_ids == list(range(17))
    assert tokenizer.chat_template is not None and "<|im_start|>" in tokenizer.chat_template


def test_special_tokens_are_found_only_where_they_are_allowed(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user"
    assert tokenizer.encode(text) == [1, 4093]
    plain = tokenizer.encode(text, allowed_special="none")
    assert 1 not in plain
    assert tokenizer.decode(plain) == text
    assert tokenizer.encode_spans([("<|im_start|>", True), ("user<|im_end|>", False)])[:2] == [1, 4093]
    assert 2 not in tokenizer.encode_spans([("<|im_start|>", True), ("user<|im_end|>", False)])


def test_ids_equal_the_reference(tokenizer: Tokenizer) -> None:
    reference = json.loads((DATA / "smollm2.json").read_text())
    for prompt in reference["prompts"]:
        assert tokenizer.encode(prompt["text"]) == prompt["ids"]
        assert tokenizer.decode(prompt["greedy"]) == prompt["greedy_text"]
