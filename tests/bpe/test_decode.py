"""Ids back to bytes and text, whole and as they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import texts

from llmcore.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(gpt2_folder)


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.binary(max_size=24), texts.map(str.encode)))
def test_any_bytes_come_back(gpt2: Tokenizer, data: bytes) -> None:
    ids = gpt2.encode(data)
    assert gpt2.decode_bytes(ids) == data
    assert b"".join(map(gpt2.token_bytes, ids)) == data
    assert gpt2.decode(ids) == data.decode(errors="replace")
    assert np.array_equal(gpt2.encode_array(data), ids)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 50300), max_size=20))
def test_a_stream_gives_whole_characters_and_the_same_text(gpt2: Tokenizer, ids: list[int]) -> None:
    decoder = gpt2.stream_decoder()
    given_out = [decoder.push(id) for id in ids]
    whole = gpt2.decode_bytes(ids)
    for i in range(len(ids)):
        # What has been given out is what can be known: all but the start of a character.
        so_far = "".join(given_out[: i + 1]).encode()
        assert len(gpt2.decode_bytes(ids[: i + 1]).decode(errors="replace").encode()) - len(so_far) <= 3
    assert "".join(given_out) + decoder.finish() == whole.decode(errors="replace") == gpt2.decode(ids)


def test_a_stream_holds_back_half_a_character(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("🙂")
    assert len(ids) > 1
    decoder = gpt2.stream_decoder()
    assert [decoder.push(id) for id in ids] == [""] * (len(ids) - 1) + ["🙂"]
    decoder.push(ids[0])
    assert decoder.finish() == "�"


def test_special_tokens_are_skipped_on_request(gpt2: Tokenizer) -> None:
    ids = [50256, *gpt2.encode("hi"), 50256]
    assert gpt2.decode(ids) == "<|endoftext|>hi<|endoftext|>"
    assert gpt2.decode(ids, skip_special_tokens=True) == "hi"
    decoder = gpt2.stream_decoder(skip_special_tokens=True)
    assert "".join(decoder.push(id) for id in ids) == "hi"


def test_ids_come_in_many_forms(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("I love programming")
    for form in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint32), np.array(ids, np.int32)):
        assert gpt2.decode(form) == "I love programming"
    assert gpt2.decode(ids[0]) == "I"
    assert gpt2.decode([60_000]) == ""
    for wrong in (-1, [-1], np.array([-1]), [2**32], "text", 1.5, [[1]]):
        with pytest.raises((ValueError, TypeError)):
            gpt2.decode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="60000"):
        gpt2.token_bytes(60_000)
    assert gpt2.id_to_token(1842) == "Ġlove"
    assert gpt2.token_to_id("Ġlove") == 1842
    assert gpt2.id_to_token(60_000) is gpt2.token_to_id("no such token") is None
