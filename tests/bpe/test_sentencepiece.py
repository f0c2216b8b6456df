"""SentencePiece's BPE: ids and text equal those of the `sentencepiece` package on a model trained here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import gguf
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import SNIPPETS, texts

from llmcore.tokenizer import Tokenizer

CORPUS = [*SNIPPETS[:6], "漢字かな漢字", *Path(json.__file__).read_text(encoding="utf-8").splitlines()]
MARKUP = "<|user|>"
USER_DEFINED = ["programming", "  ", "字か", MARKUP]

Pair = tuple[Tokenizer, sentencepiece.SentencePieceProcessor]


def train(**options: object) -> sentencepiece.SentencePieceProcessor:
    written = io.BytesIO()
    common = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, model_type="bpe", **common, **options
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def token_type(model: sentencepiece.SentencePieceProcessor, id: int) -> int:
    if model.is_unknown(id):
        return gguf.TokenType.UNKNOWN
    if model.is_control(id):
        return gguf.TokenType.CONTROL
    if model.is_unused(id):
        return gguf.TokenType.UNUSED
    if model.is_byte(id):
        return gguf.TokenType.BYTE
    if model.id_to_piece(id) in USER_DEFINED:
        return gguf.TokenType.USER_DEFINED
    return gguf.TokenType.NORMAL


def write_gguf(path: Path, model: sentencepiece.SentencePieceProcessor, add_space_prefix: bool) -> Path:
    ids = range(model.get_piece_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(id) for id in ids])
    writer.add_token_scores([model.get_score(id) for id in ids])
    writer.add_token_types([token_type(model, id) for id in ids])
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_space_prefix(add_space_prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


MODELS = {
    "bytes": {"vocab_size": 700, "byte_fallback": True},
    "no_bytes": {"vocab_size": 400, "byte_fallback": False},
    "user_defined": {"vocab_size": 700, "byte_fallback": True, "user_defined_symbols": USER_DEFINED},
    "no_prefix": {"vocab_size": 700, "byte_fallback": True, "add_dummy_prefix": False},
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model = train(**MODELS[request.param])
    path = tmp_path_factory.mktemp("sentencepiece") / "model.gguf"
    prefix = MODELS[request.param].get("add_dummy_prefix", True)
    return Tokenizer.from_file(write_gguf(path, model, bool(prefix))), model


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(texts, min_size=50, max_size=50))
def test_equals_sentencepiece(pair: Pair, batch: list[str]) -> None:
    ours, theirs = pair
    for text in batch:
        # SentencePiece looks for no control tokens in a text, and drops NUL.
        text = text.replace("\0", "").replace(MARKUP, "")
        ids = ours.encode(text, allowed_special="none", add_special_tokens=False)
        assert ids == theirs.encode(text), text
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids) == text.replace("▁", " ")


def test_user_defined_markup_is_for_trusted_text_only(tmp_path: Path) -> None:
    model = train(**MODELS["user_defined"])
    ours = Tokenizer.from_file(write_gguf(tmp_path / "model.gguf", model, False))
    markup = model.piece_to_id(MARKUP)
    assert ours.encode(MARKUP, add_special_tokens=False) == [markup]
    assert markup not in ours.encode(MARKUP, allowed_special="none")
    assert ours.encode_spans([(MARKUP, True), (MARKUP, False)]).count(markup) == 1


def test_bos_and_control_tokens(pair: Pair) -> None:
    ours, theirs = pair
    assert ours.encode("a") == [theirs.bos_id(), *theirs.encode("a")]
    assert ours.encode("</s>", add_special_tokens=False) == [theirs.eos_id()]
    assert ours.eos_token_ids == [theirs.eos_id()]


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def without(proto: bytes, unused: set[bytes]) -> bytes:
    """A serialised model in which some pieces are unused: field 3 of theirs, the type, is 5.

    Of the message's own fields only the first, the pieces, precede anything that is not a piece.
    """
    out, at = b"", 0
    while proto[at] == 0x0A:
        length, shift, at = 0, 0, at + 1
        while True:
            byte, at = proto[at], at + 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        piece, at = proto[at : at + length], at + length
        if piece[2 : 2 + piece[1]] in unused:
            piece += b"\x18\x05"
        out += b"\x0a" + varint(len(piece)) + piece
    return out + proto[at:]


def test_unused_tokens_come_apart(tmp_path: Path) -> None:
    unused = ["▁the", "in", "re", "or", "▁s"]
    trained = train(vocab_size=700, byte_fallback=True)
    ids = trained.piece_to_id(unused)
    assert all(ids)
    model = sentencepiece.SentencePieceProcessor(
        model_proto=without(trained.serialized_model_proto(), {piece.encode() for piece in unused})
    )
    assert all(model.is_unused(id) for id in ids)
    ours = Tokenizer.from_file(write_gguf(tmp_path / "model.gguf", model, True))
    for text in (*CORPUS, "there inside retire"):
        found = ours.encode(text, add_special_tokens=False, allowed_special="none")
        assert found == model.encode(text), text
        assert not set(ids).intersection(found)
