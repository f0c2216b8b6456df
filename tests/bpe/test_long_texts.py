"""Texts that are cut where nothing changes: shared out among threads, or read only as far as is wanted."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import any_text, ascii_text, snippets

import gpt2_files
from llmcore.tokenizer import Tokenizer

PATTERNS = ("gpt2", "cl100k", "o200k", "llama3", "qwen2")
ADDED = {"<|endoftext|>": {}, "  ": {"special": False}, "<l>": {"lstrip": True}, "<r>": {"rstrip": True},
         "ab": {"single_word": True, "special": False}, "a.": {}}  # fmt: skip
NUMBERS = {"type": "Digits", "individual_digits": False}

texts = st.lists(
    st.one_of(
        snippets, ascii_text, any_text, st.sampled_from(["a ", "ab", "a.", "<l>", " <r> ", "漢，", "a's"])
    ),
    max_size=12,
).map("".join)
bytes_ = st.lists(st.one_of(texts.map(str.encode), st.binary(max_size=4)), max_size=4).map(b"".join)


def byte_level(folder: Path, name: str, change: dict[str, Any]) -> Tokenizer:
    """A tokenizer with GPT-2's vocabulary, added tokens with every flag, and other parts."""
    path = folder / f"{name}.json"
    file = gpt2_files.gpt2_tokenizer_json()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    ids = {token: gpt2_files.gpt2_vocab().get(token, 60000 + i) for i, token in enumerate(ADDED)}
    added = [{"id": ids[token], "content": token} | flags | ADDED[token] for token in ADDED]
    path.write_text(json.dumps(file | {"added_tokens": added} | change))
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, gpt2_folder: Path) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("long")
    ranks = folder / "gpt2.tiktoken"
    # In GPT-2's vocabulary no token holds a word and its contraction, so that a wrong cut would not be seen.
    tokens = [*gpt2_files.gpt2_ranks(), b"a's", b"b's", b"x's", b"a'd", b"x't", b"I'm"]
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    ranks.write_bytes(b"".join(lines))
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {name: Tokenizer.from_file(ranks, pattern=name) for name in PATTERNS} | {
        "added": byte_level(folder, "added", {}),
        "prefix": byte_level(folder, "prefix", {"pre_tokenizer": level | {"add_prefix_space": True}}),
        "numbers": byte_level(
            folder, "numbers", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [NUMBERS, level]}}
        ),
        "decomposed": byte_level(folder, "decomposed", {"normalizer": {"type": "NFD"}}),
        "normalized": byte_level(
            folder,
            "normalized",
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}},
        ),
    }


NAMES = (*PATTERNS, "added", "prefix", "numbers", "normalized", "decomposed")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150)
@given(text=bytes_)
def test_a_seam_changes_no_id(tokenizers: dict[str, Tokenizer], name: str, text: bytes) -> None:
    tokenizer = tokenizers[name]
    whole = tokenizer.encode(text)
    for end in {tokenizer.last_seam(text[:read]) for read in range(len(text) + 1)} - {None}:
        assert tokenizer.encode(text[:end]) + tokenizer.encode(text[end:]) == whole, (text[:end], text[end:])


def test_seams_are_where_words_end(tokenizers: dict[str, Tokenizer]) -> None:
    def seams(name: str, text: str) -> list[str]:
        """The text, cut at every seam."""
        data, places = text.encode(), set()
        for read in range(len(data) + 1):
            places.add(tokenizers[name].last_seam(data[:read]) or 0)
        cuts = sorted(places | {0, len(data)})
        return [data[a:b].decode() for a, b in pairwise(cuts)]

    def check(name: str, *expected: str) -> None:
        unread = "y" * 13  # which may be part of an added token
        assert seams(name, "".join(expected) + unread) == [*expected[:-1], expected[-1] + unread]

    check("gpt2", "don't", " 12", " 漢字", "。\nx", "  y")
    check("added", "one", " two", " three", " four<|endoftext|>x ab y")
    check("prefix", "w, x", " y")
    check("normalized", "éa", " é x", ", 漢", "，漢字かg", "\nか、 y")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(parts=st.lists(texts, min_size=1, max_size=6), bad=st.booleans())
