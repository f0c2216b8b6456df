"""`.tiktoken` files: ids equal those of the `tiktoken` package for its own patterns."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import batches, texts

import vocabularies
from gpt2_files import END_OF_TEXT, gpt2_ranks
from llmcore.tokenizer import Tokenizer

Pair = tuple[Tokenizer, tiktoken.Encoding]

UNKNOWN = r"\w+|\s|[^\w\s]+(?=.)|."
"""A pattern without a scanner."""
PATTERNS = {name: vocabularies.PATTERNS[name] for name in ("gpt2", "cl100k", "o200k")} | {UNKNOWN: UNKNOWN}


@pytest.fixture(scope="module", params=PATTERNS)
def pair(request: pytest.FixtureRequest, gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ranks = gpt2_ranks()
    path = tmp_path_factory.mktemp("tiktoken") / "gpt2.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), ranks[token]) for token in ranks))
    special = {END_OF_TEXT: 50256}
    theirs = tiktoken.Encoding(
        "test", pat_str=PATTERNS[request.param], mergeable_ranks=ranks, special_tokens=special
    )
    return Tokenizer.from_file(path, pattern=request.param, special_tokens=special), theirs


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(batch=batches)
def test_equals_tiktoken(pair: Pair, batch: list[str]) -> None:
    ours, theirs = pair
    for text in batch:
        assert ours.encode(text) == theirs.encode(text, allowed_special="all"), text
        plain = ours.encode(text, allowed_special="none")
        assert plain == theirs.encode(text, disallowed_special=()), text
        assert ours.encode(text, allowed_special={END_OF_TEXT}) == ours.encode(text)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.one_of(texts, st.sampled_from(["\ud800", "\udc00", "\ud83d\ude42"])), max_size=6))
def test_surrogates_are_read_as_utf_16(pair: Pair, parts: list[str]) -> None:
    ours, theirs = pair
    text = "".join(parts)
    assert ours.encode(text, allowed_special="none") == theirs.encode(text, disallowed_special=())
    assert [ids.tolist() for ids in ours.encode_batch([text, "a"])] == [ours.encode(text), ours.encode("a")]


def test_a_pattern_is_needed_and_must_be_known(gpt2_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bytes.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)))
    for pattern in (None, "gpt5", "(", "[a"):
        with pytest.raises(ValueError, match="pattern"):
            Tokenizer.from_file(path, pattern=pattern)
    with pytest.raises(ValueError, match="pattern"):
        Tokenizer.from_file(gpt2_folder / "tokenizer.json", pattern="gpt2")


def test_a_pattern_that_backtracks_for_ever_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bytes.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)))
    ours = Tokenizer.from_file(path, pattern=r"(?:(?=a)a|aa|a)*b")
    with pytest.raises(ValueError, match="backtrack"):
        ours.encode("a" * 64)
