"""Every code point falls into the same class as in the `tokenizers` package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from test_tokenizer_json import LLAMA3, O200K, QWEN2, byte_level, regex_then_bytes, sequence, write

from gpt2_files import spell
from llmcore.tokenizer import Tokenizer

# A letter, a digit, a sign and a space before a character: it joins them or does not.
BEFORE = b"aA1! "
LEAD_BYTES = range(0xC2, 0xF5)

PRE_TOKENIZERS = {
    "gpt2": byte_level(),
    "llama3": regex_then_bytes(LLAMA3),
    "qwen2": regex_then_bytes(QWEN2),
    "o200k": regex_then_bytes(O200K),
    "digits": sequence("pretokenizers", {"type": "Digits", "individual_digits": False}, byte_level()),
}


def telling_model() -> dict[str, object]:
    """A model whose ids tell whether a character is in one piece with the one before it: each of `BEFORE`
    merges with each first byte of a character."""
    vocab = {spell(bytes([byte])): byte for byte in range(256)}
    merges = []
    for before in BEFORE:
        for lead in LEAD_BYTES:
            left, right = spell(bytes([before])), spell(bytes([lead]))
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    return {"type": "BPE", "vocab": vocab, "merges": merges}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_classes_equal_tokenizers(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"model": telling_model(), "pre_tokenizer": PRE_TOKENIZERS[name]})
    ours, theirs = Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
    different = []
    # Planes 3 to 13 and 15 to 16 hold Chinese characters and private use, one like the next.
    planes = (*range(0x32000), *range(0xE0000, 0xE0200))
    codes = [code for code in planes if code >= 0x80 and not 0xD800 <= code < 0xE000]
    probes = [f"a{chr(code)}\nA{chr(code)}\n1{chr(code)}\n!{chr(code)}\n {chr(code)}\n" for code in codes]
    for start in range(0, len(probes), 256):
        chunk = probes[start : start + 256]
        text = "".join(chunk)
        if ours.encode(text) != theirs.encode(text).ids:
            different += [
                (hex(code), json.dumps(probe))
                for code, probe in zip(codes[start:], chunk, strict=False)
                if ours.encode(probe) != theirs.encode(probe).ids
            ]
    assert not different, (len(different), different[:20])
