"""Every code point falls into the same piece as in tiktoken and tokenizers, and becomes the same ids.

`DIFFERENT` lists where the Unicode tables of the libraries lead elsewhere than ours.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers

import vocabularies
from gpt2_files import spell
from llmcore.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("true_ranks")

Encode = Callable[[list[str]], list[list[int]]]
Ranges = list[tuple[int, int]]

DIFFERENT: dict[tuple[str, str], Ranges] = {}
"""By pattern and library, the code points of which it makes other pieces: none in tiktoken 0.14 and
tokenizers 0.23. A release that reads another version of Unicode adds new characters, which belong here."""

# Planes 3 to 13 and 15 to 16 hold Chinese characters and private use, one like the next.
PLANES = (*range(0x32400), *range(0xE0000, 0xE0200), *range(0xF0000, 0xF0010), *range(0x10FFF0, 0x110000))
CHUNK = 1024
CODES = [code for code in PLANES if not 0xD800 <= code < 0xE000]

# A character joins what stands on either side of it or does not.
BEFORE, AFTER = b"aA1! \n'", b"'sbA1! \n/"
LEAD_BYTES, TRAIL_BYTES = bytes(range(0xC2, 0xF5)), bytes(range(0x80, 0xC0))


def probe(code: int) -> str:
    """A character between letters, after a space, doubled, before an apostrophe and an s, among others."""
    c = chr(code)
    return f"a{c}b\n {c}\n{c}{c}\n{c}'s\nA{c}A\n1{c}1\n!{c}!\n"


def telling_ranks() -> dict[bytes, int]:
    """A vocabulary whose ids tell whether a character is in one piece with what stands beside it: each last
    byte before it merges with each first byte of a character, and each last byte of it with what follows."""
    sides = (BEFORE, LEAD_BYTES), (TRAIL_BYTES, AFTER), (TRAIL_BYTES, LEAD_BYTES)
    pairs = [bytes([left, right]) for lefts, rights in sides for left in lefts for right in rights]
    return {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *pairs])}


def telling_tokenizers(pre_tokenizer: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    ranks = telling_ranks()
    merges = [(spell(token[:1]), spell(token[1:])) for token in ranks if len(token) == 2]
    made = tokenizers.Tokenizer(models.BPE({spell(token): rank for token, rank in ranks.items()}, merges))
    made.pre_tokenizer = pre_tokenizer
    return made


def different(ours: Encode, *others: Encode) -> list[Ranges]:
    """For each of the others, the code points whose ids are not ours, alone or in `probe`."""
    found: list[list[int]] = [[] for _ in others]
    for start in range(0, len(CODES), CHUNK):
        chunk = CODES[start : start + CHUNK]
        texts = ["".join(map(probe, chunk)), *map(chr, chunk)]
        expected = ours(texts)
        for theirs, codes in zip(others, found, strict=True):
            if theirs(texts) != expected:
                single = [(code, [probe(code), chr(code)]) for code in chunk]
                codes += [code for code, texts in single if ours(texts) != theirs(texts)]
    return [list(ranges(codes)) for codes in found]


def ranges(codes: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of what follows each other."""
    first = None
    for i, code in enumerate(codes):
        first = code if first is None else first
        if codes[i + 1 : i + 2] != [code + 1]:
            yield first, code
            first = None


def listed(pattern: str, *libraries: str) -> list[Ranges]:
    return [DIFFERENT.get((pattern, library), []) for library in libraries]


def by_us(path: Path, pattern: str | None = None) -> Encode:
    tokenizer = Tokenizer.from_file(path, pattern=pattern)
    return lambda texts: [ids.tolist() for ids in tokenizer.encode_batch(texts)]


def by_tokenizers(tokenizer: tokenizers.Tokenizer) -> Encode:
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]


def by_tiktoken(encoding: tiktoken.Encoding) -> Encode:
    return lambda texts: [encoding.encode_ordinary(text) for text in texts]


@pytest.mark.parametrize("pattern", vocabularies.PATTERNS)
def test_pieces_equal_tiktoken(pattern: str, tmp_path: Path) -> None:
    ranks = telling_ranks()
    path = tmp_path / "telling.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for t, rank in ranks.items()))
    theirs = tiktoken.Encoding(
        "telling", pat_str=vocabularies.PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={}
    )
    assert different(by_us(path, pattern), by_tiktoken(theirs)) == listed(pattern, "tiktoken")


@pytest.mark.parametrize("pattern", [*vocabularies.PATTERNS, "digits"])
def test_pieces_equal_tokenizers(pattern: str, tmp_path: Path) -> None:
    if pattern == "digits":
        split = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=False), vocabularies.pre_tokenizer("gpt2")]
        )
    else:
        split = vocabularies.pre_tokenizer(pattern)
    theirs = telling_tokenizers(split)
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    assert different(by_us(path), by_tokenizers(theirs)) == listed(pattern, "tokenizers")


@pytest.mark.parametrize("pattern", sorted(set(vocabularies.RANKS.values())))
def test_ids_equal_both(pattern: str, tmp_path: Path) -> None:
    theirs = vocabularies.of_tokenizers(pattern)
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    others = by_tiktoken(vocabularies.of_tiktoken(pattern)), by_tokenizers(theirs)
    assert different(by_us(path), *others) == listed(pattern, "tiktoken", "tokenizers")


def test_lone_surrogates(tmp_path: Path) -> None:
    """tiktoken reads them as U+FFFD and tokenizers refuses them; so do `.tiktoken` files, and others too."""
    theirs = vocabularies.of_tiktoken("gpt2")
    vocabularies.write_tiktoken(tmp_path / "gpt2.tiktoken", "gpt2")
    ours = Tokenizer.from_file(tmp_path / "gpt2.tiktoken", pattern="gpt2")
    for code in range(0xD800, 0xE000):
        text = probe(code)
        assert ours.encode(text) == theirs.encode_ordinary(text) == ours.encode(probe(0xFFFD))
    with pytest.raises(TypeError):
        vocabularies.of_tokenizers("gpt2").encode("\ud800")
