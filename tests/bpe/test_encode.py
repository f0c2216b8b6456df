"""Ids and offsets equal those of the `tokenizers` package; what is encoded comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import batches

import vocabularies
from llmcore.tokenizer import Tokenizer

# Ids alone are compared on more texts in test_exact.py.
MANY = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    return (
        Tokenizer.from_folder(gpt2_folder),
        tokenizers.Tokenizer.from_file(str(gpt2_folder / "tokenizer.json")),
    )


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """SmolLM2 out of the GGUF file, and the same for `tokenizers`."""
    return Tokenizer.from_file(smollm2_path), vocabularies.of_gguf(smollm2_path)


def test_gpt2_ids_are_the_known_ones(gpt2: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, _ = gpt2
    assert ours.encode("I love programming") == [40, 1842, 8300]
    assert ours.encode("<|endoftext|>") == [50256]
    assert (ours.vocab_size, ours.bos_token_id, ours.eos_token_ids) == (50257, 50256, [50256])


@MANY
@given(batch=batches)
def test_gpt2_equals_tokenizers(gpt2: tuple[Tokenizer, tokenizers.Tokenizer], batch: list[str]) -> None:
    ours, theirs = gpt2
    expected = theirs.encode_batch(batch)
    for text, array, encoding in zip(batch, ours.encode_batch(batch), expected, strict=True):
        ids = array.tolist()
        assert ids == encoding.ids, text
        assert ours.encode(text, with_offsets=True) == (ids, encoding.offsets)
        assert ours.decode(ids) == text
        assert ours.count(text) == len(ids)


@MANY
@given(batch=batches)
def test_smollm2_equals_tokenizers(smollm2: tuple[Tokenizer, tokenizers.Tokenizer], batch: list[str]) -> None:
    ours, theirs = smollm2
    # Its vocabulary lacks the bytes of some control characters and rare planes, which are left out.
    missing = set(range(256)) - {
        token[0] for token in map(ours.token_bytes, range(17, 300)) if len(token) == 1
    }
    for text, encoding in zip(batch, theirs.encode_batch(batch), strict=True):
        ids = ours.encode(text)
        assert ids == encoding.ids, text
        if not missing.intersection(text.encode()):
            assert ours.decode(ids) == text


@settings(max_examples=100)
@given(
    pieces=st.lists(
        st.one_of(
            st.text(st.characters(categories=["Lo"]), min_size=6, max_size=60),
            st.text(st.sampled_from("漢字かな한국어ไทยעבריתабвéßaqzxj"), min_size=12, max_size=60),
            st.text(st.sampled_from("🙂👩🇩\u200d€—=-#*+"), min_size=8, max_size=60),
            st.text(st.sampled_from("qzxjvkw"), min_size=16, max_size=60),
        ),
        min_size=20,
        max_size=20,
    )
)
def test_long_pieces_equal_tokenizers(
    gpt2: tuple[Tokenizer, tokenizers.Tokenizer], pieces: list[str]
) -> None:
    """Pieces that are cut where no token reaches across, remembered, and met again."""
    ours, theirs = gpt2
    for piece in pieces + pieces[::-1]:
        assert ours.encode(piece) == theirs.encode(piece).ids, piece