def test_long_texts_have_the_ids_of_one_thread(
    tokenizers: dict[str, Tokenizer], name: str, parts: list[str], bad: bool
) -> None:
    tokenizer = tokenizers[name]
    part = "".join(parts) + "x"
    text = part * (300_000 // len(part.encode()))
    expected, _ = tokenizer.encode(text, with_offsets=True)
    assert tokenizer.encode(text) == expected
    assert tokenizer.count(text) == len(expected)
    ids, starts = tokenizer.encode_batch(["", text, part, text.encode() + b"\xff" * bad], flat=True)
    rows = tokenizer.encode_batch(["", text, part, text.encode() + b"\xff" * bad])
    assert [row.tolist() for row in rows] == [row.tolist() for row in np.split(ids, starts[1:-1])]
    assert rows[1].tolist() == expected
    assert tokenizer.decode(rows[3]).startswith(tokenizer.decode(expected))


def truncated(tokenizer: Tokenizer, text: str, n: int) -> str:
    """The naive way: the first ids of all, as text."""
    while len(ids := tokenizer.encode(text)) > n:
        data = tokenizer.decode_bytes(ids[:n])
        text = data.decode(errors="ignore") if len(data) < len(text.encode()) else text[:-1]
    return text


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=200)
@given(text=texts, n=st.integers(0, 30))
def test_truncate_is_what_the_first_ids_stand_for(
    tokenizers: dict[str, Tokenizer], name: str, text: str, n: int
) -> None:
    tokenizer = tokenizers[name]
    beginning = tokenizer.truncate(text, n)
    assert beginning == truncated(tokenizer, text, n)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(text=texts, n=st.integers(0, 2000), times=st.integers(1, 400))
def test_truncate_gives_a_beginning_of_at_most_n_ids(
    tokenizers: dict[str, Tokenizer], name: str, text: str, n: int, times: int
) -> None:
    tokenizer, text = tokenizers[name], text * times
    beginning = tokenizer.truncate(text, n)
    assert text.startswith(beginning)
    assert tokenizer.count(beginning) <= n
    if tokenizer.count(text) <= n:
        assert beginning == text


def test_truncate_counts_what_is_put_around(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bos"
    gpt2_files.write_gpt2_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>", "add_bos_token": true}')
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids) == ([50256], [])
    assert tokenizer.truncate("I love programming", 3) == "I love"
    assert tokenizer.truncate("I love programming", 2, add_special_tokens=False) == "I love"
    assert tokenizer.truncate("I love programming", 1) == ""
    with pytest.raises(ValueError, match="n: found 0, expected at least 1"):
        tokenizer.truncate("I love programming", 0)
    text = "I love programming. " * 20_000
    assert tokenizer.encode(text)[:2] == [50256, 40]
    assert tokenizer.count(text) == len(tokenizer.encode(text))
    assert tokenizer.encode(text, allowed_special="none").count(50256) == 1


@pytest.mark.parametrize("ending", ["", "é", "\ud83d"])
def test_truncate_reads_no_more_than_it_needs(tokenizers: dict[str, Tokenizer], ending: str) -> None:
    # Python keeps the UTF-8 of a text once it is made.
    some = ["I love programming. " * 200_000 + ending * i for i in range(1, 6)]

    def seconds(work: Callable[[str], object], text: str) -> float:
        start = time.perf_counter()
        work(text)
        return time.perf_counter() - start

    gpt2 = tokenizers["gpt2"]
    beginning = min(seconds(lambda text: gpt2.truncate(text, 6), text) for text in some)
    whole = min(seconds(gpt2.count, text) for text in some)
    assert {gpt2.truncate(text, 6) for text in some} == {"I love programming. I love"}
    assert beginning < whole / 20
