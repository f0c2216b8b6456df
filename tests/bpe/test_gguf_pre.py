"""`tokenizer.ggml.pre` and the other keys: what they mean, and files in which they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizer_json import byte_level, regex_then_bytes, sequence, write
from texts import texts

from gpt2_files import spell
from llmcore.tokenizer import Tokenizer
from vocabularies import LLAMA3, O200K, QWEN2

# Merges of a character with the one before it, so that ids tell the pieces apart.
PAIRS = [
    (left, right) for left in b"a1!' \n" for right in (*b"aAst12!", 0xC3, 0xCC, 0xE6, 0xF0, *b" \n\r\t/")
]
TOKENS = [spell(bytes([byte])) for byte in range(256)] + [spell(bytes(pair)) for pair in PAIRS]
MERGES = [f"{spell(bytes([left]))} {spell(bytes([right]))}" for left, right in PAIRS]
CONTROL = ["<s>", "</s>"]

KNOWN = {
    "gpt-2": {"pre_tokenizer": byte_level()},
    "olmo": {"normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level()},
    "starcoder": {
        "pre_tokenizer": sequence(
            "pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level()
        )
    },
    "llama-bpe": {"pre_tokenizer": regex_then_bytes(LLAMA3)},
    "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": regex_then_bytes(QWEN2)},
    "gpt-4o": {"pre_tokenizer": regex_then_bytes(O200K)},
}
OTHERS = ["default", "phi-2", "mpt", "refact", "command-r", "falcon", "llama3", "smaug-bpe", "tekken"]
OTHERS += ["deepseek-coder", "deepseek-v3", "deepseek-r1-qwen", "llama4", "glm4"]


def write_file(path: Path, pre: str | None, **changes: Any) -> Path:
    """A file of the tokens above; a change to None leaves a key out."""
    types = [gguf.TokenType.NORMAL] * len(TOKENS) + [gguf.TokenType.CONTROL] * len(CONTROL)
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": TOKENS + CONTROL,
        "token_type": [int(kind) for kind in types],
        "merges": MERGES,
        "bos_token_id": len(TOKENS),
        "eos_token_id": len(TOKENS) + 1,
    } | changes
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        name = f"tokenizer.ggml.{key}"
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint64(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", KNOWN)
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(batch=st.lists(texts, min_size=50, max_size=50))
def test_a_pre_is_the_pipeline_of_its_models(pre: str, tmp_path: Path, batch: list[str]) -> None:
    ours = Tokenizer.from_file(write_file(tmp_path / "model.gguf", pre))
    vocab = {token: id for id, token in enumerate(TOKENS)}
    model = {
        "type": "BPE", "vocab": vocab, "merges": [merge.split(" ") for merge in MERGES], "ignore_merges": True
    }  # fmt: skip
    theirs = tokenizers.Tokenizer.from_file(str(write(tmp_path, KNOWN[pre] | {"model": model})))
    for text in batch:
        text = text.replace("s>", "")
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text).ids, text


@pytest.mark.parametrize("pre", [*KNOWN, *OTHERS])
def test_every_known_pre_opens(pre: str, tmp_path: Path) -> None:
    ours = Tokenizer.from_file(write_file(tmp_path / "model.gguf", pre))
    text = "I'd  like 12345 <s> x\n\n 漢字, e\u0301té!"
    assert ours.decode(ours.encode(text, add_special_tokens=False)) in (text, text.replace("e\u0301", "é"))
    starts = [ours.bos_token_id] if pre in ("llama-bpe", "llama3", "tekken") else []
    assert ours.encode("") == starts


def test_flags_of_the_file_win(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    without = Tokenizer.from_file(write_file(path, "llama-bpe", add_bos_token=False))
    assert without.encode("") == []
    both = Tokenizer.from_file(write_file(path, "gpt-2", add_bos_token=True, add_eos_token=True))
    assert both.encode("") == [both.bos_token_id, both.eos_token_id]
    turns = Tokenizer.from_file(write_file(path, "gpt-2", eot_token_id=7, eom_token_id=8))
    assert turns.eos_token_ids == [len(TOKENS) + 1, 7, 8]
    spaced = Tokenizer.from_file(write_file(path, "gpt-2", add_space_prefix=True))
    assert spaced.encode("a") == spaced.encode(" a")


WRONG = {
    "pre": ({"pre": "magic"}, r'tokenizer\.ggml\.pre: found "magic".*smollm'),
    "model": ({"model": "t5"}, r"tokenizer\.ggml\.model"),
    "no model": ({"model": None}, r"tokenizer\.ggml\.model"),
    "no tokens": ({"tokens": None}, r"tokenizer\.ggml\.tokens"),
    "same token": ({"tokens": ["a"] * (len(TOKENS) + 2)}, r"tokenizer\.ggml\.tokens"),
    "numbers": ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens\[0\]"),
    "types": ({"token_type": [1]}, r"tokenizer\.ggml\.token_type"),
    "type": ({"token_type": [9] * (len(TOKENS) + 2)}, r"tokenizer\.ggml\.token_type\[0\]"),
    "merge": ({"merges": ["a nothing"]}, r"tokenizer\.ggml\.merges\[0\].*nothing"),
    "merge of one": ({"merges": ["a"]}, r"tokenizer\.ggml\.merges\[0\]"),
    "bos": ({"bos_token_id": 2**60}, r"tokenizer\.ggml\.bos_token_id"),
    "bos to add": ({"bos_token_id": None, "add_bos_token": True}, r"tokenizer\.ggml\.bos_token_id"),
    "flag": ({"add_bos_token": "yes"}, r"tokenizer\.ggml\.add_bos_token"),
    "scores": ({"model": "llama"}, r"tokenizer\.ggml\.scores"),
    "score": ({"model": "llama", "scores": [float("nan")] * (len(TOKENS) + 2)}, r"scores\[0\].*NaN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_key_is_named(name: str, tmp_path: Path) -> None:
    changes, match = WRONG[name]
    path = write_file(tmp_path / "model.gguf", **{"pre": "gpt-2"} | changes)
    with pytest.raises(ValueError, match=match) as caught:
        Tokenizer.from_file(path)
    assert "model.gguf: " in str(caught.value)
