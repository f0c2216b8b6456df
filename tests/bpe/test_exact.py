"""Ids are those of tiktoken and tokenizers, for all patterns with a scanner, on 100,000 texts each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from families import families
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vocabularies
from llmcore import _core
from llmcore.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("true_ranks")

TEXTS = 100_000
"""Different texts a vocabulary, at least."""


@dataclass
class Vocabulary:
    """A pattern with ranks, out of a `.tiktoken` and out of a tokenizer.json, and by both libraries."""

    ranks: Tokenizer
    json: Tokenizer
    tiktoken: tiktoken.Encoding
    tokenizers: tokenizers.Tokenizer


@pytest.fixture(scope="module", params=vocabularies.PATTERNS)
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    vocabularies.write_tiktoken(folder / "ranks.tiktoken", vocabularies.RANKS[name])
    theirs = vocabularies.of_tokenizers(name)
    theirs.save(str(folder / "tokenizer.json"))
    return Vocabulary(
        Tokenizer.from_file(folder / "ranks.tiktoken", pattern=name),
        Tokenizer.from_file(folder / "tokenizer.json"),
        vocabularies.of_tiktoken(name),
        theirs,
    )


def assert_same(texts: list[str], found: list[Any], expected: list[list[int]]) -> None:
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours.tolist() == theirs, repr(text)


def check_families(check: Callable[[list[str], int], None]) -> None:
    """Calls `check` with families of texts, and the place of one of them, until there were enough."""
    seen: set[int] = set()

    @settings(max_examples=600, suppress_health_check=list(HealthCheck))
    @given(texts=families(), choice=st.integers(0, 2**32))
    def each(texts: list[str], choice: int) -> None:
        seen.update(map(hash, texts))
        check(texts, choice % len(texts))

    each()
    assert len(seen) >= TEXTS


def test_ids_are_those_of_tiktoken_and_tokenizers(vocabulary: Vocabulary) -> None:
    def check(texts: list[str], chosen: int) -> None:
        by_tiktoken = [vocabulary.tiktoken.encode_ordinary(text) for text in texts]
        assert_same(texts, vocabulary.ranks.encode_batch(texts), by_tiktoken)
        encodings = vocabulary.tokenizers.encode_batch(texts)
        assert_same(texts, vocabulary.json.encode_batch(texts), [encoding.ids for encoding in encodings])
        # The other ways to ask, of one of the texts.
        text, encoding = texts[chosen], encodings[chosen]
        assert vocabulary.json.encode(text, with_offsets=True) == (encoding.ids, encoding.offsets), text
        assert vocabulary.json.count(text) == len(encoding.ids), text
        assert vocabulary.json.decode(encoding.ids) == text

    check_families(check)


def test_smollm2_equals_tokenizers(smollm2_path: Path) -> None:
    ours, theirs = Tokenizer.from_file(smollm2_path), vocabularies.of_gguf(smollm2_path)

    def check(texts: list[str], chosen: int) -> None:
        expected = [encoding.ids for encoding in theirs.encode_batch_fast(texts)]
        assert_same(texts, ours.encode_batch(texts), expected)
        assert ours.encode(texts[chosen]) == expected[chosen], texts[chosen]

    check_families(check)


PROGRAM = """
import hashlib, json, sys
from llmcore import Tokenizer, _core

texts = json.load(open(sys.argv[1]))
digest = hashlib.sha256()
for path in sys.argv[2:]:
    tokenizer = Tokenizer.from_file(path, pattern=path.split("/")[-1].removesuffix(".tiktoken"))
    ids, starts = tokenizer.encode_batch(texts, flat=True)
    digest.update(ids.astype("<u4").tobytes() + starts.astype("<i8").tobytes())
print(_core.isa(), digest.hexdigest())
"""


def test_ids_do_not_depend_on_the_instruction_set(tmp_path: Path) -> None:
    texts: list[str] = []

    @settings(max_examples=60, suppress_health_check=list(HealthCheck), database=None)
    @given(family=families())
    def collect(family: list[str]) -> None:
        texts.extend(family)

    collect()
    (tmp_path / "texts.json").write_text(json.dumps(texts, ensure_ascii=True))
    paths = [tmp_path / f"{name}.tiktoken" for name in vocabularies.PATTERNS]
    for path in paths:
        vocabularies.write_tiktoken(path, vocabularies.RANKS[path.stem])
    digests = {}
    for isa in _core.available_isas():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "texts.json", *paths],
            env={**os.environ, "LLMCORE_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        found, digests[isa] = done.stdout.split()
        assert found == isa
    assert len(set(digests.values())) == 1, digests
